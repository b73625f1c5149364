"""Networks and schedules as diffusers folders: config.json beside safetensors. Nothing is ever unpickled.

Convolution weights are OIHW in files, as in diffusers, and OHWI in memory: of every array with four axes, axis 1
moves last when it is read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.engine.nn import Module
from minidiff.errors import MinidiffError
from minidiff.files import JSONFile, open_json, read_json, write_json
from minidiff.formats.folders import Found, check_exists, find
from minidiff.formats.schedulers import (
    WITHOUT_ZERO_SNR,
    continuous_to_config,
    sampler_from_config,
    sampler_to_config,
    schedule_from_config,
    schedule_to_config,
)
from minidiff.formats.weights import WEIGHTS, Stored, find_weights, read_arrays, refuse_pickles, write_safetensors
from minidiff.models.classifier import WIDTHS, NoisyClassifier
from minidiff.models.config import ClassifierConfig, TextEncoderConfig, UNetConfig
from minidiff.models.config_rules import FileConfig
from minidiff.models.mlp import MLPConfig
from minidiff.models.unet import UNet

N = TypeVar("N", bound=Module)

KEPT_HALF = 50_000_000  # parameters; from here on the memory that float16 saves is worth the time of widening


def load_unet(folder: str | Path, backend: str = "numba") -> UNet:
    """The U-Net of a UNet2DModel folder, of a pipeline folder (its `unet/`), or of a run.

    Its weights may be in one file or several, in float32, float16 or bfloat16; they become float32, one array at a
    time. Raises MinidiffError for a folder that is missing or none of these, for weights that do not fit config.json,
    and for an unsupported configuration.
    """
    return unet_of(find(Path(folder), "unet"), backend)


def unet_of(found: Found, backend: str) -> UNet:
    """The U-Net of a folder, as `load_unet`."""
    return _load_network(found, "unet", UNetConfig, UNet, backend)


def load_classifier(folder: str | Path, backend: str = "numba") -> NoisyClassifier:
    """The classifier of noisy images of a run of train-classifier, or of its export; its weights are not for training.

    Raises MinidiffError as `load_unet` does.
    """
    found = find(Path(folder), "classifier")
    classifier = _load_network(found, "classifier", ClassifierConfig, NoisyClassifier, backend)
    for p in classifier.parameters():
        p.requires_grad = False  # guidance differentiates by x_t alone
    return classifier


def _load_network(
    found: Found, name: str, config_class: type[FileConfig], network: Callable[..., N], backend: str
) -> N:
    """The network in the component `name` of a folder, or in the folder itself."""
    folder = _component(found.folder, name, "config.json")
    config = found.json(folder / "config.json").parse(config_class.of)
    stored = find_weights(folder)
    check_weight_count(config, sum(a.size for a in stored.values()), folder / "config.json")
    return fill_weights(network(config, None, backend), stored, folder / WEIGHTS)


def fill_weights(network: N, stored: Mapping[str, Stored], path: Path, half: bool = False) -> N:
    """Read a network's weights from its file, one array after the other.

    half: float16 weights of a network of at least KEPT_HALF parameters stay float16, and are then not for training.
    Raises MinidiffError if their names or shapes do not fit, or if they are not finite.
    """
    check_fits(network, stored, path)
    parameters = dict(network.named_parameters())
    half = half and sum(a.size for a in stored.values()) >= KEPT_HALF
    arrays = read_arrays((stored[name] for name in parameters), half)
    for (name, p), a in zip(parameters.items(), arrays, strict=True):
        if not np.isfinite(a).all():
            raise MinidiffError(f"{path}: {name} has values that are not finite; copy or train it again")
        if a.dtype == np.float16 and not p.is_packed:
            p.hold_half(_from_file(a))
        else:
            p.fill(_from_file(a))
    return network


def check_fits(network: Module, stored: Mapping[str, Stored], path: Path) -> None:
    """Raises MinidiffError if the names or shapes of weights in a file are not the network's."""
    try:
        network.check_shapes({name: _memory_shape(a.shape) for name, a in stored.items()})
    except ValueError as error:
        raise MinidiffError(f"{path}: {error}; copy it and its config.json again") from None


def check_weight_count(config: FileConfig, weights: int, path: Path) -> None:
    """Raises MinidiffError if the configuration implies more parameters than `weights`, before they are allocated."""
    if (least := _min_parameters(config)) > weights:
        raise MinidiffError(
            f"{path}: implies at least {least:,} parameters, there are {weights:,}; copy both files again"
        )


def _min_parameters(config: Any) -> int:
    """A lower bound of a network's number of parameters.

    U-Nets and autoencoders: one convolution and one time projection for each block of the down path, the time and class
    embeddings, conv_in and conv_out. Text encoders: token embeddings, attention and feed-forward weights. Classifiers:
    the last layer. MLPs: hidden layers and class embedding.
    """
    if isinstance(config, ClassifierConfig):
        return WIDTHS[-1] * len(config.classes)
    if isinstance(config, MLPConfig):
        return config.hidden_size * (config.num_layers * config.hidden_size + (config.num_class_embeds or 0))
    if isinstance(config, TextEncoderConfig):
        D = config.hidden_size
        return config.vocab_size * D + config.num_hidden_layers * (4 * D**2 + 2 * D * config.intermediate_size)
    widths, temb = config.block_out_channels, getattr(config, "time_embed_dim", 0)  # autoencoders have none
    least = config.layers_per_block * sum(9 * width**2 + temb * width for width in widths)
    least += temb * (temb + (getattr(config, "num_class_embeds", None) or 0))
    return least + 9 * widths[0] * (config.in_channels + config.out_channels)


def save_unet(unet: UNet, folder: str | Path, weights: dict[str, np.ndarray] | None = None) -> None:
    """Write the network as a UNet2DModel folder; `weights` (such as their moving average) in place of its own."""
    save_network(Path(folder), unet.config.to_dict(), unet.state_dict() if weights is None else weights)


def save_network(folder: Path, config: dict[str, Any], weights: Mapping[str, np.ndarray], file: str = WEIGHTS) -> None:
    """Write a folder of config.json and weights, with diffusers' names and axes."""
    write_safetensors(folder / file, {k: _to_file(a) for k, a in weights.items()}, {"format": "pt"})
    write_json(folder / "config.json", config)
    (folder / f"{file}.index.json").unlink(missing_ok=True)  # of a sharded network that was here before


def load_schedule(folder: str | Path, sampler: Sampler | None = None) -> AnySchedule:
    """The schedule of a pipeline folder or run, or of a folder that holds scheduler_config.json itself.

    With a sampler that is as_diffusers: the schedule that the sampler's class in diffusers reads from the file.
    """
    return schedule_of(open_scheduler(folder), sampler)


def load_sampler(folder: str | Path, name: str | None = None) -> Sampler:
    """The sampler of a pipeline folder or run with its settings; or the one called `name` with the shared settings.

    Raises MinidiffError if there is no sampler of that name.
    """
    return sampler_of(open_scheduler(folder), name)


def open_scheduler(folder: str | Path) -> JSONFile:
    """scheduler_config.json of a pipeline folder or run, or of a folder that holds it itself."""
    return open_json(_component(folder, "scheduler", "scheduler_config.json") / "scheduler_config.json")


def schedule_of(scheduler: JSONFile, sampler: Sampler | None = None) -> AnySchedule:
    """The schedule of a scheduler_config.json, as `load_schedule`."""
    knows = sampler is None or not sampler.as_diffusers or sampler.name not in WITHOUT_ZERO_SNR
    return scheduler.parse(lambda config: schedule_from_config(config, knows))


def sampler_of(scheduler: JSONFile, name: str | None = None) -> Sampler:
    """The sampler of a scheduler_config.json, as `load_sampler`."""
    if name is not None:
        Sampler(name)  # raises for an unknown name, without naming the file
    return scheduler.parse(lambda config: sampler_from_config(config, name))


def load_classes(folder: str | Path) -> tuple[str, ...]:
    """The class names of a class-conditional run; () if the folder has no classes.json."""
    path = Path(folder) / "classes.json"
    return read_json(path, _names) if path.is_file() else ()


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(name, str) and name for name in values):
        raise MinidiffError("must be a list of names")
    return tuple(values)


def save_pipeline(
    folder: str | Path, schedule: AnySchedule, sampler: Sampler | None = None, classes: tuple[str, ...] = ()
) -> None:
    """Write scheduler/ and model_index.json; with `unet/` beside them DDPMPipeline.from_pretrained opens the folder.

    No index is written for a class-conditional U-Net, which gets classes.json, and for continuous-time schedules
    (EDM, flow): DDPMPipeline samples from neither.
    """
    scheduler = save_scheduler(folder, schedule, sampler)
    if classes:
        write_json(Path(folder) / "classes.json", list(classes))
    if classes or not isinstance(schedule, Schedule):
        return
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler],
    }
    write_json(Path(folder) / "model_index.json", index)


def save_scheduler(folder: str | Path, schedule: AnySchedule, sampler: Sampler | None = None) -> str:
    """Write scheduler/; returns the name of its class in diffusers."""
    sampler = sampler or Sampler()
    if not isinstance(schedule, Schedule):
        scheduler = continuous_to_config(schedule, sampler.name)
    else:
        scheduler = schedule_to_config(schedule) | sampler_to_config(sampler)
    write_json(Path(folder) / "scheduler" / "scheduler_config.json", scheduler)
    return scheduler["_class_name"]


def _component(folder: str | Path, name: str, file: str) -> Path:
    folder = Path(folder)
    check_exists(folder, "give a run or a diffusers folder")
    for place in (folder / name, folder):
        if (place / file).is_file():
            return place
    refuse_pickles(folder)
    raise MinidiffError(f"{folder}: no {name}/{file} and no {file} here; give a run or a diffusers folder")


def _memory_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def file_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of an array of this shape in memory."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) == 4 else shape


def _from_file(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a  # OIHW -> OHWI


def _to_file(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 4 else a  # OHWI -> OIHW
