"""A Stable Diffusion pipeline of diffusers so small that a test can walk with it: 32 x 32 pixels, 8 x 8 latents."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minidiff.models.tokenizer import vocabulary

MERGES = [("c", "a"), ("ca", "t</w>"), ("b", "l"), ("bl", "a"), ("c", "k</w>"), ("bla", "ck</w>"), ("f", "a")]
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # as Stable Diffusion has it


def pipeline(unet_changes: dict | None = None) -> StableDiffusionPipeline:
    """With random weights, and PNDM as Stable Diffusion 1.x has it."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(vocabulary(MERGES), MERGES, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=2,
    )
    unet = dict(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, sample_size=32,
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae.eval(), CLIPTextModel(text).eval(), tokenizer, UNet2DConditionModel(**unet | (unet_changes or {})).eval(),
        PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1), None, None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def saved(folder: Path) -> Path:
    """The folder of such a pipeline."""
    pipeline().save_pretrained(folder)
    return folder
