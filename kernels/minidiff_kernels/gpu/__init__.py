"""CUDA kernels: the .cu of each family beside the .py that launches it. CuPy compiles them at first use."""
