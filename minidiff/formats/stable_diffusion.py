"""Stable Diffusion folders of diffusers: tokenizer, text encoder, U-Net, autoencoder and scheduler.

Each part has a folder of its own; model_index.json names their classes in diffusers or transformers.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minidiff.engine.nn import Module
from minidiff.errors import MinidiffError
from minidiff.files import read_json, write_json
from minidiff.formats.folders import INDEX, Found
from minidiff.formats.networks import fill_weights, save_network, save_scheduler
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.tokenizer_files import load_tokenizer, save_tokenizer
from minidiff.formats.weights import WEIGHTS, find_weights, refuse_pickles
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.config_rules import FileConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE, Pixels

NONE = [None, None]  # the entry of a missing part in model_index.json
PIPELINE = "StableDiffusionPipeline"
PARTS = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}  # sampler_of checks the scheduler's class
TEXT_WEIGHTS = "model.safetensors"  # its name in transformers
NOTHING: Mapping[str, Mapping[str, np.ndarray]] = {}


N = TypeVar("N", bound=Module)
C = TypeVar("C", bound=FileConfig)


def load_text_parts(found: Found, backend: str) -> dict[str, Any]:
    """Tokenizer, text encoder, U-Net and autoencoder of a Stable Diffusion 1.x or 2.x folder, by TextPipeline's names.

    16-bit weights become float32 as they are read, or where they are used (`fill_weights`). If the index has no
    autoencoder, the U-Net works on pixels. Raises MinidiffError for a pipeline of another class, a part that is missing
    or of an unsupported class, and pickled weights.
    """
    folder = found.folder
    if not (folder / INDEX).is_file():
        raise MinidiffError(f"{folder}: has no {INDEX}; give a Stable Diffusion folder")
    in_pixels = found.json(folder / INDEX).parse(check_index)
    tokenizer = load_tokenizer(folder / "tokenizer")
    text_encoder = load_text_encoder(folder / "text_encoder", backend)
    unet = load_text_unet(folder / "unet", backend)
    vae = Pixels(unet.config.in_channels) if in_pixels else load_vae(folder / "vae", backend)
    existing(folder / "scheduler")
    return {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}


def load_text_encoder(folder: str | Path, backend: str = "numba") -> TextEncoder:
    """CLIP's text encoder of a folder with config.json and model.safetensors.

    Raises MinidiffError as `load_text_parts`.
    """
    folder = existing(Path(folder))
    config = _config(folder, TextEncoderConfig)
    stored = {name.removeprefix("text_model."): a for name, a in find_weights(folder, TEXT_WEIGHTS).items()}
    return fill_weights(_build(TextEncoder, config, folder, backend), stored, folder / TEXT_WEIGHTS, half=True)


def load_text_unet(folder: str | Path, backend: str = "numba") -> TextUNet:
    """The U-Net of a UNet2DConditionModel folder. Raises MinidiffError as `load_text_parts`."""
    folder = existing(Path(folder))
    unet = _build(TextUNet, _config(folder, TextUNetConfig), folder, backend)
    return fill_weights(unet, find_weights(folder), folder / WEIGHTS, half=True)


def load_vae(folder: str | Path, backend: str = "numba") -> VAE:
    """The autoencoder of an AutoencoderKL folder. Raises MinidiffError as `load_text_parts`."""
    folder = existing(Path(folder))
    vae = _build(VAE, _config(folder, VAEConfig), folder, backend)
    return fill_weights(vae, find_weights(folder), folder / WEIGHTS, half=True)


def save_parts(
    folder: Path,
    pipeline: TextPipeline,
    names: Iterable[str],
    weights: Mapping[str, Mapping[str, np.ndarray]] = NOTHING,
) -> None:
    """Write the parts of these names, each into its folder, scheduler/ and model_index.json.

    weights  part -> its weights (such as their moving average), in place of its own
    With all parts StableDiffusionPipeline.from_pretrained of diffusers opens the folder; without an autoencoder, with
    vae=None.
    """
    for name in names:
        part = getattr(pipeline, name)
        if isinstance(part, Tokenizer):
            save_tokenizer(part, folder / name)
            continue
        arrays = weights.get(name) or part.state_dict()
        if isinstance(part, TextEncoder):
            config = text_encoder_json(part.config, pipeline.tokenizer)
            save_network(folder / name, config, {f"text_model.{k}": a for k, a in arrays.items()}, TEXT_WEIGHTS)
        else:
            save_network(folder / name, part.config.to_dict(), arrays)
    scheduler = save_scheduler(folder, pipeline.schedule, pipeline.sampler)
    save_index(folder, scheduler, in_pixels=isinstance(pipeline.vae, Pixels))


def text_encoder_json(config: TextEncoderConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of a text encoder's config.json, with the ids of the special tokens."""
    special = tokenizer.special
    return config.to_dict() | {
        f"{token}_token_id": tokenizer.vocab[getattr(special, token)] for token in ("bos", "eos", "pad")
    }


def save_index(folder: Path, scheduler: str, in_pixels: bool = False) -> None:
    """Write model_index.json; scheduler: the name of its class in diffusers."""
    index = {"_class_name": PIPELINE, "requires_safety_checker": False, "scheduler": ["diffusers", scheduler]}
    index |= {part: ["transformers" if "CLIP" in kind else "diffusers", kind] for part, (kind, *_) in PARTS.items()}
    index |= {part: NONE for part in ("safety_checker", "feature_extractor", "image_encoder")}
    index |= {"vae": NONE} if in_pixels else {}
    write_json(folder / INDEX, index)


def existing(folder: Path) -> Path:
    """The folder of a part. Raises MinidiffError if there is none."""
    if not folder.is_dir():
        raise MinidiffError(f"{folder}: no such folder; the pipeline is not whole, copy it again")
    return folder


def _config(folder: Path, kind: type[C]) -> C:
    if not (folder / "config.json").exists():
        refuse_pickles(folder)
    return read_json(folder / "config.json", kind.of)


def _build(kind: Callable[[Any, None, str], N], config: FileConfig, folder: Path, backend: str) -> N:
    """The network with weights of zero, which take no memory until others are written over them."""
    try:
        return kind(config, None, backend)
    except MemoryError:
        raise MinidiffError(f"{folder / 'config.json'}: implies a network larger than memory; copy it again") from None


def check_index(index: Any) -> bool:
    """Whether the index has no autoencoder. Raises MinidiffError for another class of pipeline or part."""
    if not isinstance(index, dict):
        raise MinidiffError("must be keys and values")
    name = index.get("_class_name")
    if name != PIPELINE:
        raise MinidiffError(f"is of a {name!r:.80}, and only {PIPELINE} (1.x and 2.x) is read here")
    in_pixels = index.get("vae") == NONE
    for part, classes in PARTS.items():
        entry = index.get(part)
        if part == "vae" and in_pixels:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in classes:
            raise MinidiffError(f"{part} is {entry!r:.80}, and only {classes[0]} is read here")
    return in_pixels


def check_fit(pipeline: TextPipeline) -> None:
    """Raises MinidiffError unless vocabulary, text length, embedding width and channels fit together."""
    tokenizer, encoder, unet, vae = pipeline.tokenizer, pipeline.text_encoder.config, pipeline.unet.config, pipeline.vae
    largest, channels = max(tokenizer.vocab.values()), vae.config.latent_channels
    for wrong, what in (
        (largest >= encoder.vocab_size, f"token id {largest} for a text encoder of {encoder.vocab_size} tokens"),
        (
            tokenizer.length > encoder.max_position_embeddings,
            f"{tokenizer.length} tokens a text for {encoder.max_position_embeddings} positions",
        ),
        (encoder.hidden_size != unet.cross_attention_dim, f"embeddings of {encoder.hidden_size} channels"),
        (unet.in_channels != channels or unet.out_channels != channels, f"latents of {channels} channels"),
        (vae.config.in_channels not in (1, 3), f"images of {vae.config.in_channels} channels"),
        (vae.config.in_channels != vae.config.out_channels, "an autoencoder with in_channels other than out_channels"),
    ):
        if wrong:
            raise MinidiffError(f"{pipeline.folder}: its parts do not fit: there are {what}; copy all of it again")
