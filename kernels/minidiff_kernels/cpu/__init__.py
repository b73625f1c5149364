"""The same operations in Numba: multi-threaded, compiled for this processor at first use, cached on disk."""
