"""Kernels in NumPy, written to be read: the specification of what `cpu` and `gpu` compute faster."""
