"""The kind of network that a folder holds."""

import os
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import read_json
from minidiff.formats import run_state
from minidiff.formats.weights import open_safetensors

INDEX = "model_index.json"
CLASSES = {"UNet2DModel": "unet", "AutoencoderKL": "vae", "MLP": "points"}  # _class_name of config.json -> kind
FOUND = {
    "unet": "a U-Net that takes no prompt",
    "text": "a text-conditional U-Net, which needs a prompt",
    "vae": "an autoencoder, which does not sample",
    "points": "an MLP on points, which has no images",
}
GIVE = {
    "unet": "give a run of minidiff train on images without --text, or a diffusers folder with a UNet2DModel",
    "text": "give a run of minidiff train --text, or a Stable Diffusion folder",
    "vae": "give a run of minidiff train-vae",
    "points": "give a run of minidiff train on points, such as swiss_roll",
}


def check_exists(folder: Path, give: str) -> None:
    """Raises MinidiffError if the folder does not exist; give: the remedy, "give ...", in its message."""
    if not os.path.exists(folder):
        raise MinidiffError(f"{folder}: no such folder; {give}")


def check_kind(folder: Path, wanted: str) -> None:
    """Raises MinidiffError for a folder that does not exist, or holds another kind of network than `wanted`."""
    check_exists(folder, GIVE[wanted])
    if kind_of(folder) not in (wanted, None):
        raise MinidiffError(f"{describe(folder)}; {GIVE[wanted]}")


def describe(folder: Path) -> str:
    """The folder and its kind in words, the beginning of an error."""
    held = "is the run of" if is_run(folder) else "holds"
    return f"{folder}: {held} {FOUND[kind_of(folder) or 'unet']}"


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run's state."""
    return any(path.is_file() for path in run_state.states(folder))


def check_run(folder: Path) -> None:
    """Raises MinidiffError unless a run's state is there."""
    check_exists(folder, "give a run of minidiff train")
    if not is_run(folder):
        raise MinidiffError(f"{folder}: holds no run (no training/state.safetensors); start one with minidiff train")


def kind_of(folder: Path) -> str | None:
    """The kind of a run or a diffusers folder: "unet", "text", "vae" or "points"; None if it is unknown.

    It is read from a run's state, else from model_index.json, else from config.json. Raises MinidiffError if one of
    the last two cannot be read.
    """
    for path in run_state.states(folder):
        try:
            kind = open_safetensors(path)[1].get("kind", "unet")  # states of older runs lack it
            return kind if kind in FOUND else None
        except MinidiffError:  # missing or damaged: try the next
            continue
    if (folder / INDEX).is_file():
        return read_json(folder / INDEX, _kind_of_index)
    for place in (folder, folder / "unet", folder / "vae", folder / "mlp"):
        if (path := place / "config.json").is_file():
            return CLASSES.get(read_json(path, _class_name))
    return None


def _class_name(config: object) -> str:
    return str(config.get("_class_name")) if isinstance(config, dict) else ""


def _kind_of_index(index: object) -> str | None:
    """A pipeline with an autoencoder counts as "text"; load_pipeline checks its class."""
    names = index if isinstance(index, dict) else {}
    return "text" if "vae" in names else "unet" if "unet" in names else None
