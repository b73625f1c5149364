"""Reading of single-file checkpoints: what lies where for each network, and what the file does not say."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from minidiff.engine.nn import first_few
from minidiff.errors import MinidiffError, MinidiffWarning
from minidiff.files import JSONFile, open_json
from minidiff.formats.networks import check_weight_count, file_shape, fill_weights, open_scheduler
from minidiff.formats.single_file.configs import check_kind, infer_configs, prediction_in, scheduler_config
from minidiff.formats.single_file.keys import AUTOENCODER, CLIP, OPEN_CLIP, UNET, Network, places, shape_in_file
from minidiff.formats.stable_diffusion import text_encoder_json
from minidiff.formats.tokenizer_files import clip_tokenizer, load_tokenizer
from minidiff.formats.weights import Stored, open_safetensors, refuse_pickles
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.config_rules import FileConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import EOS, Tokenizer
from minidiff.models.vae import VAE

NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (TextUNet, TextUNetConfig), "vae": (VAE, VAEConfig), "text_encoder": (TextEncoder, TextEncoderConfig),
}  # fmt: skip
# Of training: moving averages, tables of the schedule, the autoencoder's discriminator. Of CLIP: what does not reach
# the U-Net; of OpenCLIP's 24 layers that is the last, for Stable Diffusion 2.x takes the output of the last but one.
LEFT_OUT = re.compile(
    r"(first_stage_model\.)?model_ema\..*|first_stage_model\.loss\..*|.*position_ids"
    r"|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|scale_factor"
    r"|cond_stage_model\.(model\.|transformer\.)?(text_projection|logit_scale)(\.weight)?"
    r"|cond_stage_model\.model\.(attn_mask|transformer\.resblocks\.23\..*)"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """What a single-file checkpoint does not hold.

    configs    network -> its configuration
    values     network -> the contents of its config.json
    scheduler  scheduler_config.json
    """

    configs: Mapping[str, Any]
    values: Mapping[str, dict[str, Any]]
    tokenizer: Tokenizer
    scheduler: JSONFile


@dataclass(frozen=True, eq=False, kw_only=True)
class SingleFile(Settings):
    """A single-file checkpoint of which the header was read.

    version   of Stable Diffusion: "1.x", or with OpenCLIP's text encoder "2.x"
    networks  by their names in a pipeline, with weights of zero
    stored    network -> parameter -> where it lies
    left_out  names of arrays that are not read
    """

    version: str
    networks: Mapping[str, Network]
    stored: Mapping[str, Mapping[str, Stored]]
    left_out: list[str]


def open_single_file(
    path: Path, config: Path | None = None, prediction_type: str | None = None, backend: str = "numpy"
) -> SingleFile:
    """The header of a checkpoint, compared with the networks that it is of.

    config           a Stable Diffusion folder for configurations, tokenizer and scheduler; None: inferred, with CLIP's
                     vocabulary
    prediction_type  None: the folder's, or the one in the metadata, or "epsilon"; for a file of Stable Diffusion 2.x
                     without any a MinidiffWarning says so, and another that arrays of unknown names are left out
    Raises MinidiffError for a pickle, a file that is damaged or of another kind, arrays that are missing, have another
    shape, or are not of the networks, which are counted and named, and for sizes that are not supported.
    """
    refuse_pickles(path)
    left_out: list[str] = []
    arrays, metadata = open_safetensors(path, lambda name: _is_left_out(name, left_out))
    arrays = {_full_name(name): a for name, a in arrays.items()}
    known = prediction_type or prediction_in(metadata)
    try:
        shapes = {name: a.shape for name, a in arrays.items()}
        check_kind(shapes)
        settings = _inferred(path, shapes, known or "epsilon") if config is None else _given(config, prediction_type)
        networks = {name: _network(name, settings.configs[name], arrays, backend) for name in NETWORKS}
        surplus = _surplus(networks, arrays)
        stored = {name: _located(network, arrays) for name, network in networks.items()}
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}") from None
    version = "2.x" if any(name.startswith(OPEN_CLIP) for name in arrays) else "1.x"
    if surplus:
        _warn(f"{path}: left out {len(surplus)} of {len(arrays)} arrays, of unknown names: {first_few(surplus)}")
    if version == "2.x" and config is None and known is None:
        _warn(
            f"{path}: Stable Diffusion 2.x, and nothing in it says whether it predicts eps or v; eps is assumed: "
            "if the images are noise, use minidiff import with --prediction v_prediction"
        )
    left_out += surplus
    return SingleFile(version=version, networks=networks, stored=stored, left_out=left_out, **vars(settings))


def _warn(message: str) -> None:
    warnings.warn(message, MinidiffWarning, stacklevel=3)


def load_single_file(path: Path, backend: str) -> dict[str, Any]:
    """Networks, tokenizer and "scheduler", the scheduler_config.json, of a checkpoint, by their names in a pipeline.

    16-bit weights become float32 as they are read, or where they are used (`fill_weights`). Raises MinidiffError as
    `open_single_file` does.
    """
    file = open_single_file(path, backend=backend)
    filled = {
        name: fill_weights(network, file.stored[name], path, half=True) for name, network in file.networks.items()
    }
    return {"tokenizer": file.tokenizer, "scheduler": file.scheduler, **filled}


def _inferred(path: Path, shapes: Mapping[str, tuple[int, ...]], prediction_type: str) -> Settings:
    configs = infer_configs(shapes, prediction_type)
    open_clip = any(name.startswith(OPEN_CLIP) for name in shapes)
    tokenizer = clip_tokenizer(pad="!" if open_clip else EOS)  # OpenCLIP pads with token 0
    values = {name: config.to_dict() for name, config in configs.items()}
    values["text_encoder"] = text_encoder_json(configs["text_encoder"], tokenizer)
    scheduler = JSONFile(path, scheduler_config(prediction_type))
    return Settings(configs=configs, values=values, tokenizer=tokenizer, scheduler=scheduler)


def _given(folder: Path, prediction_type: str | None) -> Settings:
    """Those in a folder, but with another prediction type if one is given."""
    files = {name: open_json(folder / name / "config.json") for name in NETWORKS}
    configs = {name: files[name].parse(config_class.of) for name, (_, config_class) in NETWORKS.items()}
    scheduler = open_scheduler(folder)
    if prediction_type is not None and isinstance(scheduler.value, dict):
        scheduler = replace(scheduler, value=scheduler.value | {"prediction_type": prediction_type})
    values = {name: file.value for name, file in files.items()}
    return Settings(configs=configs, values=values, tokenizer=load_tokenizer(folder / "tokenizer"), scheduler=scheduler)


def _is_left_out(name: str, left_out: list[str]) -> bool:
    """Whether an array is known not to be needed; its name is then added to `left_out`."""
    known = LEFT_OUT.fullmatch(name) is not None
    left_out += [name] * known
    return known


def _full_name(name: str) -> str:
    """The name of an array; some files leave out text_model."""
    rest = name.removeprefix(CLIP.removesuffix("text_model."))
    return name if rest == name or rest.startswith("text_model.") else f"{CLIP}{rest}"


def _network(name: str, config: FileConfig, arrays: Mapping[str, Stored], backend: str) -> Network:
    """A network of zeros, which take no memory until weights are written over them."""
    check_weight_count(config, sum(a.size for a in arrays.values()), Path(f"the {name}'s configuration"))
    return NETWORKS[name][0](config, None, backend)


def _surplus(networks: Mapping[str, Network], arrays: Mapping[str, Stored]) -> list[str]:
    """The names of surplus arrays. Raises MinidiffError if some are missing, or if the surplus is of the networks."""
    wanted = [key for network in networks.values() for key in places(network)]
    if missing := [key for key in wanted if key not in arrays]:
        raise MinidiffError(f"{len(missing)} of {len(wanted)} arrays missing: {first_few(missing)}; copy it again")
    surplus = sorted(arrays.keys() - set(wanted))
    if within := [name for name in surplus if name.startswith((UNET, AUTOENCODER, CLIP, OPEN_CLIP))]:
        raise MinidiffError(
            f"{len(within)} of {len(arrays)} arrays are of no layer of Stable Diffusion: {first_few(within)}; "
            "give a checkpoint of 1.x or 2.x"
        )
    return surplus


def _located(network: Network, arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Where each parameter lies. Raises MinidiffError if the shapes of arrays differ."""
    shapes = {name: file_shape(p.shape) for name, p in network.named_parameters()}
    located: dict[str, Stored] = {}
    differing = []
    for key, names in places(network).items():
        first, *rest = shapes[names[0]]
        whole = (first * len(names), *rest)
        if arrays[key].shape not in (whole, shape_in_file(key, whole)):
            differing.append(f"{key} {arrays[key].shape}, not {shape_in_file(key, whole)}")
            continue
        parts = ((name, i * prod(shapes[name])) for i, name in enumerate(names))
        located |= {name: arrays[key].part(start, shapes[name]) for name, start in parts}
    if differing:
        raise MinidiffError(
            f"{len(differing)} of {len(arrays)} arrays have another shape: {first_few(differing)}; copy it again"
        )
    return located
