"""Networks of every supported configuration, saved by diffusers' UNet2DModel and read by us.

Every parameter is perturbed, so that those initialised to zero or one count too. Outputs are those of unmodified
diffusers. For gradients it gets our sinusoids: its own are float32, with an error of up to 6e-5 (999 x 2^-24) at
t = 999, larger than all others.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from against_torch import draw, nchw, nhwc, rms
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff.models.blocks import timestep_embedding

# Between the loss and a parameter are up to a hundred operations, each with a random relative error of up to 1.2e-6
# (see against_torch): sqrt(100) times that.
GRADIENT = 1.2e-5

D, A, R = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
U, B, S = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"


def small(down, up, widths, **more):
    """A config.json with the given keys only."""
    return {"down_block_types": down, "up_block_types": up, "block_out_channels": widths, "layers_per_block": 1, **more}


CONFIGS = {
    "defaults": small([D, A], [B, U], [32, 64], layers_per_block=2),
    "as DDPM": small(
        [D, A, D], [U, B, U], [8, 16, 16], layers_per_block=2, attention_head_dim=None, downsample_padding=0,
        flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=4, center_input_sample=False,
        mid_block_scale_factor=1, sample_size=32, act_fn="silu", _diffusers_version="0.1.1",
    ),
    "resampling in residual blocks": small([R, R], [S, S], [8, 16], norm_num_groups=4, layers_per_block=2),
    "resampling in residual blocks, attention": small(
        [A, A], [B, B], [8, 16], norm_num_groups=4, downsample_type="resnet", upsample_type="resnet",
    ),
    "downsampling in a residual block, upsampling by a convolution": small(
        [A, D, A], [B, U, B], [8, 8, 16], norm_num_groups=4, downsample_type="resnet", downsample_padding=0,
    ),
    "upsampling in a residual block, downsampling by a convolution": small(
        [D, A, A], [B, B, U], [8, 16, 8], norm_num_groups=4, upsample_type="resnet", attention_head_dim=4,
    ),
    "scale and shift": small(
        [D, A], [B, U], [8, 16], norm_num_groups=4, resnet_time_scale_shift="scale_shift", layers_per_block=2,
    ),
    "scale and shift, norm in the mid block's attention": small(
        [D, D], [U, U], [8, 16], norm_num_groups=4, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=2,
    ),
    "attn_norm_num_groups": small([D, D], [U, U], [8, 16], norm_num_groups=4, attn_norm_num_groups=8),
    "mid_block_scale_factor above 1": small([D, D], [U, U], [8, 16], norm_num_groups=4, mid_block_scale_factor=2**0.5),
    "mid_block_scale_factor below 1, no attention": small(
        [D, A], [B, U], [8, 16], norm_num_groups=4, mid_block_scale_factor=0.5, add_attention=False,
    ),
    "centred, grey, not square": small(
        [D, A], [B, U], [8, 12], norm_num_groups=4, center_input_sample=True, in_channels=1, out_channels=2,
        attention_head_dim=3, sample_size=[4, 8],
    ),
    "labels, wide time embedding": small(
        [D, D], [U, U], [8, 16], norm_num_groups=4, num_class_embeds=5, time_embedding_dim=48, add_attention=False,
    ),
    "as guided diffusion": small(
        [R, A, A], [B, B, S], [8, 16, 24], norm_num_groups=4, num_class_embeds=11, attention_head_dim=8,
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", layers_per_block=2,
        attn_norm_num_groups=4, norm_eps=1e-6, dropout=0.1,
    ),
    "no two levels alike": small(
        [A, R, D, A], [U, S, B, U], [6, 12, 9, 15], norm_num_groups=3, attention_head_dim=3, upsample_type="resnet",
        layers_per_block=1, freq_shift=0.5,
    ),
    "one level": small([A], [B], [12], norm_num_groups=3, attention_head_dim=None, layers_per_block=3),
}  # fmt: skip

CIFAR10 = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.1.1", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False, "down_block_types": [D, A, D, D],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
    "time_embedding_type": "positional", "up_block_types": [U, U, B, U],
}  # fmt: skip


@dataclass(frozen=True)
class Theirs:
    """A network that diffusers saved, with inputs, output and gradients."""

    folder: Path
    x_t: np.ndarray
    t: np.ndarray
    labels: np.ndarray | None
    y: np.ndarray
    dy: np.ndarray
    gradients: dict[str, np.ndarray]


def theirs(config: dict, folder: Path, images: int = 3, height: int = 8, width: int = 16) -> Theirs:
    """Evaluated at t = 999, 17, 0, one per image."""
    torch.manual_seed(0)
    net = UNet2DModel.from_config(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape) * (p.std() if p.ndim > 1 else 1)
    net.save_pretrained(folder)

    classes = config.get("num_class_embeds")
    labels = None if classes is None else np.arange(images) % classes
    t = np.array([999, 17, 0])[:images]
    x_t = draw(images, height, width, net.config.in_channels)
    dy = draw(images, height, width, net.config.out_channels, seed=1)

    def output():
        cond = None if labels is None else torch.tensor(labels)
        return nhwc(net(nchw(torch.tensor(x_t)), torch.tensor(t), class_labels=cond).sample)

    with torch.no_grad():
        y = output().numpy()
    cfg = net.config
    sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
    net.time_proj.forward = lambda t: torch.tensor(sinusoids)
    output().backward(torch.tensor(dy))
    gradients = {name: (nhwc(p.grad) if p.ndim == 4 else p.grad).numpy() for name, p in net.named_parameters()}
    return Theirs(folder, x_t, t, labels, y, dy, gradients)


def compare(theirs: Theirs, backend: str) -> tuple[float, float]:
    """Holds output and gradients (all parameters together) of the network in the folder to diffusers'.

    Returns the output's largest error relative to its tolerance, and the relative rms error of the gradients.
    """
    unet = md.load_unet(theirs.folder, backend)
    y = unet(theirs.x_t, theirs.t, cond=theirs.labels)
    assert np.abs(theirs.y).mean() > 0.01
    np.testing.assert_allclose(y.numpy(), theirs.y, rtol=1e-4, atol=1e-5)
    y.backward(theirs.dy)
    got = {name: unet.backend.to_numpy(p.grad) for name, p in unet.named_parameters()}
    assert got.keys() == theirs.gradients.keys()
    off = np.concatenate([(got[name] - want).ravel() for name, want in theirs.gradients.items()])
    error = rms(off) / rms(np.concatenate([want.ravel() for want in theirs.gradients.values()]))
    assert error <= GRADIENT
    return float((np.abs(y.numpy() - theirs.y) / (1e-5 + 1e-4 * np.abs(theirs.y))).max()), error


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    return theirs(CONFIGS[request.param], tmp_path_factory.mktemp("theirs"))


def test_output_and_gradients_equal_diffusers(saved, backend):
    compare(saved, backend.name)


def test_ddpm_cifar10(tmp_path):
    """google/ddpm-cifar10-32's configuration at its full width."""
    saved = theirs(CIFAR10, tmp_path, images=1, height=32, width=32)
    assert len(saved.gradients) == 328 and sum(a.size for a in saved.gradients.values()) == 35_746_307
    compare(saved, "numba")


@st.composite
def configs(draw):
    """Up to three levels of up to 24 channels, and every key that changes the arithmetic."""
    levels = draw(st.integers(1, 3))

    def per_level(choices):
        return draw(st.lists(st.sampled_from(choices), min_size=levels, max_size=levels))

    values = {
        "norm_num_groups": [1, 2, 4], "layers_per_block": [1, 2], "attention_head_dim": [None, 4, 8],
        "downsample_type": ["conv", "resnet"], "upsample_type": ["conv", "resnet"], "downsample_padding": [0, 1],
        "resnet_time_scale_shift": ["default", "scale_shift"], "mid_block_scale_factor": [1, 0.7, 2],
        "attn_norm_num_groups": [None, 2, 8], "add_attention": [True, False], "center_input_sample": [True, False],
        "flip_sin_to_cos": [True, False], "freq_shift": [0, 1], "num_class_embeds": [None, 3],
        "time_embedding_dim": [None, 20], "in_channels": [1, 3], "out_channels": [1, 6], "norm_eps": [1e-6, 1e-3],
    }  # fmt: skip
    chosen = {name: draw(st.sampled_from(choices)) for name, choices in values.items() if draw(st.booleans())}
    chosen.setdefault("norm_num_groups", 8)
    return small(per_level([D, A, R]), per_level([U, B, S]), per_level([8, 16, 24]), **chosen)


@settings(max_examples=12)
@given(config=configs(), backend=st.sampled_from(["numpy", "numba"]))
def test_random_configurations_equal_diffusers(config, backend, tmp_path_factory):
    compare(theirs(config, tmp_path_factory.mktemp("random"), images=2), backend)
