"""CUDA kernels by hand: each family's .cu beside the .py that launches it. CuPy compiles it when first used."""
