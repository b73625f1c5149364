"""Runs on disk: new ones, opening and saving their states, exporting their networks.

RUN/training/state.safetensors   weights, EMA, moments, step, configuration; replaced by one atomic rename
RUN/training, RUN/checkpoints.csv                  earlier states and the best (checkpoints.py)
RUN/metrics.csv                  step, loss, grad_norm, lr of each step (log.py)
RUN/samples, RUN/loss.png        sheets of samples, the loss curve (loop.py)

Beside them is the export of the kind of run (run.py): the averaged weights in diffusers' format.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from minidiff import machine, ranks
from minidiff.errors import MinidiffError
from minidiff.formats.averages import buffer_name
from minidiff.formats.embedding_files import LEARNED_EMBEDS
from minidiff.formats.folders import check_run
from minidiff.formats.lora_files import LORA_WEIGHTS
from minidiff.formats.run_networks import best_state, read_parts
from minidiff.formats.run_state import (
    BUFFERS,
    RunState,
    best_file,
    damaged_metadata,
    kept_states,
    read_newest,
    read_state,
    state_file,
    step_file,
)
from minidiff.formats.weights import write_safetensors
from minidiff.training import checkpoints
from minidiff.training.config import TrainConfig, config_from_dict
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.points_run import PointsRun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun
from minidiff.training.log import truncate_log
from minidiff.training.parallel.agreement import check_identical
from minidiff.training.run import Run

KINDS: dict[str, type[Run]] = {
    "unet": UNetRun, "vae": VAERun, "text": TextRun, "classifier": ClassifierRun, "points": PointsRun,
    "lora": LoRARun, "textual_inversion": TextualInversionRun,
}  # fmt: skip
WRITTEN = (
    "metrics.csv", "checkpoints.csv", "unet", "vae", "classifier", "mlp", "text_encoder", "tokenizer", "scheduler",
    "model_index.json", "classes.json", "loss.png", "samples", "tensorboard", "prior", LORA_WEIGHTS, LEARNED_EMBEDS,
)  # fmt: skip
R = TypeVar("R", bound=Run)


def new_run(
    kind: type[R], folder: Path, config: TrainConfig, *parts: Any, begin: Callable[[R], object] = lambda run: None
) -> R:
    """A run of that kind at step 0, its state written; parts as its `build` takes them.

    begin: called with the run before anything is written, to set other weights than those drawn, say
    Raises MinidiffError if that would overwrite a run or a pipeline, or if the disk has no room for its checkpoints.
    """
    if ranks.rank() == 0:
        _check_new(folder)
    run = kind.build(folder, config, *parts, rng=np.random.default_rng(config.seed))
    check_disk_space(run, keep=1)
    begin(run)
    if ranks.rank() == 0:
        run.prepare()
    save(run)
    ranks.gather(None)  # the other ranks read what rank 0 has written
    return run


def _check_new(folder: Path) -> None:
    """Raises MinidiffError if a new run there would overwrite a run or a pipeline."""
    there = any(os.path.lexists(path) for path in (state_file(folder), best_file(folder)))
    if there or any(kept_states(folder)):  # a state of step 0 alone: new_run did not finish
        raise MinidiffError(f"{folder}: holds a run already; continue it with --resume, or choose another folder")
    for name in WRITTEN:
        if os.path.lexists(folder / name):
            raise MinidiffError(f"{folder}: holds a {name} that is not of a run; choose another folder")


def open_run(folder: Path, kind: type[R] = Run) -> R:
    """The run of a folder at its last checkpoint; call `roll_back` before it is trained on.

    If its newest state is damaged, the next one that is whole takes its place, and a MinidiffWarning says so.
    Raises MinidiffError for a folder without a run, or with one of another kind, and, naming every file that was
    tried, if no state is whole.
    """
    check_run(folder)
    return read_newest(folder, lambda state: build_run(state, kind))


def open_best(folder: Path) -> Run:
    """The run of a folder at its best checkpoint, to read its weights. Raises MinidiffError if there is none."""
    return build_run(read_state(best_state(folder)))


def last_step(folder: Path) -> int:
    """The step of a run's newest state."""
    return read_state(state_file(folder)).step


def build_run(state: RunState, kind: type[R] = Run) -> R:
    """The run of a state. Raises MinidiffError if it is damaged, WrongKind if it is a run of another kind."""
    if kind is not Run:
        state.check_kind(_name_of(kind))
    folder, run_class = state.path.parent.parent, KINDS[state.kind]
    try:
        config = config_from_dict(state.config)
    except ValueError:
        raise damaged_metadata(state.path) from None
    except MinidiffError as error:
        raise MinidiffError(f"{state.path}: {error}") from None
    parts = read_parts(state, lambda: run_class.parts_of(folder, config, state.metadata))
    run = run_class.build(folder, config, *parts, rng=None)
    optimizer = run.optimizer
    buffers = _buffers(run)
    state.check_buffers(optimizer.p.size, buffers)
    for name, buffer in buffers.items():
        buffer[...] = optimizer.backend.asarray(state.buffers[name].read())
    for name, a in run.arrays().items():
        state.check_array(name, a.shape)
        a[...] = state.buffers[name].read()
    optimizer.step_count, optimizer.skipped = state.step, state.skipped
    run = run if state.path == state_file(folder) else replace(run, restored_from=state.path)
    return cast(R, run)


def _name_of(kind: type[Run]) -> str:
    return next(name for name, run_class in KINDS.items() if run_class is kind)


def roll_back(run: Run) -> None:
    """Cut log and checkpoints back to the run's step, and write its export again.

    Of several ranks, rank 0 does that once all have read the same state. Raises MinidiffError if the log does not reach
    that step.
    """
    _check_identical(run)
    if ranks.rank() == 0:
        truncate_log(run.folder / "metrics.csv", run.step)
        if run.restored_from:
            checkpoints.link(run.restored_from, state_file(run.folder))
        checkpoints.drop_later_states(run.folder, run.step)
        export(run)


def save(run: Run, keep: int = 2) -> None:
    """Save the run's state, then export the averaged weights; of several ranks, rank 0 does.

    keep: number of checkpoints to keep, this one included. Raises MinidiffError if a weight is not finite, or if the
    states of the ranks differ.
    """
    _check_identical(run)
    if not math.isfinite(float(run.optimizer.backend.grad_norm(run.optimizer.p))):
        raise MinidiffError(f"step {run.step}: the weights are not finite; start a new run with a smaller --lr")
    if ranks.rank() > 0:
        return
    to_numpy = run.optimizer.backend.to_numpy
    metadata = {
        "kind": _name_of(type(run)),
        "step": str(run.step),
        "skipped": str(run.optimizer.skipped),
        "config": json.dumps(asdict(run.config)),
        "machine": json.dumps(machine.versions()),
        **run.metadata(),
    }
    buffers = {name: to_numpy(buffer) for name, buffer in _buffers(run).items()} | run.arrays()
    write_safetensors(step_file(run.folder, run.step), buffers, metadata)
    checkpoints.make_newest(run.folder, run.step, keep)
    export(run)


def _check_identical(run: Run) -> None:
    to_numpy = run.optimizer.backend.to_numpy
    check_identical(run.step, (*map(to_numpy, _buffers(run).values()), *run.arrays().values()))


def check_disk_space(run: Run, keep: int) -> int:
    """Bytes of disk that the run's states take. Raises MinidiffError if the disk has not enough space."""
    return checkpoints.check_disk_space(run.folder, len(_buffers(run)) * run.optimizer.p.nbytes, keep)


def _buffers(run: Run) -> dict[str, Any]:
    """The optimiser's flat buffers by their names in a state file."""
    names = map(buffer_name, run.config.further_emas)
    further = zip(names, run.optimizer.emas[1:], strict=True)
    return {name: getattr(run.optimizer, name) for name in BUFFERS} | dict(further)


def export(run: Run, folder: Path | None = None, raw: bool = False) -> None:
    """Write the run's networks in diffusers' format into a folder, None: its own.

    Their weights are the moving average, or, if raw, those of the last step.
    """
    names = [name for name, _ in run.named_parameters()]
    to_numpy = run.optimizer.backend.to_numpy
    weights = (to_numpy(a) for a in run.optimizer.split(run.optimizer.p if raw else run.optimizer.ema))
    run.export(run.folder if folder is None else folder, dict(zip(names, weights, strict=True)))
