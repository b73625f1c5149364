"""What kind of network a folder holds: decided here, for every command."""

import os
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import read_json
from minidiff.formats import run_state
from minidiff.formats.weights import open_safetensors

INDEX = "model_index.json"
CLASSES = {"UNet2DModel": "unet", "AutoencoderKL": "vae"}  # of config.json, where no index is needed
FOUND = {
    "unet": "a U-Net that takes no prompt",
    "text": "a text-conditional U-Net, which needs a prompt",
    "vae": "an autoencoder, which does not sample",
}
GIVE = {
    "unet": "give a run of minidiff train without --text, or a diffusers folder with a UNet2DModel",
    "text": "give a run of minidiff train --text, or a Stable Diffusion folder",
    "vae": "give a run of minidiff train-vae",
}


def check_there(folder: Path, give: str) -> None:
    """Raises MinidiffError if nothing is at that path; give: what to give instead."""
    if not os.path.exists(folder):
        raise MinidiffError(f"{folder}: no such folder; {give}")


def check_kind(folder: Path, wanted: str) -> None:
    """Raises MinidiffError for a folder that is missing, or known to hold another kind of network than `wanted`."""
    check_there(folder, GIVE[wanted])
    if kind_of(folder) not in (wanted, None):
        raise MinidiffError(f"{described(folder)}; {GIVE[wanted]}")


def described(folder: Path) -> str:
    """A folder of a known kind, and what that kind is, as errors begin."""
    held = "is the run of" if is_run(folder) else "holds"
    return f"{folder}: {held} {FOUND[kind_of(folder) or 'unet']}"


def is_run(folder: Path) -> bool:
    """Whether it holds a run's state."""
    return any(path.is_file() for path in run_state.states(folder))


def check_run(folder: Path) -> None:
    """Raises MinidiffError unless a run's state is there."""
    check_there(folder, "give a run of minidiff train")
    if not is_run(folder):
        raise MinidiffError(f"{folder}: holds no run (no training/state.safetensors); start one with minidiff train")


def kind_of(folder: Path) -> str | None:
    """What a run or a diffusers folder holds: "unet", "text" or "vae"; None where nothing says so.

    A run's state says it, else a pipeline's index, else a network's configuration. Raises MinidiffError for an index
    or a configuration that cannot be read.
    """
    for path in run_state.states(folder):
        try:
            kind = open_safetensors(path)[1].get("kind", "unet")  # older runs were all of that one
            return kind if kind in FOUND else None
        except MinidiffError:  # missing, or damaged: others may not be
            continue
    if (folder / INDEX).is_file():
        return read_json(folder / INDEX, _kind_of_index)
    for path in (folder / "config.json", folder / "unet" / "config.json", folder / "vae" / "config.json"):
        if path.is_file():
            return CLASSES.get(read_json(path, _class_name))
    return None


def _class_name(config: object) -> str:
    return str(config.get("_class_name")) if isinstance(config, dict) else ""


def _kind_of_index(index: object) -> str | None:
    """A pipeline of more than one network counts as "text", whatever these are; its loader says more."""
    names = index if isinstance(index, dict) else {}
    return "text" if "vae" in names else "unet" if "unet" in names else None
