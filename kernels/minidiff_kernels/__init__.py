"""The kernels of minidiff: the specification in NumPy (`reference`), fast versions for CPU (`cpu`) and GPU (`gpu`)."""
