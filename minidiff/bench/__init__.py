"""How fast and how exact: every kernel, the network and the training step beside PyTorch's, in turn in one process.

cases.py    what is measured: shapes, and how much work that is
ours.py     each operation on a backend
rival.py    the same operations in torch and diffusers
measure.py  times in turn, errors against float64, what the machine can do at most
report.py   the table, and the same as JSON
"""
