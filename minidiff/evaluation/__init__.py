"""Evaluation: metrics, the feature classifier, prompt agreement, reports."""
