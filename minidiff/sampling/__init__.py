"""Sampling from a folder: its networks, the sampling settings, text to image."""
