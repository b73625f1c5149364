"""New text-conditional runs: the configuration (start.py), a tokenizer, a text encoder and an autoencoder."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data import Dataset, check_images
from minidiff.data.batches import evenly_spaced
from minidiff.data.dataset import slices
from minidiff.data.imaging import to_float
from minidiff.diffusion.schedule import Schedule
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.folders import GIVE, check_exists, find
from minidiff.formats.stable_diffusion import load_text_encoder, load_vae
from minidiff.formats.tokenizer_files import load_tokenizer
from minidiff.models.bpe import learn_merges
from minidiff.models.config import TextEncoderConfig
from minidiff.models.default_configs import default_text_encoder, default_text_unet
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.tokenizer import Tokenizer, vocabulary
from minidiff.models.vae import VAE, Pixels
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.recipes import SCHEDULE
from minidiff.training.start import new_config, schedule_for, sizes_of

MERGES = 2000  # maximum number of a learned tokenizer's merges
LENGTHS = (32, 77)  # minimum and maximum tokens of a text: room for longer prompts than the captions; CLIP's
SCALE_IMAGES = 1024  # images whose latents determine scaling_factor

log = logging.getLogger(__name__)


def start_text(
    out: Path, data: str, given: dict[str, Any], latent: Path | None, text_encoder: Path | None, threads: int | None
) -> tuple[TextRun, Dataset]:
    """A new run on the captioned images of a dataset.

    latent        the folder of an autoencoder or of its run; None: it diffuses pixels
    text_encoder  a folder with text_encoder/ and tokenizer/, which stay frozen; None: both are learned
    """
    check_images(data)
    schedule = schedule_for(given.pop("objective", SCHEDULE.prediction_type), SCHEDULE)
    if not isinstance(schedule, Schedule):
        raise MinidiffError(
            f"--objective {schedule.prediction_type}: with --text choose epsilon, sample or v_prediction"
        )
    sizes = sizes_of(given)
    if text_encoder is not None:
        find(text_encoder, "text")  # raises for another kind
        if text_encoder.is_file():
            raise MinidiffError(f"{text_encoder}: is a file; give the folder that minidiff import makes of it")
    place = None if latent is None else _autoencoder_folder(latent)
    config, dataset = new_config(out, data, given, threads)
    check_captions(data, dataset)
    vae = Pixels(dataset.shape[2]) if place is None else _autoencoder(place, dataset, config)
    if text_encoder is None:
        tokenizer, encoder = _new_text_encoder(dataset.captions)
    else:
        tokenizer, encoder = open_text_encoder(text_encoder, config.backend)
    text_config = encoder.config if isinstance(encoder, TextEncoder) else encoder
    (H, W, _), channels = dataset.shape, vae.config.latent_channels
    network = default_text_unet((H // vae.factor, W // vae.factor, channels), text_config.hidden_size, **sizes)
    return state.new_run(TextRun, out, config, network, schedule, tokenizer, vae, encoder), dataset


def check_captions(data: str, dataset: Dataset) -> None:
    """Raises MinidiffError for a dataset without captions."""
    if not dataset.captions:
        raise MinidiffError(f"{data}: its images have no captions; add a captions.csv, or give other images")


def _new_text_encoder(captions: tuple[str, ...]) -> tuple[Tokenizer, TextEncoderConfig]:
    """A tokenizer learned from the captions, and the configuration of a text encoder to train."""
    merges = learn_merges(captions, MERGES)
    vocab = vocabulary(merges)
    longest = max(len(Tokenizer(vocab, merges).encode(caption)) for caption in captions) + 2
    shortest, most = LENGTHS
    length = min(max(longest, shortest), most)
    log.info(f"Tokenizer: {len(vocab)} tokens, learned from the captions; {length} tokens a text")
    return Tokenizer(vocab, merges, length=length), default_text_encoder(len(vocab), length)


def open_text_encoder(folder: Path, backend: str) -> tuple[Tokenizer, TextEncoder]:
    """The tokenizer and text encoder of a pipeline's folder, or of a folder that holds the files of both.

    Raises MinidiffError if they do not fit together.
    """
    tokens, weights = (folder / name if (folder / name).is_dir() else folder for name in ("tokenizer", "text_encoder"))
    tokenizer, encoder = load_tokenizer(tokens), load_text_encoder(weights, backend)
    unknown = max(tokenizer.vocab.values()) >= encoder.config.vocab_size
    if unknown or tokenizer.length > encoder.config.max_position_embeddings:
        raise MinidiffError(
            f"{folder}: its tokenizer has more tokens, or longer texts, than its text encoder; give a fitting pair"
        )
    return tokenizer, encoder


def open_autoencoder(folder: Path, backend: str) -> VAE:
    """The autoencoder of a run, of a pipeline, or of a folder of its own."""
    return load_vae(_autoencoder_folder(folder), backend)


def _autoencoder_folder(folder: Path) -> Path:
    """The folder of its config.json: in a run, in a pipeline, or this one. Raises MinidiffError if there is none."""
    check_exists(folder, GIVE["vae"])
    place = next((place for place in (folder / "vae", folder) if (place / "config.json").is_file()), None)
    if place is None:
        find(folder, "vae")  # raises for another kind
        raise MinidiffError(f"{folder}: holds no autoencoder; {GIVE['vae']}")
    return place


def _autoencoder(folder: Path, dataset: Dataset, config: TrainConfig) -> VAE:
    """The autoencoder of a folder, with the scale at which the dataset's latents have standard deviation 1."""
    vae = load_vae(folder, config.backend)
    height, width, channels = dataset.shape
    if vae.config.in_channels != channels:
        raise MinidiffError(f"{folder}: is for images of {vae.config.in_channels} channels, these have {channels}")
    if height % vae.factor or width % vae.factor:
        raise MinidiffError(
            f"{folder}: downsamples by {vae.factor}, and {width}x{height} is no multiple of it; choose another --size"
        )
    index = evenly_spaced(len(dataset), SCALE_IMAGES)
    rng, size = np.random.default_rng([config.seed, 0]), config.batch_size // config.accumulate
    with no_grad():
        parts = (to_float(dataset.take(index[part])) for part in slices(len(index), size))
        latents = np.concatenate([vae.encode(x).sample(rng) for x in parts])  # (n, h, w, latent_channels)
    std = max(float(latents.std()), 1e-6)
    log.info(f"Latents: {'x'.join(map(str, latents.shape[1:]))}, of standard deviation {std:.3g}")
    vae.config = replace(vae.config, scaling_factor=1 / std)
    return vae
