"""A run's folder: the one state file that is the truth of it, its log, and what is exported from them.

RUN/training/state.safetensors   weights, their average, moments; step and configuration: replaced by one rename
RUN/training, RUN/checkpoints.csv                  the states before it and the best (kept.py)
RUN/metrics.csv                  step, loss, grad_norm, lr: each step once
RUN/samples, RUN/loss.png        pictures on the way

Beside them lies what the kind of run exports (run.py): the averaged weights as diffusers opens them.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig
from minidiff.models.latent_config import FileConfig
from minidiff.runs import kept, train
from minidiff.runs.checkpoint import check_claim
from minidiff.runs.files import replace_file
from minidiff.runs.folders import check_there, is_run
from minidiff.runs.kept import best_file, state_file
from minidiff.runs.run import DamagedPart, Run
from minidiff.runs.terminal import console
from minidiff.runs.text_run import TextRun
from minidiff.runs.train import StepStats, TrainConfig
from minidiff.runs.unet_run import UNetRun
from minidiff.runs.vae_run import VAERun
from minidiff.runs.weights import open_safetensors, write_safetensors

KINDS: dict[str, type[Run]] = {"unet": UNetRun, "vae": VAERun, "text": TextRun}
BUFFERS = ("p", "ema", "m", "v")
WRITTEN = (
    "metrics.csv", "checkpoints.csv", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json",
    "classes.json", "loss.png", "samples",
)  # fmt: skip
R = TypeVar("R", bound=Run)
HEADER = "step,loss,grad_norm,lr\n"


def new_run(kind: type[R], folder: Path, config: TrainConfig, *parts: Any) -> R:
    """A run of that kind at step 0, its state written; parts as its `build` takes them.

    Raises MinidiffError if that would overwrite a run or a pipeline, or if the disk has no room for its checkpoints.
    """
    there = any(os.path.lexists(path) for path in (state_file(folder), best_file(folder)))
    if there or any(kept.kept(folder)):  # a state of step 0 alone is of one that never began
        raise MinidiffError(f"{folder}: holds a run already; continue it with --resume, or choose another folder")
    for name in WRITTEN:
        if os.path.lexists(folder / name):
            raise MinidiffError(f"{folder}: holds a {name} that is not of a run; choose another folder")
    run = kind.build(folder, config, *parts, rng=np.random.default_rng(config.seed))
    check_room(run, keep=1)
    run.prepare()
    save(run)
    return run


def open_run(folder: Path, kind: type[R] = Run) -> R:
    """The run of a folder at its last checkpoint; `settle` it before it goes on.

    If its state is damaged, the newest one that is kept and whole is taken in its place, in the end the best, and the
    console is told.
    Raises MinidiffError for a folder without a run, or with one of another kind, for a damaged part that lies beside
    the states, and, naming every file that was tried, if no state is whole.
    """
    check_run(folder)
    path, *others = kept.states(folder)
    try:
        return of_kind(_read(folder, path), kind)
    except (WrongKind, DamagedPart):  # of which no other state is free
        raise
    except MinidiffError as error:
        for other in others:
            with suppress(MinidiffError):
                run = of_kind(replace(_read(folder, other), read_from=other), kind)
                console.print(f"{error}. Going back to step {run.step}, {other.name}.")
                return run
        raise _none_whole(error, [other for other in others if other.is_file()]) from None


def _none_whole(error: MinidiffError, others: list[Path]) -> MinidiffError:
    """The error of the newest state, and the names of the others that were tried after it."""
    if not others:
        return error
    tried = ", ".join(map(str, others))
    return MinidiffError(
        f"{error}; no other state is whole: {tried}; restore one of these files, or start a new run in another folder"
    )


def check_run(folder: Path) -> None:
    """Raises MinidiffError unless a run's state is there."""
    check_there(folder, "give a run of minidiff train")
    if not is_run(folder):
        raise MinidiffError(f"{folder}: holds no run (no training/state.safetensors); start one with minidiff train")


class WrongKind(MinidiffError):
    """A run is there, but of another kind of network."""


def of_kind(run: Run, kind: type[R]) -> R:
    """The run, known to be of that kind. Raises WrongKind."""
    if not isinstance(run, kind):
        raise WrongKind(f"{run.folder}: is a run of {_named(type(run))}, not of {_named(kind)}; give another folder")
    return run


def _named(kind: type[Run]) -> str:
    return f"a{'n' * (kind.NAME[0] in 'Aa')} {kind.NAME}"


def open_best(folder: Path) -> Run:
    """The run of a folder at its best checkpoint, to be looked at. Raises MinidiffError if there is none."""
    check_run(folder)
    if not best_file(folder).is_file():
        raise MinidiffError(f"{folder}: holds no training/best.safetensors, which comes with the next checkpoint")
    return _read(folder, best_file(folder))


def open_chosen(folder: Path, choice: str | int, kind: type[R]) -> R:
    """The run of a folder with the weights of a choice in its networks, to sample from.

    choice  "raw", the weights of the last step; "best", the moving average at the best checkpoint; or a step, the
            moving average at its checkpoint
    Raises MinidiffError for a folder without a run, and for a checkpoint that it does not keep.
    """
    if isinstance(choice, int):
        run = _open_step(folder, choice)
    else:
        run = open_best(folder) if choice == "best" else open_run(folder)
    run = of_kind(run, kind)
    if choice != "raw":
        run.optimizer.p[...] = run.optimizer.ema
    return run


def _open_step(folder: Path, step: int) -> Run:
    check_run(folder)
    states = kept.kept(folder)
    if step not in states:
        there = ", ".join(map(str, states)) or "none"
        raise MinidiffError(f"{folder}: keeps no checkpoint of step {step}; choose one that is there: {there}")
    return _read(folder, states[step])


def open_kept(folder: Path, kind: type[R] = Run) -> Iterator[R]:
    """The run at each state that is kept by its step, the oldest first, to be looked at; none where no run is."""
    return (of_kind(_read(folder, path), kind) for path in kept.kept(folder).values())


def saved_step(folder: Path) -> int:
    """The step of a run's last saved state."""
    _, metadata = open_safetensors(state_file(folder))
    return int(metadata["step"])


def _read(folder: Path, path: Path) -> Run:
    """The run of a state file. Raises MinidiffError if it is damaged."""
    tensors, metadata = open_safetensors(path)
    try:
        config = train.config_from_dict(json.loads(metadata["config"]))
        kind = KINDS[metadata.get("kind", "unet")]  # older runs were all of that one
        parts = kind.parts_of(folder, config, metadata)
        step, skipped = int(metadata["step"]), int(metadata.get("skipped", 0))  # older runs skipped none
    except (KeyError, ValueError, RecursionError):
        raise MinidiffError(f"{path}: its metadata is damaged; start a new run") from None
    except DamagedPart:
        raise
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}") from None
    run = _build(kind, folder, config, parts, tensors["p"].size if "p" in tensors else 0, path)
    for name in BUFFERS:
        buffer = getattr(run.optimizer, name)
        if name not in tensors or tensors[name].shape != buffer.shape:
            raise MinidiffError(f"{path}: {name} does not fit the network of its configuration; start a new run")
        buffer[...] = run.optimizer.backend.asarray(tensors[name].read())
    if not 0 <= skipped <= step <= 10**9:
        raise MinidiffError(f"{path}: step {step}, {skipped} skipped: makes no sense; start a new run")
    run.optimizer.step_count, run.optimizer.skipped = step, skipped
    return run


def settle(run: Run) -> None:
    """Take log, kept states and export back to the state's step, wherever the last process ended.

    Raises MinidiffError if the log does not reach that step.
    """
    cut_metrics(run.folder / "metrics.csv", run.step)
    if run.read_from:
        kept.link(run.read_from, state_file(run.folder))
    kept.go_back(run.folder, run.step)
    export(run)


def _build(kind: type[Run], folder: Path, config: TrainConfig, parts: tuple, weights: int, path: Path) -> Run:
    """Of zeros, unless a network is larger than the weights there are, before memory is asked for."""
    for part in parts:
        if isinstance(part, UNetConfig | FileConfig):
            check_claim(part, weights, path)
    return kind.build(folder, config, *parts, rng=None)


def save(run: Run, keep: int = 2) -> None:
    """Replace the state by the present one, then export the averaged weights for the world outside.

    keep: how many of the last states stay, this one included. Raises MinidiffError if a weight is not finite.
    """
    if not math.isfinite(float(run.optimizer.backend.grad_norm(run.optimizer.p))):
        raise MinidiffError(f"step {run.step}: the weights are no longer finite numbers; try a smaller --lr")
    to_numpy = run.optimizer.backend.to_numpy
    metadata = {
        "kind": next(name for name, kind in KINDS.items() if isinstance(run, kind)),
        "step": str(run.step),
        "skipped": str(run.optimizer.skipped),
        "config": json.dumps(asdict(run.config)),
        **run.metadata(),
    }
    buffers = {name: to_numpy(getattr(run.optimizer, name)) for name in BUFFERS}
    write_safetensors(kept.step_file(run.folder, run.step), buffers, metadata)
    kept.keep(run.folder, run.step, keep)
    export(run)


def check_room(run: Run, keep: int) -> int:
    """Bytes of disk that the run's states take. Raises MinidiffError if the disk has no room for them."""
    return kept.check_room(run.folder, len(BUFFERS) * run.optimizer.p.nbytes, keep)


def export(run: Run, folder: Path | None = None, raw: bool = False) -> None:
    """Make a folder, the run's own if no other is given, one that diffusers opens.

    The weights are their moving average, or, if raw, those of the last step.
    """
    names = [name for name, _ in run.named_parameters()]
    to_numpy = run.optimizer.backend.to_numpy
    weights = (to_numpy(a) for a in run.optimizer.split(run.optimizer.p if raw else run.optimizer.ema))
    run.export(run.folder if folder is None else folder, dict(zip(names, weights, strict=True)))


class Metrics:
    """The log of a run, one line a step, appended as steps are done."""

    def __init__(self, path: Path):
        self.path = path
        new = not path.exists()
        self.file = open(path, "a", encoding="ascii", buffering=1)  # a line at a time, for those who watch
        if new:
            self.file.write(HEADER)

    def write(self, stats: StepStats, lr: float) -> None:
        """One step's line; numbers in full precision. Raises MinidiffError as `check` does."""
        self.check()
        self.file.write(f"{stats.step},{stats.loss!r},{stats.grad_norm!r},{lr!r}\n")

    def check(self) -> None:
        """Raises MinidiffError if the file is no longer at its path: a state saved there would have no log."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise MinidiffError(f"{self.path}: was moved, removed or replaced during training; put it back, then --resume")

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns: before a state is saved, not after."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Nothing more will come."""
        self.file.close()


def read_metrics(path: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of a log, as far as it is whole."""
    steps, losses = [], []
    if path.exists():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)[1:]:
            cells = line.split(",")
            if not line.endswith("\n") or len(cells) != 4 or cells[0] != str(len(steps) + 1):
                break
            try:
                losses.append(float(cells[1]))
            except ValueError:
                break
            steps.append(int(cells[0]))
    return steps, losses


def cut_metrics(path: Path, step: int) -> None:
    """Drop every line behind `step`, a torn last one included. Raises MinidiffError if an earlier one is missing."""
    steps, _ = read_metrics(path)
    if len(steps) < step:
        raise MinidiffError(f"{path}: ends at step {len(steps)}, the state is at {step}; restore it or start a new run")
    lines = path.read_bytes().splitlines(keepends=True)[1 : step + 1] if step else []
    replace_file(path, lambda part: part.write_bytes(b"".join([HEADER.encode(), *lines])))


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a run's folder, so that no second process trains in it; made if there is none.

    Raises MinidiffError if one does already, or if the folder cannot be written. Where the block fails, folders
    that were made for it and are still empty go again.
    """
    lock = folder / ".lock"
    try:
        made = [path for path in (lock, folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # whatever it holds, it keeps
    except OSError as error:
        raise MinidiffError(f"{folder}: {error.strerror}; choose a folder that can be written") from None
    with file:
        try:
            _lock(file)
        except OSError:
            raise MinidiffError(f"{folder}: another process is training here; wait for it, or stop it") from None
        try:
            yield
        except BaseException:
            with suppress(OSError):
                for path in made:
                    path.unlink() if path == lock else path.rmdir()
            raise


def _lock(file) -> None:
    """Lock an open file until it is closed; OSError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
