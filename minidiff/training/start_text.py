"""How a run on captioned pictures begins: as begin.py, with a tokenizer, a text encoder, an autoencoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data import Dataset
from minidiff.data.batches import evenly_spaced
from minidiff.data.imaging import to_float
from minidiff.diffusion.schedule import Schedule
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.folders import GIVE, check_kind, check_there
from minidiff.formats.stable_diffusion import load_text_encoder, load_vae
from minidiff.formats.tokenizer_files import load_tokenizer
from minidiff.models.bpe import learn_merges
from minidiff.models.latent_config import TextEncoderConfig, default_text_encoder, default_text_unet
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.tokenizer import Tokenizer, vocabulary
from minidiff.models.vae import VAE, Pixels
from minidiff.terminal import console
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.recipes import SCHEDULE
from minidiff.training.start import new_config, schedule_of, sizes_of
from minidiff.training.text_run import TextRun

MERGES = 2000  # of a tokenizer that is learned, at most
LENGTHS = (32, 77)  # of its texts: at least, so that one's own are not cut, and at most, as CLIP's
SCALED_BY = 1024  # pictures whose latents say how large they are


def start_text(
    out: Path, data: str, given: dict[str, Any], latent: Path | None, hears: Path | None, threads: int | None
) -> tuple[TextRun, Dataset]:
    """A new run on the captions of a set.

    latent  the folder of an autoencoder, or of its run; None: it learns the pixels themselves
    hears   a folder of text_encoder/ and tokenizer/, which stay as they are; None: both are learned
    """
    schedule = schedule_of(given.pop("objective", SCHEDULE.prediction_type), SCHEDULE)
    if not isinstance(schedule, Schedule):
        raise MinidiffError(f"--objective {schedule.prediction_type}: of texts choose epsilon, sample or v_prediction")
    sizes = sizes_of(given)
    if hears is not None:
        check_kind(hears, "text")
    place = None if latent is None else _place_of_autoencoder(latent)
    config, dataset = new_config(out, data, given, threads)
    check_captions(data, dataset)
    vae = Pixels(dataset.shape[2]) if place is None else _autoencoder(place, dataset, config)
    tokenizer, encoder = _of_captions(dataset.captions) if hears is None else text_encoder_of(hears, config.backend)
    heard = encoder.config if isinstance(encoder, TextEncoder) else encoder
    (H, W, _), channels = dataset.shape, vae.config.latent_channels
    network = default_text_unet((H // vae.factor, W // vae.factor, channels), heard.hidden_size, **sizes)
    return state.new_run(TextRun, out, config, network, schedule, tokenizer, vae, encoder), dataset


def check_captions(data: str, dataset: Dataset) -> None:
    """Raises MinidiffError for pictures without captions."""
    if not dataset.captions:
        raise MinidiffError(f"{data}: its pictures have no captions; leave --text out, or add a captions.csv")


def _of_captions(captions: tuple[str, ...]) -> tuple[Tokenizer, TextEncoderConfig]:
    """A tokenizer that is learned of all captions at once, and a text encoder that is yet to learn."""
    merges = learn_merges(captions, MERGES)
    vocab = vocabulary(merges)
    longest = max(len(Tokenizer(vocab, merges).encode(caption)) for caption in captions) + 2
    shortest, most = LENGTHS
    length = min(max(longest, shortest), most)
    console.print(f"Tokenizer: {len(vocab)} tokens, learned of the captions; {length} places a text")
    return Tokenizer(vocab, merges, length=length), default_text_encoder(len(vocab), length)


def text_encoder_of(folder: Path, backend: str) -> tuple[Tokenizer, TextEncoder]:
    """Those of a pipeline's folder, or of one that holds the files of both."""
    tokens, weights = (folder / name if (folder / name).is_dir() else folder for name in ("tokenizer", "text_encoder"))
    tokenizer, encoder = load_tokenizer(tokens), load_text_encoder(weights, backend)
    unknown = max(tokenizer.vocab.values()) >= encoder.config.vocab_size
    if unknown or tokenizer.length > encoder.config.max_position_embeddings:
        raise MinidiffError(
            f"{folder}: its text encoder does not know all that its tokenizer says; give a fitting pair"
        )
    return tokenizer, encoder


def autoencoder_of(folder: Path, backend: str) -> VAE:
    """The autoencoder of a run, of a pipeline, or of a folder of its own."""
    return load_vae(_place_of_autoencoder(folder), backend)


def _place_of_autoencoder(folder: Path) -> Path:
    """The folder of its config.json: in a run, in a pipeline, or this one. Raises MinidiffError if there is none."""
    check_there(folder, GIVE["vae"])
    place = next((place for place in (folder / "vae", folder) if (place / "config.json").is_file()), None)
    if place is None:
        check_kind(folder, "vae")
        raise MinidiffError(f"{folder}: holds no autoencoder; {GIVE['vae']}")
    return place


def _autoencoder(folder: Path, dataset: Dataset, config: TrainConfig) -> VAE:
    """The autoencoder of a folder, with the scale at which the dataset's latents have standard deviation 1."""
    vae = load_vae(folder, config.backend)
    height, width, channels = dataset.shape
    if vae.config.in_channels != channels:
        raise MinidiffError(f"{folder}: is for pictures of {vae.config.in_channels} channels, these have {channels}")
    if height % vae.factor or width % vae.factor:
        raise MinidiffError(f"{folder}: makes pictures {vae.factor} times smaller, and {width}x{height} cannot be")
    index = evenly_spaced(len(dataset), SCALED_BY)
    rng, size = np.random.default_rng([config.seed, 0]), config.batch_size // config.accumulate
    with no_grad():
        parts = (to_float(dataset.take(index[start : start + size])) for start in range(0, len(index), size))
        latents = np.concatenate([vae.encode(x).sample(rng) for x in parts])  # (n, h, w, latent_channels)
    std = max(float(latents.std()), 1e-6)
    console.print(f"Latents: {'x'.join(map(str, latents.shape[1:]))}, of standard deviation {std:.3g}")
    vae.config = replace(vae.config, scaling_factor=1 / std)
    return vae
