"""Runs on captioned pictures so small that a test can make dozens: 8x8 pictures, or 4x4 latents of them."""

from pathlib import Path

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.tokenizer import Tokenizer, vocabulary
from minidiff.models.vae import VAE, Pixels
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import TextRun

MERGES = [("r", "e"), ("re", "d</w>"), ("l", "i"), ("n", "g</w>")]
SCHEDULE = cosine_schedule(30, "v_prediction")
ENCODER = TextEncoderConfig(
    vocab_size=len(vocabulary(MERGES)), hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=10,
)  # fmt: skip
AUTOENCODER = VAEConfig(
    block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=3, norm_num_groups=4,
    up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8, scaling_factor=0.7,
)  # fmt: skip


def tokenizer() -> Tokenizer:
    return Tokenizer(vocabulary(MERGES), MERGES, length=10)


def network(side: int) -> TextUNetConfig:
    """One level that listens, for pictures or latents of three channels."""
    return TextUNetConfig(
        sample_size=side, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8,
        attention_head_dim=2,
    )  # fmt: skip


def bars(n: int = 10, channels: int = 3) -> Dataset:
    """Bars of three colours that lie or stand, and captions that say so."""
    rng = np.random.default_rng(1)
    images, captions = rng.integers(0, 120, (n, 8, 8, channels), dtype=np.uint8), []
    for i, picture in enumerate(images):
        stands, colour, at = i % 2, i % 3, rng.integers(8)
        (picture[:, at] if stands else picture[at])[..., colour % channels] += 120
        captions.append(f"{('red', 'green', 'blue')[colour]} bar, {'standing' if stands else 'lying'}")
    return from_arrays("bars", images, np.zeros(n), ("bar",), captions=tuple(captions))


def new_text_run(
    folder: Path, steps: int = 8, latent: bool = False, frozen: bool = False, backend: str = "numpy", **changes
) -> TextRun:
    """A run at step 0, of pixels or latents, with a text encoder that learns, or one that stays as it is."""
    config = TrainConfig("bars", steps=steps, batch_size=4, warmup=3, seed=5, backend=backend, flip=False, **changes)
    vae = VAE(AUTOENCODER, np.random.default_rng(1), backend) if latent else Pixels(3)
    encoder = TextEncoder(ENCODER, np.random.default_rng(2), backend) if frozen else ENCODER
    net = network(4 if latent else 8)
    return state.new_run(TextRun, folder, config, net, SCHEDULE, tokenizer(), vae, encoder)
