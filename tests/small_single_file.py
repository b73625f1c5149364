"""Stable Diffusion 1.x and 2.x so small that a test can make them, in the layout that single files are read with."""

import json
from pathlib import Path

import numpy as np

from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import scaled_linear_schedule
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.stable_diffusion import PARTS, save_parts
from minidiff.formats.tokenizer_files import clip_tokenizer
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import VAE

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
UNET = TextUNetConfig(
    sample_size=64, block_out_channels=(32, 64, 64), layers_per_block=1, cross_attention_dim=8,
    down_block_types=(CROSS[0], CROSS[0], PLAIN[0]), up_block_types=(PLAIN[1], CROSS[1], CROSS[1]),
)  # fmt: skip
VAE_CONFIG = VAEConfig(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=128,
    up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip
TEXT = TextEncoderConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=1)


def pipeline(version: str) -> TextPipeline:
    """With random weights; version "1" or "2"."""
    rng, second = np.random.default_rng(int(version)), version == "2"
    heads = (1, 1, 1) if second else 8
    unet = TextUNetConfig(**vars(UNET) | {"use_linear_projection": second, "attention_head_dim": heads})
    text = TextEncoderConfig(**vars(TEXT) | {"hidden_act": "gelu" if second else "quick_gelu"})
    return TextPipeline(
        unet=TextUNet(unet, rng, "numpy"),
        vae=VAE(VAE_CONFIG, rng, "numpy"),
        text_encoder=TextEncoder(text, rng, "numpy"),
        tokenizer=clip_tokenizer("!" if second else "<|endoftext|>"),
        schedule=scaled_linear_schedule(),
        sampler=Sampler("pndm", "leading", offset=1, clip=None, clean_end=False),
    )


def saved(folder: Path, version: str) -> Path:
    """The folder of such a pipeline."""
    save_parts(folder, pipeline(version), PARTS)
    return folder


def raw(path: Path) -> tuple[dict[str, dict], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(path: Path, arrays: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None):
    """A safetensors file of name -> dtype, shape, data."""
    header, body = {"__metadata__": metadata or {}}, b""
    for name, (dtype, shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def arrays_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """name -> dtype, shape, data of a safetensors file."""
    header, data = raw(path)
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }
