"""Consistency models: networks that map any point of a trajectory to its end, the image, in one evaluation.

The function and its boundary condition (function.py), the pairs of times and the loss that tune a diffusion model into
one (tuning.py). The sampler is solvers/consistency.py.
"""
