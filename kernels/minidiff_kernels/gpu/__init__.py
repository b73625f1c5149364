"""CUDA kernels, written by hand: each family's .cu beside the .py that launches it. CuPy compiles them when first used."""
