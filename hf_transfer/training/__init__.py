"""Training: the update plan (which rows when), optimizer and schedule, and the loop."""
