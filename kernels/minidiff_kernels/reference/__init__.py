"""Readable NumPy versions of all operations: the specification of `cpu` and `gpu`."""
