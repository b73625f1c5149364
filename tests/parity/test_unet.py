"""The U-Net against diffusers' UNet2DModel: keys, output, and every gradient."""

from functools import cache

import numpy as np
import pytest
import torch
from against_torch import FLOOR, draw, nchw, nhwc, rms, torch_layout
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding

from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import timestep_embedding
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config
from minidiff.models.unet import UNet


def config(*blocks, **settings):
    """One letter per level, A with attention and D without, for the down blocks; the up blocks mirror them."""
    down = tuple("AttnDownBlock2D" if block == "A" else "DownBlock2D" for block in blocks)
    up = tuple("AttnUpBlock2D" if block == "A" else "UpBlock2D" for block in reversed(blocks))
    return UNetConfig(down_block_types=down, up_block_types=up, **settings)


# The configuration, and the shape (N, H, W) of the images.
CONFIGS = {
    "CIFAR-10, narrow": (
        config(
            "D", "A", "D", "D", block_out_channels=(16, 32, 32, 32), attention_head_dim=None, downsample_padding=0,
            flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=8, sample_size=32,
        ),
        (2, 32, 32),
    ),
    "default": (default_config((16, 16, 3)), (3, 16, 16)),
    "heads and labels": (
        config("D", "A", block_out_channels=(16, 32), attention_head_dim=8, norm_num_groups=4, num_class_embeds=11),
        (3, 8, 8),
    ),
    "grey, not square": (
        config(
            "D", "D", "A", block_out_channels=(8, 12, 20), in_channels=1, out_channels=1, norm_num_groups=4,
            layers_per_block=1, attention_head_dim=5, sample_size=(8, 16),
        ),
        (2, 8, 16),
    ),
    "three layers, no attention": (
        config(
            "D", "D", block_out_channels=(15, 30), dropout=0.1, layers_per_block=3, norm_num_groups=5,
            add_attention=False, downsample_padding=0, out_channels=6,
        ),
        (2, 10, 6),
    ),
    "one level, attention everywhere": (
        config("A", block_out_channels=(24,), attention_head_dim=None, norm_num_groups=3, freq_shift=1),
        (1, 5, 7),
    ),
}  # fmt: skip


@cache
def inputs(name):
    """x_t, t, cond, dy, and perturbed weights: none is zero, so every gradient is large enough to compare."""
    cfg, (N, H, W) = CONFIGS[name]
    rng = np.random.default_rng(0)
    state = UNet(cfg, rng, "numpy").state_dict()
    state = {key: a + 0.1 * draw(*a.shape, seed=i) for i, (key, a) in enumerate(state.items())}
    t = rng.integers(0, 1000, N)
    cond = None if cfg.num_class_embeds is None else rng.integers(0, cfg.num_class_embeds, N)
    return draw(N, H, W, cfg.in_channels), t, cond, draw(N, H, W, cfg.out_channels, seed=1), state


def ours(name, backend):
    """y, dx, and the gradients by parameter."""
    x_t, t, cond, dy, state = inputs(name)
    unet = UNet(CONFIGS[name][0], np.random.default_rng(1), backend.name)
    unet.load_state_dict(state)
    x = Tensor(x_t, backend, requires_grad=True)
    y = unet(x, t, cond)
    y.backward(dy)
    gradients = {key: backend.to_numpy(p.grad) for key, p in unet.named_parameters()}
    return y.numpy(), backend.to_numpy(x.grad), gradients


def diffusers_net(name, dtype):
    net = UNet2DModel.from_config(CONFIGS[name][0].to_dict()).eval()
    net.load_state_dict(torch_layout({key: torch.tensor(a) for key, a in inputs(name)[-1].items()}))
    return torch.nn.Module.to(net, dtype=dtype, memory_format=torch.channels_last)


@cache
def theirs(name, dtype):
    """The same from diffusers. It gets our sinusoids: its own are float32 whatever the dtype."""
    cfg = CONFIGS[name][0]
    x_t, t, cond, dy, _ = inputs(name)
    net = diffusers_net(name, dtype)
    sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
    net.time_proj.forward = lambda t: torch.tensor(sinusoids, dtype=dtype)
    x = torch.tensor(x_t, dtype=dtype, requires_grad=True)
    labels = None if cond is None else torch.tensor(cond)
    y = nhwc(net(nchw(x), torch.tensor(t), class_labels=labels).sample)
    y.backward(torch.tensor(dy, dtype=dtype))
    gradients = {key: p.grad.numpy() for key, p in net.named_parameters()}
    gradients = {key: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for key, a in gradients.items()}
    return y.detach().numpy(), x.grad.numpy(), gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_the_keys_and_shapes_are_diffusers_s(name):
    ours = UNet(CONFIGS[name][0], np.random.default_rng(0), "numpy").state_dict()
    theirs = UNet2DModel.from_config(CONFIGS[name][0].to_dict()).state_dict()
    shapes = {key: tuple(np.moveaxis(a.numpy(), 1, -1).shape if a.ndim == 4 else a.shape) for key, a in theirs.items()}
    assert {key: a.shape for key, a in ours.items()} == shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_the_output_is_diffusers_s(backend, name):
    """Unmodified diffusers, with its own sinusoids."""
    x_t, t, cond, _, _ = inputs(name)
    with torch.no_grad():
        labels = None if cond is None else torch.tensor(cond)
        y = diffusers_net(name, torch.float32)(nchw(torch.tensor(x_t)), torch.tensor(t), class_labels=labels).sample
    np.testing.assert_allclose(ours(name, backend)[0], nhwc(y).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_is_as_accurate_as_torch_s(backend, name):
    """Error against float64: all gradients together at most 1.5 times torch's, each parameter's at most 5 times.

    A gradient that is exactly zero in theory (the bias of the keys does not change attention) is all rounding error, so
    the bound is relative to torch's rounding. Single errors vary more than their sum: hence 5, not 1.5.
    """
    _, dx, got = ours(name, backend)
    (_, dx_want, want), (_, dx_torch, torch_s) = (theirs(name, dtype) for dtype in (torch.float64, torch.float32))
    assert got.keys() == want.keys()
    for key, a in got.items():
        error, bound = rms(a - want[key]), max(5 * rms(torch_s[key] - want[key]), FLOOR * rms(want[key]))
        assert error <= bound, f"{key} is off by {error:.2e}, allowed are {bound:.2e}"
    together = [np.concatenate([(g[key] - want[key]).ravel() for key in want]) for g in (got, torch_s)]
    assert rms(together[0]) <= 1.5 * rms(together[1])
    assert rms(dx - dx_want) <= 2 * rms(dx_torch - dx_want)


@pytest.mark.parametrize("width", [2, 7, 32, 33])
@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 0.5])
def test_sinusoids_are_diffusers_s(width, flip_sin_to_cos, freq_shift):
    """Theirs have errors up to t e^-u (u + 2) 2^-24 at frequency e^-u (rounding of u, e^-u and t e^-u): t 2^-23."""
    t = np.array([0, 1, 17, 999])
    got = timestep_embedding(t, width, flip_sin_to_cos, freq_shift)
    want = get_timestep_embedding(torch.tensor(t), width, flip_sin_to_cos, freq_shift).numpy()
    assert got.shape == (4, width) and got.dtype == np.float32
    assert (abs(got - want) <= t[:, None] * 2.0**-23 + 2.0**-23).all()


def small(backend, **settings):
    cfg = config("D", "A", block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **settings)
    return UNet(cfg, np.random.default_rng(0), backend.name)


def test_dropout_happens_only_with_an_rng(backend):
    unet, plain = small(backend, dropout=0.5), small(backend)
    x_t, t = draw(2, 4, 4, 3), np.array([1, 2])
    np.testing.assert_array_equal(unet(x_t, t).numpy(), plain(x_t, t).numpy())
    first, again, other = (unet(x_t, t, rng=np.random.default_rng(seed)).numpy() for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and (first != plain(x_t, t).numpy()).any()


def test_arrays_and_tensors_are_accepted(backend):
    unet, t = small(backend), np.array([5])
    y = unet(draw(1, 4, 4, 3), t)
    np.testing.assert_array_equal(unet(Tensor(draw(1, 4, 4, 3), backend), t).numpy(), y.numpy())
    assert y.backend is backend and y.shape == (1, 4, 4, 3)


WRONG = {
    "takes \\(N, H, W, 3\\)": lambda unet: unet(draw(1, 4, 4, 1), [5]),
    "x_t has shape": lambda unet: unet(draw(4, 4, 3), [5]),
    "x_t is 5x4: .* divisible by 2": lambda unet: unet(draw(1, 5, 4, 3), [5]),
    "t has shape \\(2,\\), x_t holds 1": lambda unet: unet(draw(1, 4, 4, 3), [5, 6]),
    "t has shape \\(\\), x_t holds 1": lambda unet: unet(draw(1, 4, 4, 3), 5),
    "made without num_class_embeds": lambda unet: unet(draw(1, 4, 4, 3), [5], [1]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_shapes_are_refused(backend, message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](small(backend))


def test_wrong_labels_are_refused(backend):
    unet, x_t = small(backend, num_class_embeds=3), draw(2, 4, 4, 3)
    with pytest.raises(ValueError, match="cond is missing"):
        unet(x_t, [5, 6])
    with pytest.raises(ValueError, match=r"cond has shape \(1,\), x_t holds 2"):
        unet(x_t, [5, 6], [1])
    with pytest.raises(IndexError, match="the table has 3 rows"):
        unet(x_t, [5, 6], [0, 3])
