"""Evaluation: the one prediction loop, and the table of metrics that recipes name by strings."""
