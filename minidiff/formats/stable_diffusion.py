"""A Stable Diffusion folder, as diffusers saves it: tokenizer, text encoder, U-Net, autoencoder and scheduler.

Each part has a folder of its own, and model_index.json says which class of diffusers or transformers each is of.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.nn import Module
from minidiff.errors import MinidiffError
from minidiff.files import read_json, write_json
from minidiff.formats.folders import INDEX, check_kind, kind_of
from minidiff.formats.networks import fill_weights, load_sampler, load_schedule, save_network, save_scheduler
from minidiff.formats.tokenizer_files import load_tokenizer, save_tokenizer
from minidiff.formats.weights import WEIGHTS, find_weights, refuse_pickles
from minidiff.models.latent_config import FileConfig, TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE, Pixels

NONE = [None, None]  # how an index says that a part is not there
PIPELINE = "StableDiffusionPipeline"
PARTS = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}  # a scheduler's class is a matter of load_sampler
TEXT_WEIGHTS = "model.safetensors"  # as transformers calls them
NOTHING: Mapping[str, Mapping[str, np.ndarray]] = {}


N = TypeVar("N", bound=Module)
C = TypeVar("C", bound=FileConfig)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The parts that make a picture of a text, on one backend."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: TextUNet
    vae: VAE | Pixels
    schedule: AnySchedule
    sampler: Sampler

    def to(self, backend: str) -> Self:
        """The same with its networks copied to another backend."""
        return replace(self, **{k: part.to(backend) for k, part in vars(self).items() if isinstance(part, Module)})


def load_pipeline(folder: str | Path, backend: str = "numba") -> Pipeline:
    """The parts of a Stable Diffusion 1.x or 2.x folder; weights of 16 bits are widened once, as they are read.

    Where the index says that there is no autoencoder, the U-Net works on the pictures themselves.

    Raises MinidiffError for a pipeline of another class, a part that is missing or of a class that is not built here,
    pickled weights, and parts that do not fit together.
    """
    folder = Path(folder)
    check_kind(folder, "text")
    if not (folder / INDEX).is_file():
        raise MinidiffError(f"{folder}: has no {INDEX}, so it draws no texts; give a Stable Diffusion folder")
    in_pixels = read_json(folder / INDEX, _check_index)
    pipeline = Pipeline(
        load_tokenizer(folder / "tokenizer"),
        load_text_encoder(folder / "text_encoder", backend),
        unet := load_text_unet(folder / "unet", backend),
        Pixels(unet.config.in_channels) if in_pixels else load_vae(folder / "vae", backend),
        load_schedule(_there(folder / "scheduler")),
        load_sampler(folder / "scheduler"),
    )
    check_fit(folder, pipeline)
    return pipeline


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder holds a network of prompts, or another pipeline of more than one network."""
    return kind_of(Path(folder)) == "text"


def load_text_encoder(folder: str | Path, backend: str = "numba") -> TextEncoder:
    """CLIP's text encoder of a folder with config.json and model.safetensors. Raises MinidiffError as load_pipeline."""
    folder = _there(Path(folder))
    config = _config(folder, TextEncoderConfig)
    stored = {name.removeprefix("text_model."): a for name, a in find_weights(folder, TEXT_WEIGHTS).items()}
    return fill_weights(_made(TextEncoder, config, folder, backend), stored, folder / TEXT_WEIGHTS)


def load_text_unet(folder: str | Path, backend: str = "numba") -> TextUNet:
    """The U-Net of a UNet2DConditionModel folder. Raises MinidiffError as load_pipeline."""
    folder = _there(Path(folder))
    unet = _made(TextUNet, _config(folder, TextUNetConfig), folder, backend)
    return fill_weights(unet, find_weights(folder), folder / WEIGHTS)


def load_vae(folder: str | Path, backend: str = "numba") -> VAE:
    """The autoencoder of an AutoencoderKL folder. Raises MinidiffError as load_pipeline."""
    folder = _there(Path(folder))
    vae = _made(VAE, _config(folder, VAEConfig), folder, backend)
    return fill_weights(vae, find_weights(folder), folder / WEIGHTS)


def save_parts(
    folder: Path, pipeline: Pipeline, names: Iterable[str], weights: Mapping[str, Mapping[str, np.ndarray]] = NOTHING
) -> None:
    """Write these of PARTS, each into its folder, and what ties them together: scheduler/ and model_index.json.

    weights  by a part's name, in place of its own, such as their moving average
    With all of them the folder is one that diffusers' StableDiffusionPipeline.from_pretrained opens; of pictures
    without an autoencoder, if it is told vae=None.
    """
    for name in names:
        part = getattr(pipeline, name)
        if isinstance(part, Tokenizer):
            save_tokenizer(part, folder / name)
            continue
        config, arrays = part.config.to_dict(), weights.get(name) or part.state_dict()
        if isinstance(part, TextEncoder):
            ids, special = pipeline.tokenizer.vocab, pipeline.tokenizer.special
            config |= {f"{token}_token_id": ids[getattr(special, token)] for token in ("bos", "eos", "pad")}
            save_network(folder / name, config, {f"text_model.{k}": a for k, a in arrays.items()}, TEXT_WEIGHTS)
        else:
            save_network(folder / name, config, arrays)
    scheduler = save_scheduler(folder, pipeline.schedule, pipeline.sampler)
    index = {"_class_name": PIPELINE, "requires_safety_checker": False, "scheduler": ["diffusers", scheduler]}
    index |= {part: ["transformers" if "CLIP" in kind else "diffusers", kind] for part, (kind, *_) in PARTS.items()}
    index |= {part: NONE for part in ("safety_checker", "feature_extractor", "image_encoder")}
    index |= {"vae": NONE} if isinstance(pipeline.vae, Pixels) else {}
    write_json(folder / INDEX, index)


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise MinidiffError(f"{folder}: no such folder; the pipeline is not whole, copy it again")
    return folder


def _config(folder: Path, kind: type[C]) -> C:
    if not (folder / "config.json").exists():
        refuse_pickles(folder)
    return read_json(folder / "config.json", kind.of)


def _made(kind: Callable[[Any, None, str], N], config: FileConfig, folder: Path, backend: str) -> N:
    """The network of zeros, which take no memory until weights are written over them."""
    try:
        return kind(config, None, backend)
    except MemoryError:
        raise MinidiffError(f"{folder / 'config.json'}: tells of a network larger than memory; copy it again") from None


def _check_index(index: Any) -> bool:
    """Whether it is an index without an autoencoder. Raises MinidiffError for those of other pipelines."""
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


def check_fit(folder: Path, pipeline: Pipeline) -> None:
    """Raises MinidiffError unless tokens are known to the text encoder, its words to the U-Net, latents to the VAE."""
    tokenizer, encoder, unet, vae = pipeline.tokenizer, pipeline.text_encoder.config, pipeline.unet.config, pipeline.vae
    largest, channels = max(tokenizer.vocab.values()), vae.config.latent_channels
    for wrong, what in (
        (largest >= encoder.vocab_size, f"token {largest}, and the text encoder knows {encoder.vocab_size}"),
        (tokenizer.length > encoder.max_position_embeddings, f"{tokenizer.length} tokens a text, which are too many"),
        (encoder.hidden_size != unet.cross_attention_dim, f"embeddings of {encoder.hidden_size} channels"),
        (unet.in_channels != channels or unet.out_channels != channels, f"latents of {channels} channels"),
        (vae.config.in_channels not in (1, 3), f"pictures of {vae.config.in_channels} channels"),
        (vae.config.in_channels != vae.config.out_channels, "pictures that lose or win channels"),
    ):
        if wrong:
            raise MinidiffError(f"{folder}: its parts do not fit: there are {what}; copy all of it again")
