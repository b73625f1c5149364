"""Training: one step, the loop, the kinds of run, their state and checkpoints, recipes."""
