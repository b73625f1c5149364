"""Runs so small that a test can make dozens: 4x4 pictures, a network of one narrow level.

As a script it is a process that trains one and can be killed at any event on the way to the disk:
python small_runs.py FOLDER STEPS CHECKPOINT_EVERY BACKEND [EVENT]
"""

import os
import re
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.formats.weights import open_safetensors
from minidiff.models.config import UNetConfig
from minidiff.models.mlp import MLPConfig
from minidiff.models.unet import UNet
from minidiff.training import loop, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.points_run import PointsRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.log import HEADER
from minidiff.training.run import Run


def network(**changes) -> UNetConfig:
    """One level of 8 channels for grey pictures, or what is changed of that."""
    settings = dict(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    return UNetConfig(**{**settings, **changes})


def unet_of(config: UNetConfig, seed: int = 0, backend: str = "numpy") -> UNet:
    """A network at its random start."""
    return UNet(config, np.random.default_rng(seed), backend)


def refused(function: Callable, *args, match: str) -> None:
    """The call ends in a MinidiffError of one line that matches."""
    try:
        function(*args)
    except MinidiffError as error:
        assert re.search(match, str(error)) and "\n" not in str(error), f"{error}: is not {match}"
    else:
        raise AssertionError(f"not refused; expected: {match}")


def pictures(n: int = 10, shape: tuple[int, int, int] = (4, 4, 1)) -> Dataset:
    """Noise to learn from; not a multiple of the batch, so that epochs end within one."""
    rng = np.random.default_rng(1)
    return from_arrays("noise", rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.zeros(n, int), ("noise",))


def idx_set(folder: Path, n: int = 10, height: int = 4, width: int = 4, prefix: str = "train") -> Path:
    """A folder of IDX files, which is the smallest set that the command line takes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    for name, a in {
        "images-idx3": rng.integers(0, 256, (n, height, width), dtype=np.uint8),
        "labels-idx1": rng.integers(0, 10, n, dtype=np.uint8),
    }.items():
        header = bytes([0, 0, 8, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape)
        (folder / f"{prefix}-{name}-ubyte").write_bytes(header + a.tobytes())
    return folder


def bars(n: int, seed: int = 0, channels: int = 1) -> Dataset:
    """Bars that lie or stand, anywhere in a noisy picture: two classes that can be told apart."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 120, (n, 8, 8, channels), dtype=np.uint8), rng.integers(0, 2, n)
    for picture, stands, at in zip(images, labels, rng.integers(0, 8, n), strict=True):
        (picture[:, at] if stands else picture[at])[:] += 120
    return from_arrays("bars", images, labels, ("lying", "standing"))


def new_run(
    folder: Path, steps: int = 12, backend: str = "numpy", emas: tuple[float, ...] = (), lr: float = 1e-3,
    optimizer: str = "adamw", **changes,
) -> UNetRun:  # fmt: skip
    """A run at step 0 whose rate warms up and decays within its few steps; emas: half-lives of further averages."""
    config = TrainConfig(
        "noise", steps=steps, batch_size=4, lr=lr, warmup=3, seed=5, backend=backend, further_emas=emas,
        optimizer=optimizer,
    )  # fmt: skip
    return state.new_run(UNetRun, folder, config, network(**changes), cosine_schedule(30, "v_prediction"))


def new_points_run(folder: Path, data: str = "line", steps: int = 8, backend: str = "numpy", **changes) -> PointsRun:
    """A run on points at step 0; changes of its configuration, such as its classes."""
    config = TrainConfig(data, steps=steps, batch_size=4, warmup=3, seed=5, flip=False, backend=backend, **changes)
    rows = len(config.classes) + 1 if config.classes else None
    network = MLPConfig(1 if data == "line" else 2, hidden_size=8, num_layers=2, num_class_embeds=rows)
    return state.new_run(PointsRun, folder, config, network, cosine_schedule(30, "v_prediction"))


def reopen(folder: Path) -> Run:
    """The run of a folder, ready to go on."""
    run = state.open_run(folder)
    state.roll_back(run)
    return run


def go_on(
    run: Run,
    checkpoint_every: int = 4,
    stop_at: int = 0,
    on_step=lambda stats: None,
    dataset: Dataset | None = None,
    **more,
) -> None:
    """Train to the end, or until asked to stop after the step stop_at; without pictures on the way, which take long."""
    dataset = dataset or pictures(shape=run.shape)
    with patch.object(loop, "save_progress"):
        loop.fit(run, dataset, checkpoint_every, on_step, lambda step, loss: None, lambda: run.step == stop_at, **more)


def rows(folder: Path) -> list[str]:
    """The lines of a run's log behind the header; none of both if nothing was written yet."""
    header, *lines = (folder / "metrics.csv").read_text().splitlines() or [HEADER.strip()]
    assert header == "step,loss,grad_norm,lr,loss_q1,loss_q2,loss_q3,loss_q4"
    return lines


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, by name; None for a folder within."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a file, and its metadata."""
    arrays, metadata = open_safetensors(path)
    return {name: a.read() for name, a in arrays.items()}, metadata


def contents(run: Path) -> dict[str, object]:
    """The same of a run's folder, its state read: the order of the metadata in the file is not fixed.

    Without what tells of the checkpoints on the way: two runs that are the same may have been saved at other steps.
    """
    tensors, metadata = read_safetensors(state.state_file(run))
    numbers = {name: a.tobytes() for name, a in tensors.items()}
    kept = {name: a for name, a in tree(run).items() if not name.startswith(("training/", "checkpoints"))}
    return {**kept, "training/state.safetensors": (numbers, metadata)}


def kept_states(run: Path) -> dict[str, tuple]:
    """What checkpoints left behind: every state's step and numbers, and the table of their losses."""
    states = {path.name: read_safetensors(path) for path in (run / "training").glob("*.safetensors")}
    read = {name: (metadata["step"], tensors["p"].tobytes()) for name, (tensors, metadata) in states.items()}
    return {**read, "losses": (run / "checkpoints.csv").read_text()}


def kill_at(event: int) -> None:
    """End this process by SIGKILL just before the event-th fsync or rename; print the name of each before."""
    count = 0

    def watched(name: str):
        original = getattr(os, name)

        def call(*args):
            nonlocal count
            count += 1
            print(name, Path(args[-1]).name if name == "replace" else "", flush=True)
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return call

    for name in ("fsync", "replace"):
        setattr(os, name, watched(name))


def main(folder: Path, steps: int, checkpoint_every: int, backend: str, event: int) -> None:
    """Start a run, or continue the one that is there."""
    kill_at(event)
    with lock_run(folder):
        there = state.state_file(folder).exists()
        run = reopen(folder) if there else new_run(folder, steps, backend)
        go_on(run, checkpoint_every, on_step=lambda stats: print("step", stats.step, flush=True))


if __name__ == "__main__":
    folder, steps, checkpoint_every, backend, *event = sys.argv[1:]
    main(Path(folder), int(steps), int(checkpoint_every), backend, int(*event))
