"""Networks and schedules as diffusers folders: config.json beside safetensors. Nothing is ever unpickled.

In files arrays stand as diffusers has them, NCHW and OIHW; in memory as NHWC and OHWI. Of every array with
four axes, axis 1 goes last on the way in.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from minidiff.diffusion.sampler import Sampler, sampler_from_config, sampler_to_config
from minidiff.diffusion.schedule import Schedule, schedule_from_config, schedule_to_config
from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig, config_from_dict, config_to_dict
from minidiff.models.unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
LARGEST_JSON = 16 << 20  # bytes

T = TypeVar("T")


def load_unet(folder: str | Path, backend: str = "numba") -> UNet:
    """The network of a UNet2DModel folder, of a pipeline folder (its `unet/`), or of a run.

    Raises MinidiffError for a folder that is none of these, for weights that do not fit their config.json,
    and for a configuration that is not built here.
    """
    folder = _component(folder, "unet", "config.json")
    config = read_json(folder / "config.json", config_from_dict)
    tensors, _ = read_safetensors(folder / WEIGHTS)
    check_claim(config, sum(a.size for a in tensors.values()), folder / "config.json")
    unet = UNet(config, np.random.default_rng(0), backend)
    try:
        unet.load_state_dict({name: _from_file(a) for name, a in tensors.items()})
    except ValueError as error:
        raise MinidiffError(f"{folder / WEIGHTS}: {error}") from None
    return unet


def check_claim(config: UNetConfig, weights: int, path: Path) -> None:
    """Raises MinidiffError if the network would be larger than the weights there are, before memory is asked for."""
    least = config.layers_per_block * sum(9 * width**2 for width in config.block_out_channels)
    least += config.time_embed_dim * (config.num_class_embeds or 0)
    if least > weights:
        raise MinidiffError(f"{path}: tells of {least} weights or more, but there are {weights}; copy both files again")


def save_unet(unet: UNet, folder: str | Path, weights: dict[str, np.ndarray] | None = None) -> None:
    """Write the network as a UNet2DModel folder; `weights` in place of its own, such as their moving average."""
    folder = Path(folder)
    weights = unet.state_dict() if weights is None else weights
    write_safetensors(folder / WEIGHTS, {k: _to_file(a) for k, a in weights.items()}, {"format": "pt"})
    write_json(folder / "config.json", config_to_dict(unet.config))


def load_schedule(folder: str | Path) -> Schedule:
    """The schedule of a pipeline folder or run, or of a folder that holds scheduler_config.json itself."""
    folder = _component(folder, "scheduler", "scheduler_config.json")
    return read_json(folder / "scheduler_config.json", schedule_from_config)


def load_sampler(folder: str | Path, name: str | None = None) -> Sampler:
    """The sampler of a pipeline folder or run, with its settings; or another, with those that the two share."""
    folder = _component(folder, "scheduler", "scheduler_config.json")
    return read_json(folder / "scheduler_config.json", lambda config: sampler_from_config(config, name))


def save_pipeline(folder: str | Path, schedule: Schedule, sampler: Sampler | None = None) -> None:
    """Write scheduler/ and model_index.json: with `unet/` beside them, what DDPMPipeline.from_pretrained opens."""
    scheduler = schedule_to_config(schedule) | sampler_to_config(sampler or Sampler())
    write_json(Path(folder) / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    write_json(Path(folder) / "model_index.json", index)


def _component(folder: str | Path, name: str, file: str) -> Path:
    folder = Path(folder)
    for place in (folder / name, folder):
        if (place / file).is_file():
            return place
    raise MinidiffError(f"{folder}: no {name}/{file} and no {file} here; give a run or a diffusers folder")


def _from_file(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if a.ndim == 4 else a  # OIHW -> OHWI


def _to_file(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 4 else a  # OHWI -> OIHW


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of a JSON file. Raises MinidiffError, with the file's name, if that is nothing."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise MinidiffError("larger than any configuration; is it the right file?")
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MinidiffError(f"{path}: {error.strerror}; copy or write it again") from None
    except (ValueError, RecursionError):
        raise MinidiffError(f"{path}: not JSON; copy or write it again") from None
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole or not at all."""
    replace_file(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All float32 arrays of a file by name, and its metadata. Raises MinidiffError if it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            tensors = {}
            for name in file.keys():
                if (kind := file.get_slice(name).get_dtype()) != "F32":
                    raise MinidiffError(f"{path}: {name} is {kind}, and only F32 is read; save it in float32")
                tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise MinidiffError(f"{path}: no such file; copy or train it again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise MinidiffError(f"{path}: damaged or not safetensors ({error}); copy or train it again") from None


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays and metadata as a whole or not at all."""
    data = safetensors_bytes(tensors, metadata)  # its save_file would leave a file of its own behind where it is killed
    replace_file(path, lambda part: part.write_bytes(data))


def write_npz(path: Path, images: np.ndarray) -> None:
    """Write pictures (N, H, W, C) uint8 as arr_0 of a NumPy archive, as a whole or not at all."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # a name would be given a suffix
            np.savez(file, images)

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, wait until it is on the disk, then rename it: all or nothing.

    Raises MinidiffError if that fails; then `path` is what it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:  # Ctrl-C too must leave nothing half-written behind
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be written ({error}); make room, or choose another folder") from None
