"""Training of the autoencoder: loss, gradients and twenty losses equal those of diffusers' AutoencoderKL in torch."""

from functools import cache

import numpy as np
import torch
from against_torch import nchw, nhwc, rms, torch_layout
from diffusers import AutoencoderKL
from one_thread import one_thread  # noqa: F401  for all tests of this module

from minidiff.engine.optim import AdamW
from minidiff.models.config import VAEConfig
from minidiff.models.vae import VAE, vae_loss
from minidiff.training.kinds.vae_run import vae_step

STEPS, SHAPE, LATENTS, LR, KL = 20, (4, 8, 8, 3), (4, 4, 4, 2), 1e-3, 0.1
CONFIG = VAEConfig(
    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=2, norm_num_groups=4,
    up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
)  # fmt: skip


class Given:
    """A random generator that returns the given eps."""

    def __init__(self, eps):
        self.eps = eps

    def standard_normal(self, shape, dtype):
        assert shape == self.eps.shape and dtype == self.eps.dtype
        return self.eps


def batches():
    """Images, and eps for their latents, of every step."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield np.tanh(rng.standard_normal(SHAPE)).astype(np.float32), rng.standard_normal(LATENTS, dtype=np.float32)


def ours(backend="numpy"):
    return VAE(CONFIG, np.random.default_rng(0), backend)


def theirs():
    net = AutoencoderKL.from_config(CONFIG.to_dict())
    net.load_state_dict(torch_layout({key: torch.tensor(a) for key, a in ours().state_dict().items()}))
    return net


def torch_loss(net, x, eps):
    x, eps = nchw(torch.tensor(x)), nchw(torch.tensor(eps))
    posterior = net.encode(x).latent_dist
    reconstruction = net.decode(posterior.mean + posterior.std * eps).sample
    return torch.nn.functional.mse_loss(reconstruction, x) + KL * posterior.kl().sum() / eps.numel()


@cache
def torch_losses():
    net, losses = theirs(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    for x, eps in batches():
        optimizer.zero_grad()
        loss = torch_loss(net, x, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_loss_and_gradients(backend):
    """Tolerance as in test_stable_diffusion."""
    x, eps = next(batches())
    vae, net = ours(backend.name), theirs()
    loss, want = vae_loss(vae, x, eps, KL), torch_loss(net, x, eps)
    loss.backward()
    want.backward()
    assert abs(float(loss.numpy()) - want.item()) <= 1e-5 * want.item()
    gradients = {name: nhwc(p.grad) if p.ndim == 4 else p.grad for name, p in net.named_parameters()}
    got = {name: backend.to_numpy(p.grad) for name, p in vae.named_parameters()}
    a, b = (np.concatenate([np.ravel(g[name]) for name in got]) for g in (got, gradients))
    assert rms(a - b) <= 1.2e-5 * rms(b)


def test_twenty_losses_equal_torch_s(backend):
    """To 1e-5, as in test_training."""
    vae, want = ours(backend.name), torch_losses()
    optimizer = AdamW(vae.parameters(), lr=LR, clip=1.0, ema=0.999)
    got = [vae_step(vae, optimizer, x, Given(eps), KL).loss for x, eps in batches()]
    assert want[-1] < 0.9 * want[0]  # the loss falls
    np.testing.assert_allclose(got, want, rtol=1e-5)
