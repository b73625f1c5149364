"""The sampling loops, a module for each method.

Each is a loop over noise levels (noise_levels.py): predict, estimate x0 and eps, step to the next level (steps.py).
They differ in the estimates. `loop` says what a sampling loop takes and yields; `reverse.sample` chooses one by name.
"""
