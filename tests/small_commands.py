"""Options and helpers for tests of the command line."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from small_runs import network

import minidiff as md
from minidiff.formats import networks

QUICK = ("--backend", "numpy", "--threads", 1)
SMALL = (*QUICK, "--batch-size", 3)


def process(*arguments, code=None, **options):
    """The command line in a process of its own; `code` runs before it."""
    start = ["-c", f"{code}\nfrom minidiff.cli.app import main; main()"] if code else ["-m", "minidiff"]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-W", "error", *start, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def bytes_of(name):
    return Path(name).read_bytes()


def noises(folder, n=4, size=4):
    """A folder of small pictures, not the same from call to call."""
    folder.mkdir(parents=True)
    for i in range(n):
        Image.effect_noise((size, size), 50).save(folder / f"{i}.png")


def pipeline(folder, **changes):
    """A network that was never trained, as a diffusers folder."""
    md.save_unet(md.UNet(network(**changes), np.random.default_rng(0), "numpy"), Path(folder) / "unet")
    networks.save_pipeline(folder, md.linear_schedule(50))
    return folder


COLOURS = dict(in_channels=3, out_channels=3)


def stop_after(steps):
    """In place of `stoppable`: as if Ctrl-C came in that step."""

    @contextmanager
    def stoppable(notice):
        asked = iter([False] * (steps - 1) + [True])
        yield lambda: next(asked)

    return stoppable
