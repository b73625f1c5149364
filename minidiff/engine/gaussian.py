"""A normal distribution for every number, differentiable: a draw from it, and how far it is from the standard one.

Both take means and logarithms of variances, of one shape; the latter are kept within LOG_VARIANCES. Kingma & Welling
2014 (arXiv:1312.6114).
"""

import numpy as np

from minidiff.engine.tensor import Function, Tensor

LOG_VARIANCES = (-30, 20)  # as diffusers has it: exp of neither is 0 or infinite


class Draw(Function):
    def __init__(self, eps):
        self.eps = eps

    def forward(self, mean, log_variance):
        kept = log_variance.clip(*LOG_VARIANCES)
        self.within = kept == log_variance
        self.noise = self.backend.xp.exp(0.5 * kept) * self.backend.asarray(self.eps)  # std eps
        return mean + self.noise

    def backward(self, dy):
        return dy, 0.5 * dy * self.noise * self.within


def draw(mean: Tensor, log_variance: Tensor, eps: np.ndarray) -> Tensor:
    """mean + std eps, for eps that are standard normal: a draw with a gradient (section 2.4).

    Raises ValueError if the shapes differ.
    """
    _check("draw", mean.shape, log_variance.shape, eps.shape)
    return Draw(eps)(mean, log_variance)


class Divergence(Function):
    def forward(self, mean, log_variance):
        kept = log_variance.clip(*LOG_VARIANCES)
        self.mean, self.within, self.variance = mean, kept == log_variance, self.backend.xp.exp(kept)
        return 0.5 * (mean**2 + self.variance - 1 - kept).mean()

    def backward(self, dy):
        per = dy / self.mean.size
        return self.mean * per, (self.variance - 1) * self.within * (0.5 * per)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The mean over all numbers of KL(N(mean, variance) || N(0, 1)), a scalar (appendix B).

    Of each it is 1/2 (mean^2 + variance - 1 - log variance). Raises ValueError if the shapes differ.
    """
    _check("divergence", mean.shape, log_variance.shape)
    return Divergence()(mean, log_variance)


def _check(name: str, *shapes: tuple[int, ...]) -> None:
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: shapes {', '.join(map(str, shapes))} differ")
