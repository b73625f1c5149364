"""Exercises that check themselves: `minidiff learn`."""
