"""The state files of a run: where they lie, and what one holds.

RUN/training/state.safetensors          the newest state, from which the run resumes
RUN/training/state-000500.safetensors   the state of one step; the newest has this name too
RUN/training/best.safetensors           the state with the lowest validation loss, a second name likewise

A state file holds four flat float32 arrays (P,), all parameters one after the other in the order of the optimiser:
"p" the weights, "ema" their moving average, "m" and "v" the optimiser's moments; and one for every further moving
average, such as "ema_500" (averages.py). A run with importance sampling of t has its history of losses beside them,
"losses" (T, 10). Step and configuration are the file's metadata.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minidiff.errors import MinidiffError, MinidiffWarning
from minidiff.formats.weights import Stored, open_safetensors

BUFFERS = ("p", "ema", "m", "v")
# What a run trains.
KINDS = {
    "unet": "a U-Net", "vae": "an autoencoder", "text": "a text U-Net", "classifier": "a classifier of noisy images",
    "points": "an MLP on points", "lora": "a LoRA",
    "textual_inversion": "textual inversion",
}  # fmt: skip
MAX_STEP = 10**9

T = TypeVar("T")


def state_file(folder: Path) -> Path:
    """The path of a run's newest state."""
    return folder / "training" / "state.safetensors"


def step_file(folder: Path, step: int) -> Path:
    """The path of the state of a step."""
    return folder / "training" / f"state-{step:06d}.safetensors"


def best_file(folder: Path) -> Path:
    """The path of the state with the lowest validation loss."""
    return folder / "training" / "best.safetensors"


def kept_states(folder: Path) -> dict[int, Path]:
    """Step -> path of the checkpoints that a run keeps, the oldest first."""
    found = (
        (re.fullmatch(r"state-(\d{6,10})\.safetensors", path.name), path) for path in (folder / "training").glob("*")
    )
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def states(folder: Path) -> list[Path]:
    """The paths of a run's states, the newest first, the best last; not all need exist."""
    return [state_file(folder), *list(kept_states(folder).values())[::-1], best_file(folder)]


class WrongKind(MinidiffError):
    """The folder holds a network of another kind, `kind`: a key of KINDS."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class NoAverage(MinidiffError):
    """A run's states hold no moving average of the half-life that is wanted, and none can be combined."""


class DamagedPart(MinidiffError):
    """A part that a run does not train, and keeps beside its states, is missing, damaged or another one."""


@dataclass(frozen=True)
class RunState:
    """What a state file holds; the arrays are still on disk.

    kind      a key of KINDS
    skipped   consecutive steps up to `step` whose gradient was not finite
    config    the run's configuration, as JSON has it
    metadata  strings by name: the configurations of networks and schedule among them
    buffers   where each of BUFFERS, every further average and `Run.arrays` lies, as far as the file has it
    """

    path: Path
    kind: str
    step: int
    skipped: int
    config: dict[str, Any]
    metadata: Mapping[str, str]
    buffers: Mapping[str, Stored]

    @property
    def size(self) -> int:
        """The number of parameters, 0 if the file has none."""
        return self.buffers["p"].size if "p" in self.buffers else 0

    def check_kind(self, wanted: str) -> None:
        """Raises WrongKind if it is the state of a run of another kind than `wanted`, a key of KINDS."""
        if self.kind != wanted:
            folder = self.path.parent.parent
            message = f"{folder}: is a run of {KINDS[self.kind]}, not of {KINDS[wanted]}; give another folder"
            raise WrongKind(message, self.kind)

    def check_buffers(self, size: int, names: Iterable[str] = BUFFERS) -> None:
        """Raises MinidiffError unless every buffer of these names has the shape (size,)."""
        for name in names:
            self.check_array(name, (size,))

    def check_array(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises MinidiffError unless the state has an array of that name and shape."""
        if name not in self.buffers or self.buffers[name].shape != shape:
            raise MinidiffError(f"{self.path}: {name} does not fit the network of its configuration; start a new run")


def read_state(path: Path) -> RunState:
    """The state in a file; its arrays are not read yet. Raises MinidiffError if it is damaged."""
    buffers, metadata = open_safetensors(path)
    try:
        config = json.loads(metadata["config"])
        kind = metadata.get("kind", "unet")  # runs from before the kinds train a U-Net
        step, skipped = int(metadata["step"]), int(metadata.get("skipped", 0))  # older runs do not skip steps
    except (KeyError, ValueError, RecursionError):
        raise damaged_metadata(path) from None
    if kind not in KINDS or not isinstance(config, dict):
        raise damaged_metadata(path)
    if not 0 <= skipped <= step <= MAX_STEP:
        raise MinidiffError(
            f"{path}: step {step} with {skipped} skipped steps: must be 0 <= skipped <= step <= {MAX_STEP}; "
            "start a new run"
        )
    return RunState(path, kind, step, skipped, config, metadata, buffers)


def damaged_metadata(path: Path) -> MinidiffError:
    """The error of a state file whose metadata cannot be read."""
    return MinidiffError(f"{path}: its metadata is damaged; start a new run")


def saved_step(path: Path) -> int | None:
    """The step of a state file; None if it is missing or damaged."""
    try:
        return int(open_safetensors(path)[1]["step"])
    except (MinidiffError, KeyError, ValueError):
        return None


def read_newest(folder: Path, build: Callable[[RunState], T], opened: RunState | None = None) -> T:
    """build(state) of a run's newest state, or, if that is damaged, of the next one that is whole, the best last.

    opened  a state of the run that is not read again
    A MinidiffWarning names the state that is used in the place of a damaged one. Raises WrongKind, DamagedPart and
    NoAverage as `build` does, and MinidiffError, with all files that were tried, if no state is whole.
    """
    path, *others = states(folder)
    try:
        return build(opened if opened and opened.path == path else read_state(path))
    except (WrongKind, DamagedPart, NoAverage):  # no other state is free of that
        raise
    except MinidiffError as error:
        for other in others:
            with suppress(MinidiffError):
                state = read_state(other)
                built = build(state)
                warnings.warn(f"{error}. Going back to step {state.step}, {other.name}.", MinidiffWarning, stacklevel=3)
                return built
        raise _none_whole(error, [other for other in others if other.is_file()]) from None


def _none_whole(error: MinidiffError, others: list[Path]) -> MinidiffError:
    """The error of the newest state, with the paths of the others that were tried after it."""
    if not others:
        return error
    tried = ", ".join(map(str, others))
    return MinidiffError(
        f"{error}; no other state is whole: {tried}; restore one of these files, or start a new run in another folder"
    )
