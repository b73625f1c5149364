"""A rival that is our own reference, for tests of processes: rival.py's functions as worker.py calls them."""

from minidiff.bench import ours
from minidiff.engine.backend import get_backend


def set_up(threads):
    print("starting")  # what a library prints is no answer


def prepare(mode, op, inputs, settings):
    if mode == "fake bfloat16" and op == "conv":
        raise ValueError("no such precision")
    run = ours.prepare(get_backend("numpy"), op, inputs, settings)
    return lambda: run() or {}
