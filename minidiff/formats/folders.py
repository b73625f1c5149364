"""The kind of network that a folder holds."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import JSONFile, open_json
from minidiff.formats import run_state
from minidiff.formats.run_state import RunState, WrongKind
from minidiff.formats.weights import refuse_pickles

INDEX = "model_index.json"
CLASSES = {
    "UNet2DModel": "unet",
    "AutoencoderKL": "vae",
    "NoisyClassifier": "classifier",
    "MLP": "points",
}  # fmt: skip  _class_name of config.json -> kind
FOUND = {
    "unet": "a U-Net that takes no prompt",
    "text": "a text-conditional U-Net, which needs a prompt",
    "vae": "an autoencoder, which does not sample",
    "classifier": "a classifier of noisy images, which does not sample",
    "points": "an MLP on points, which has no images",
    "lora": "a LoRA, which samples with its model: minidiff sample MODEL --lora LORA",
    "textual_inversion": "a textual inversion, which samples with its model: minidiff sample MODEL --embedding RUN",
}
GIVE = {
    "unet": "give a run of minidiff train on images without --text, or a diffusers folder with a UNet2DModel",
    "text": "give a run of minidiff train --text, or a Stable Diffusion folder or file",
    "vae": "give a run of minidiff train-vae",
    "classifier": "give a run of minidiff train-classifier",
    "points": "give a run of minidiff train on points, such as swiss_roll",
    "lora": "give a run of minidiff tune",
    "textual_inversion": "give a run of minidiff tune --method textual-inversion",
}


@dataclass(frozen=True)
class Found:
    """What a folder holds. The file that tells it is here, so that nothing opens it again.

    kind    a key of FOUND; None if it is unknown
    state   of a run: its newest state that is not damaged
    index   model_index.json
    config  config.json of the network
    """

    folder: Path
    kind: str | None
    state: RunState | None = None
    index: JSONFile | None = None
    config: JSONFile | None = None

    @property
    def step(self) -> int | None:
        """Of a run: the step of its newest state."""
        return self.state.step if self.state else None

    def json(self, path: Path) -> JSONFile:
        """A JSON file of the folder: the one that is here, or else read now."""
        return next((file for file in (self.index, self.config) if file and file.path == path), None) or open_json(path)


def check_exists(folder: Path, give: str) -> None:
    """Raises MinidiffError if the folder does not exist; give: the remedy, "give ...", in its message."""
    if not os.path.exists(folder):
        raise MinidiffError(f"{folder}: no such folder; {give}")


def check_kind(folder: Path, kind: str | None, *wanted: str) -> None:
    """Raises WrongKind for a folder that holds another kind of network than those wanted; None passes."""
    if kind not in (*wanted, None):
        raise WrongKind(f"{describe(folder, kind)}; {GIVE[wanted[0]]}", kind)


def describe(folder: Path, kind: str) -> str:
    """The folder and its kind in words, the beginning of an error."""
    return f"{folder}: {'is the run of' if is_run(folder) else 'holds'} {FOUND[kind]}"


def find(folder: Path, *wanted: str) -> Found:
    """What a folder holds: by a run's newest state, or else model_index.json, or else config.json.

    A safetensors file counts as a single-file checkpoint, which holds a text-conditional U-Net. Raises MinidiffError if
    the folder does not exist, if it holds another kind of network than those wanted, if one of the JSON files cannot be
    read, and for a pickle.
    """
    check_exists(folder, GIVE[wanted[0]])
    if folder.is_file():
        refuse_pickles(folder)
    is_single_file = folder.suffix == ".safetensors" and folder.is_file()
    found = Found(folder, "text") if is_single_file else _found_in_states(folder) or _found_in_json(folder)
    check_kind(folder, found.kind, *wanted)
    return found


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run's state."""
    return any(path.is_file() for path in run_state.states(folder))


def check_run(folder: Path) -> None:
    """Raises MinidiffError unless a run's state is there."""
    check_exists(folder, "give a run of minidiff train")
    if not is_run(folder):
        raise MinidiffError(f"{folder}: holds no run (no training/state.safetensors); start one with minidiff train")


def _found_in_states(folder: Path) -> Found | None:
    """By the newest state of a run that is not damaged; None if there is none."""
    for path in run_state.states(folder):
        with suppress(MinidiffError):  # missing or damaged: try the next
            state = run_state.read_state(path)
            return Found(folder, state.kind, state)
    return None


def _found_in_json(folder: Path) -> Found:
    if (folder / INDEX).is_file():
        index = open_json(folder / INDEX)
        return Found(folder, _kind_of_index(index.value), index=index)
    for place in (folder, *(folder / name for name in ("unet", "vae", "classifier", "mlp"))):
        if (path := place / "config.json").is_file():
            config = open_json(path)
            return Found(folder, CLASSES.get(_class_name(config.value)), config=config)
    return Found(folder, None)


def _class_name(config: object) -> str:
    return str(config.get("_class_name")) if isinstance(config, dict) else ""


def _kind_of_index(index: object) -> str | None:
    """A pipeline with an autoencoder counts as "text"; open_pipeline checks its class."""
    names = index if isinstance(index, dict) else {}
    return "text" if "vae" in names else "unet" if "unet" in names else None
