"""Stable Diffusion's networks against diffusers' and transformers': saved by them, read by us; outputs and gradients.

Every parameter is perturbed, so that those initialised to zero or one count too.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json

import numpy as np
import pytest
import torch
from against_torch import draw, nchw, nhwc, rms
from diffusers import AutoencoderKL, UNet2DConditionModel
from one_thread import one_thread  # noqa: F401  for all tests of this module
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from minidiff.engine.nn import GroupNorm, LayerNorm, Module
from minidiff.engine.tensor import Tensor
from minidiff.formats.stable_diffusion import load_text_encoder, load_text_unet, load_vae
from minidiff.models.blocks import timestep_embedding
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import VAE

# A hundred operations, each with a random relative error of up to 1.2e-6 (see test_networks).
GRADIENT = 1.2e-5


def perturbed(net):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape) * (p.std() if p.ndim > 1 else 1)
    return net.eval()


def close(got, want):
    want = want.detach().numpy()
    assert np.abs(want).mean() > 0.01
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def same_gradients(ours, theirs, leaves=()):
    """Of all parameters together and of each input: relative rms error, and elementwise scaled to a maximum of 1."""
    got = {name: p.backend.to_numpy(p.grad) for name, p in ours.named_parameters() if p.grad is not None}
    want = {name: nhwc(p.grad) if p.ndim == 4 else p.grad for name, p in theirs.named_parameters()}
    want = {name.removeprefix("text_model."): a.numpy() for name, a in want.items()}
    assert got.keys() == want.keys()
    pairs = [(np.concatenate([g[n].ravel() for n in want]) for g in (got, want)), *leaves]
    for mine, its in pairs:
        assert rms(mine - its) <= GRADIENT * rms(its)
        largest = np.abs(its).max()
        np.testing.assert_allclose(mine / largest, its / largest, rtol=1e-4, atol=1e-5)


# The text encoder

TEXT = dict(vocab_size=99, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
            max_position_embeddings=20)  # fmt: skip
TEXT_ENCODERS = {
    "quick_gelu": CLIPTextConfig(**TEXT),
    "gelu, one head": CLIPTextConfig(**TEXT | dict(hidden_act="gelu", num_attention_heads=1, layer_norm_eps=1e-3)),
}


@pytest.fixture(params=TEXT_ENCODERS)
def text_encoder(request, tmp_path):
    net = perturbed(CLIPTextModel(TEXT_ENCODERS[request.param]))
    net.save_pretrained(tmp_path)
    return net, tmp_path


IDS = np.random.default_rng(0).integers(0, 99, (2, 17))


def test_the_text_encoder_is_transformers_s(text_encoder, backend):
    net, folder = text_encoder
    ours = load_text_encoder(folder, backend.name)
    want = net(torch.tensor(IDS)).last_hidden_state
    y = ours(IDS)
    close(y.numpy(), want)
    want.backward(torch.tensor(draw(2, 17, 24, seed=1)))
    y.backward(draw(2, 17, 24, seed=1))
    same_gradients(ours, net)


def test_clip_skip_equals_diffusers(text_encoder, backend):
    net, folder = text_encoder
    states = net(torch.tensor(IDS), output_hidden_states=True).hidden_states
    for skip in (1, 2):
        want = net.final_layer_norm(states[-(skip + 1)])
        close(load_text_encoder(folder, backend.name)(IDS, clip_skip=skip).numpy(), want)


def test_a_text_encoder_of_before_2023(text_encoder):
    """Its keys have the prefix text_model or none, and it contains position_ids."""
    net, folder = text_encoder
    path = folder / "model.safetensors"
    arrays = load_file(path)
    short = {name.removeprefix("text_model."): a for name, a in arrays.items()}
    for prefix in ("", "text_model."):
        old = {prefix + name: a for name, a in short.items()}
        old[f"{prefix}embeddings.position_ids"] = np.arange(20)[None]
        save_file(old, path)
        close(load_text_encoder(folder, "numpy")(IDS).numpy(), net(torch.tensor(IDS)).last_hidden_state)


# The autoencoder


def vae_config(*widths, **more):
    levels = len(widths)
    return dict(block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels, norm_num_groups=4, sample_size=16) | more  # fmt: skip


VAES = {
    "two layers, three levels": vae_config(8, 16, 16, layers_per_block=2),
    "without attention and 1x1 convolutions": vae_config(
        8, 12, latent_channels=3, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
        force_upcast=False, scaling_factor=0.5,
    ),
}  # fmt: skip


@pytest.fixture(params=VAES)
def vae(request, tmp_path):
    net = perturbed(AutoencoderKL(**VAES[request.param]))
    net.save_pretrained(tmp_path)
    return net, tmp_path


def test_the_autoencoder_is_diffusers_s(vae, backend):
    net, folder = vae
    ours = load_vae(folder, backend.name)
    C, factor = ours.config.latent_channels, ours.factor
    x, z = draw(2, 16, 24, 3), draw(2, 16 // factor, 24 // factor, C)
    posterior = net.encode(nchw(torch.tensor(x))).latent_dist
    got = ours.encode(x)
    close(got.mean, nhwc(posterior.mean))
    close(got.std, nhwc(posterior.std))
    parameters, decoded = ours.moments(x), ours.decode(z)
    want = nhwc(net.decode(nchw(torch.tensor(z))).sample)
    close(decoded.numpy(), want)

    dy, dz = draw(*parameters.shape, seed=1), draw(*decoded.shape, seed=2)
    ((nhwc(posterior.parameters) * torch.tensor(dy)).sum() + (want * torch.tensor(dz)).sum()).backward()
    parameters.backward(dy)
    decoded.backward(dz)
    same_gradients(ours, net)


def test_latents_are_sampled_from_the_posterior():
    got = VAE(VAEConfig.of(vae_config(4)), np.random.default_rng(0), "numpy").encode(draw(1, 4, 4, 3))
    z = np.random.default_rng(1).standard_normal(got.mean.shape, dtype=np.float32)
    np.testing.assert_array_equal(got.sample(np.random.default_rng(1)), got.mean + got.std * z)


def test_attention_with_its_key_names_of_before_2023(tmp_path):
    net = perturbed(AutoencoderKL(**VAES["two layers, three levels"]))
    net.save_pretrained(tmp_path)
    path, old = tmp_path / "diffusion_pytorch_model.safetensors", {}
    for name, a in load_file(path).items():
        for today, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{today}.", f".{then}.")
        old[name] = a
    assert any(".proj_attn." in name for name in old)
    save_file(old, path)
    z = draw(1, 4, 4, 4)
    with torch.no_grad():
        want = nhwc(net.decode(nchw(torch.tensor(z))).sample)
    close(load_vae(tmp_path, "numpy").decode(z).numpy(), want)


@pytest.mark.parametrize("height, width", [(4, 4), (9, 4), (11, 8), (16, 19)])
def test_tiled_decoding_equals_diffusers(height, width, tmp_path):
    net = perturbed(AutoencoderKL(**VAES["two layers, three levels"]))
    net.save_pretrained(tmp_path)
    z = draw(2, height, width, 4)
    with torch.no_grad():
        want = nhwc(net.tiled_decode(nchw(torch.tensor(z))).sample)
    close(load_vae(tmp_path, "numba").decode_in_tiles(z), want)


# The U-Net

CROSS, PLAIN, UP_CROSS, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
UNETS = {
    "as 1.x": dict(
        down_block_types=(CROSS, CROSS, PLAIN), up_block_types=(UP, UP_CROSS, UP_CROSS), block_out_channels=(8, 16, 16),
        attention_head_dim=4, cross_attention_dim=12, norm_num_groups=4,
    ),
    "as 2.x": dict(
        down_block_types=(CROSS, PLAIN), up_block_types=(UP, UP_CROSS), block_out_channels=(8, 24), layers_per_block=1,
        attention_head_dim=(2, 3), cross_attention_dim=20, norm_num_groups=8, use_linear_projection=True,
        upcast_attention=True,
    ),
    "every other key": dict(
        down_block_types=(PLAIN, CROSS), up_block_types=(UP_CROSS, UP), block_out_channels=(8, 16), layers_per_block=1,
        attention_head_dim=2, cross_attention_dim=8, norm_num_groups=2, transformer_layers_per_block=2, dropout=0.1,
        center_input_sample=True, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-3,
        in_channels=9, out_channels=5, time_embedding_dim=20, sample_size=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, size", [*((name, (8, 12)) for name in UNETS), ("as 1.x", (9, 7))])
def test_the_u_net_is_diffusers_s(name, size, backend, tmp_path):
    net = perturbed(UNet2DConditionModel(**UNETS[name]))
    net.save_pretrained(tmp_path)
    ours, cfg = load_text_unet(tmp_path, backend.name), net.config
    t = np.array([999, 17])
    x_t, text = draw(2, *size, cfg.in_channels), draw(2, 7, cfg.cross_attention_dim)
    dy = draw(2, *size, cfg.out_channels, seed=1)
    x, context = (Tensor(a, ours.backend, requires_grad=True) for a in (x_t, text))
    y = ours(x, t, context)
    with torch.no_grad():
        close(y.numpy(), nhwc(net(nchw(torch.tensor(x_t)), torch.tensor(t), torch.tensor(text)).sample))
    y.backward(dy)
    # for the gradients it gets our sinusoids: its own are float32, with an error of up to 6e-5 at t = 999
    sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
    net.time_proj.forward = lambda t: torch.tensor(sinusoids)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x_t, text)]
    nhwc(net(nchw(leaves[0]), torch.tensor(t), leaves[1]).sample).backward(torch.tensor(dy))
    inputs = [(ours.backend.to_numpy(a.grad), b.grad.numpy()) for a, b in zip((x, context), leaves, strict=True)]
    same_gradients(ours, net, inputs)


def norms(module, path=""):
    """(name, eps) of every normalisation layer."""
    for name, value in vars(module).items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            inner = f"{path}{name}.{i}" if isinstance(value, list) else f"{path}{name}"
            if isinstance(item, GroupNorm | LayerNorm):
                yield inner, item.eps
            elif isinstance(item, Module):
                yield from norms(item, f"{inner}.")


def test_every_normalisation_has_their_eps():
    """A wrong eps is too small to show in the outputs."""
    text = TEXT_ENCODERS["gelu, one head"]
    pairs = [
        (TextEncoder(TextEncoderConfig.of(text.to_dict()), None, "numpy"), CLIPTextModel(text)),
        *((VAE(VAEConfig.of(values), None, "numpy"), AutoencoderKL(**values)) for values in VAES.values()),
        *((TextUNet(TextUNetConfig.of(v), None, "numpy"), UNet2DConditionModel(**v)) for v in UNETS.values()),
    ]
    for ours, theirs in pairs:
        want = {name.removeprefix("text_model."): m.eps for name, m in theirs.named_modules() if hasattr(m, "eps")}
        got = dict(norms(ours))
        assert got and got == {name: eps for name, eps in want.items() if name in got}
        assert len(got) == sum("Norm" in type(m).__name__ for m in theirs.modules())


# The full-size networks. Weights of zeros take no memory until they are written.

TYPES = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, model_type="clip_text_model")
CLIP_H = dict(
    hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23, hidden_act="gelu",
    model_type="clip_text_model",
)  # fmt: skip
FULL_SIZE = {
    "U-Net of 1.x": (TextUNet, TextUNetConfig, dict(cross_attention_dim=768), 859_520_964),
    "U-Net of 2.x": (
        TextUNet,
        TextUNetConfig,
        dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        865_910_724,
    ),
    "autoencoder": (
        VAE,
        VAEConfig,
        dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, **TYPES),
        83_653_863,
    ),
    "text encoder of 1.x": (TextEncoder, TextEncoderConfig, CLIP_L, 123_060_480),
    "text encoder of 2.x": (TextEncoder, TextEncoderConfig, CLIP_H, 340_387_840),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_networks_have_as_many_parameters(name):
    network, config, values, count = FULL_SIZE[name]
    assert sum(p.data.size for p in network(config.of(values), None, "numpy").parameters()) == count


@pytest.mark.parametrize("name", ["U-Net of 2.x", "text encoder of 2.x"])
def test_full_size_networks_have_the_same_names_and_shapes(name):
    network, config, values, _ = FULL_SIZE[name]
    with torch.device("meta"):
        if network is TextUNet:
            theirs = UNet2DConditionModel(**values)
        else:
            theirs = CLIPTextModel(CLIPTextConfig(**values))
    want = {n.removeprefix("text_model."): tuple(p.shape) for n, p in theirs.named_parameters()}
    ours = dict(network(config.of(json.loads(json.dumps(values))), None, "numpy").named_parameters())
    assert {
        n: (p.shape[0], *p.shape[3:], *p.shape[1:3]) if p.data.ndim == 4 else p.shape for n, p in ours.items()
    } == want
