"""The same kernels in Numba: compiled for this machine at first use, multi-threaded, cached."""
