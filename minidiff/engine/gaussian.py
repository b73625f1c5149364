"""Diagonal Gaussians, differentiable: the reparameterised sample and the KL divergence from N(0, I).

Both take means and log-variances of the same shape and clip the log-variances to LOG_VARIANCES. Kingma & Welling 2014
(arXiv:1312.6114).
"""

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


def _check(name: str, *shapes: tuple[int, ...]) -> None:
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: shapes {', '.join(map(str, shapes))} differ")
