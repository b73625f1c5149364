"""Diagonal Gaussians: the terms of variational bounds, differentiable.

Of an autoencoder (Kingma & Welling 2014, arXiv:1312.6114): the reparameterised sample, and the KL divergence from
N(0, I). Both take means and log-variances of the same shape and clip the log-variances to LOG_VARIANCES.

Of diffusion (Ho et al. 2020, eq. 5 and 13): the KL divergence of two Gaussians, and the likelihood of bytes.
"""

import math
from typing import Any

import numpy as np

from minidiff.engine.tensor import Function, Tensor

LOG_VARIANCES = (-30, 20)  # diffusers' bounds; exp of either is finite and above 0 in float32


class ReparameterisedSample(Function):
    def __init__(self, eps):
        self.eps = eps

    def forward(self, mean, log_variance):
        clipped = log_variance.clip(*LOG_VARIANCES)
        self.within = clipped == log_variance  # elsewhere the clip has gradient 0
        self.noise = self.backend.xp.exp(0.5 * clipped) * self.backend.asarray(self.eps)  # std eps
        return mean + self.noise

    def backward(self, dy):
        return dy, 0.5 * dy * self.noise * self.within


def reparameterised_sample(mean: Tensor, log_variance: Tensor, eps: np.ndarray) -> Tensor:
    """mean + std eps for standard normal eps: the reparameterised sample (section 2.4).

    Raises ValueError if the shapes differ.
    """
    _check("reparameterised_sample", mean.shape, log_variance.shape, eps.shape)
    return ReparameterisedSample(eps)(mean, log_variance)


class KLDivergence(Function):
    def forward(self, mean, log_variance):
        clipped = log_variance.clip(*LOG_VARIANCES)
        self.mean = mean
        self.within = clipped == log_variance
        self.variance = self.backend.xp.exp(clipped)
        return 0.5 * (mean**2 + self.variance - 1 - clipped).mean()

    def backward(self, dy):
        scale = dy / self.mean.size
        return self.mean * scale, (self.variance - 1) * self.within * (0.5 * scale)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(variance)) || N(0, I)) divided by the number of elements, a scalar (appendix B).

    It is the mean of 1/2 (mean^2 + variance - 1 - log variance). Raises ValueError if the shapes differ.
    """
    _check("kl_divergence", mean.shape, log_variance.shape)
    return KLDivergence()(mean, log_variance)


def gaussian_kl(mean: Any, variance: Any, mean_hat: Any, variance_hat: Any, xp: Any = np) -> Any:
    """KL(N(mean, variance) || N(mean_hat, variance_hat)) of each element, nats. Arrays of the module xp broadcast."""
    ratio = variance / variance_hat
    return 0.5 * (ratio - 1 - xp.log(ratio) + (mean - mean_hat) ** 2 / variance_hat)


def byte_nll(x0: np.ndarray, mean: np.ndarray, std: Any) -> tuple[np.ndarray, np.ndarray]:
    """-log of the mass of N(mean, std^2) within half a byte of x0, nats, and its derivative by log std^2 (DDPM eq. 13).

    x0 holds bytes scaled to [-1, 1]. The interval of byte 0 extends to -infinity, that of byte 255 to infinity.
    Both results are float64, of the shape of x0; beyond 37 std the mass underflows, and the derivative is 0.
    """
    byte = np.rint(x0.astype(np.float64) * 127.5 + 127.5)
    low, high = (((byte + side - 127.5) / 127.5 - mean) / std for side in (-0.5, 0.5))
    low, high = np.where(byte == 0, -np.inf, low), np.where(byte == 255, np.inf, high)
    # above the mean both values of the distribution function are near 1 and their difference cancels: mirror it
    above = low + high > 0
    low, high = np.where(above, -high, low), np.where(above, -low, high)
    mass = 0.5 * (_erfc(-high / math.sqrt(2)) - _erfc(-low / math.sqrt(2)))
    mass = mass.clip(np.finfo(np.float64).tiny)
    return -np.log(mass), 0.5 * (_times_density(high) - _times_density(low)) / mass


_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # NumPy has none


def _times_density(z: np.ndarray) -> np.ndarray:
    """z times the density of N(0, 1); 0 where z is infinite."""
    z = z.clip(-40, 40)  # beyond, the density underflows
    return z * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


class BoundTerms(Function):
    def __init__(self, x0, mean, variance, mean_hat, decoder):
        self.x0, self.posterior, self.mean_hat, self.decoder = x0, (mean, variance), mean_hat, decoder

    def forward(self, log_variance):
        backend, (mean, variance) = self.backend, self.posterior
        variance_hat = backend.xp.exp(log_variance)
        terms = gaussian_kl(mean, variance, self.mean_hat, variance_hat, backend.xp)
        slope = 0.5 * (1 - (variance + (mean - self.mean_hat) ** 2) / variance_hat)
        if self.decoder.any():
            of = backend.xp.asarray(self.decoder)
            arrays = (backend.to_numpy(a[of]) for a in (self.mean_hat, variance_hat**0.5))
            nll = byte_nll(self.x0[self.decoder], *arrays)
            terms[of], slope[of] = (backend.asarray(a.astype(np.float32)) for a in nll)
        self.slope = slope / math.prod(slope.shape[1:])
        return terms.reshape(len(terms), -1).mean(1)

    def backward(self, dy):
        return (self.slope * dy.reshape(-1, *[1] * (self.slope.ndim - 1)),)


def bound_terms(
    log_variance: Tensor, x0: np.ndarray, mean: Any, variance: Any, mean_hat: Any, decoder: np.ndarray
) -> Tensor:
    """One term of the variational bound for each image, nats per dimension: (N,) (DDPM eq. 5).

    KL(N(mean, variance) || N(mean_hat, exp(log_variance))), or, where decoder (N,) bool is True, `byte_nll` of x0 under
    the second one. log_variance is (N, H, W, C); mean and mean_hat are arrays of that shape on its backend and receive
    no gradient, variance broadcasts with them; x0 is in host memory. Raises ValueError if a shape differs.
    """
    _check("bound_terms", log_variance.shape, x0.shape, mean.shape, mean_hat.shape)
    return BoundTerms(x0, mean, variance, mean_hat, decoder)(log_variance)


def _check(name: str, *shapes: tuple[int, ...]) -> None:
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: shapes {', '.join(map(str, shapes))} differ")
