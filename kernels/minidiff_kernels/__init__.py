"""The kernels of minidiff: one specification in NumPy (`reference`), its twins for the CPU and the GPU."""
