"""Speed and accuracy of the kernels, the network and the training step, measured side by side with other libraries'.

cases.py    the benchmark cases: shapes and amount of work
ours.py     each operation on one of our backends
rival.py    the same operations in torch and diffusers
rivals.py   the rivals by name: torch, TensorFlow (rival_tensorflow.py), OpenVINO (rival_openvino.py), the reference
worker.py   a rival in a process of its own
measure.py  interleaved timing, errors against float64, peak throughput of the machine
gpu.py      the same on a GPU
report.py   the table, and JSON
"""
