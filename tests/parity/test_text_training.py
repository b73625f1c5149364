"""A text U-Net in training with its text encoder: losses equal torch's, images equal diffusers'."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from against_torch import nchw, nhwc, torch_layout
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from one_thread import one_thread  # noqa: F401  for all tests of this module
from small_runs import go_on
from small_text import ENCODER, bars, network, new_text_run, tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.optim import AdamW
from minidiff.engine.torch_generator import torch_generator
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image
from minidiff.training.step import train_step

STEPS, SHAPE, LR, NETWORK = 20, (4, 8, 8, 3), 1e-3, network(8)


class Given:
    """A random generator that returns the given t and eps."""

    def __init__(self, t, eps):
        self.t, self.eps = t, eps

    def integers(self, low, high, size):
        assert (low, high, size) == (0, 1000, len(self.t))
        return self.t

    def standard_normal(self, shape, dtype):
        assert shape == self.eps.shape and dtype == self.eps.dtype
        return self.eps


def batches():
    """x0, t, eps and tokens of every step; some texts are empty."""
    rng, words = np.random.default_rng(0), ["red bar", "a bar, lying", "", "blue"]
    for _ in range(STEPS):
        x0 = np.tanh(rng.standard_normal(SHAPE)).astype(np.float32)
        texts = [words[i] for i in rng.integers(0, 4, 4)]
        yield x0, rng.integers(0, 1000, 4), rng.standard_normal(SHAPE, dtype=np.float32), tokenizer()(texts)


def ours(backend="numpy"):
    rng = np.random.default_rng(0)
    return TextUNet(NETWORK, rng, backend), TextEncoder(ENCODER, rng, backend)


@cache
def torch_losses():
    unet, encoder = ours()
    net = UNet2DConditionModel.from_config(NETWORK.to_dict())
    net.load_state_dict(torch_layout({key: torch.tensor(a) for key, a in unet.state_dict().items()}))
    text = CLIPTextModel(CLIPTextConfig(**{**ENCODER.to_dict(), "eos_token_id": 2}))
    text.load_state_dict({key: torch.tensor(a) for key, a in encoder.state_dict().items()})
    parameters, losses = [*net.parameters(), *text.parameters()], []
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    optimizer = torch.optim.AdamW(parameters, lr=LR)
    for x0, t, eps, ids in batches():
        x0, t, eps = nchw(torch.tensor(x0)), torch.tensor(t), nchw(torch.tensor(eps))
        alpha_bar = alphas_cumprod[t].float()[:, None, None, None]
        optimizer.zero_grad()
        context = text(torch.tensor(ids)).last_hidden_state
        eps_hat = net(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps, t, context).sample
        loss = torch.nn.functional.mse_loss(eps_hat, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backend", ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.soak)], indirect=True)
def test_twenty_losses_equal_torch_s(backend):
    """To 1e-5, as of the noise predictor (test_training): one optimiser for both, clipped together."""
    (unet, encoder), want = ours(backend.name), torch_losses()
    optimizer = AdamW([*unet.parameters(), *encoder.parameters()], lr=LR, clip=1.0, ema=0.999)

    def model(x_t, t, cond, rng):
        return unet(x_t, t, encoder(cond), rng)

    schedule = linear_schedule(1000, 1e-4, 0.02)
    got = [train_step(model, schedule, optimizer, x0, Given(t, eps), ids).loss for x0, t, eps, ids in batches()]
    assert want[-1] < 0.97 * want[0]  # the loss falls
    np.testing.assert_allclose(got, want, rtol=1e-5)


def opened(folder, **more):
    """The folder in diffusers, its scheduler as it is written: the pipeline makes another of one that clips."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of that
        made = StableDiffusionPipeline.from_pretrained(folder, **more)
    made.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("frozen", [False, True])
def test_diffusers_samples_the_same_images_in_latents(tmp_path, frozen):
    go_on(new_text_run(tmp_path, latent=True, frozen=frozen), dataset=bars())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        theirs = StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    settings = dict(num_inference_steps=5, guidance_scale=3.0, generator=torch.Generator().manual_seed(7))
    want = theirs("red bar lying", **settings, output_type="pt").images * 2 - 1
    got = text_to_image(open_pipeline(tmp_path), ["red bar lying"], "", 3.0, 5, torch_generator(7))
    assert np.abs(got).mean() > 0.01
    np.testing.assert_allclose(got.clip(-1, 1), nhwc(want).numpy(), rtol=1e-4, atol=1e-5)


def test_diffusers_samples_the_same_images_in_pixels(tmp_path):
    """Without an autoencoder the pipeline's latents are the images."""
    go_on(new_text_run(tmp_path), dataset=bars())
    settings = dict(num_inference_steps=5, guidance_scale=3.0, generator=torch.Generator().manual_seed(7))
    want = opened(tmp_path, vae=None)("red bar lying", **settings, output_type="latent").images
    got = text_to_image(open_pipeline(tmp_path), ["red bar lying"], "", 3.0, 5, torch_generator(7))
    np.testing.assert_allclose(got, nhwc(want).numpy(), rtol=1e-4, atol=1e-5)
