"""AdamW over flat buffers, the moving average of the weights, and learning rates over time."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minidiff.engine.nn import Parameter


class AdamW:
    """AdamW (Loshchilov & Hutter 2019), clipping and the moving average in the same pass over memory.

    At construction every parameter's data and gradient become views of two flat arrays, `p` and `g`; m, v
    and ema lie beside them. So a module is moved to its backend first, and loading copies in place.

    clip  the largest norm that all gradients together may have (Pascanu et al. 2013); None: any
    ema   decay of the moving average (None: none kept). It warms up: min(ema, (1 + step) / (10 + step))
    A step whose gradient is not finite is skipped; `skipped` counts those in a row up to the last step, and
    `skipped_before` up to the one before, which a GPU need not be waited for to know.
    Raises ValueError if there is no parameter, one stands twice, or they live on different backends.
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        ema: float | None = None,
    ):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.clip, self.ema_decay, self.step_count, self.skipped_before = clip, ema, 0, 0
        self._norm: Callable | None = None  # gives that of the last step
        if len(set(map(id, params))) != len(params) or len({p.backend for p in params}) != 1:
            raise ValueError("AdamW: give at least one parameter, each once, all on one backend")
        self.backend = params[0].backend
        self.p = self.backend.asarray(np.concatenate([p.numpy().ravel() for p in params]))  # (P,)
        xp = self.backend.xp
        self.g, self.m, self.v = (xp.zeros_like(self.p) for _ in range(3))
        self.ema = None if ema is None else self.p.copy()
        self.shapes = [p.shape for p in params]
        for p, data, grad in zip(params, self.split(self.p), self.split(self.g), strict=True):
            p.data, p.grad = data, grad

    def split(self, flat) -> list:
        """Views of a flat buffer (p, g, m, v or ema) in the shapes of the parameters, in their order."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        return [flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, self.shapes, strict=True)]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the parameters hold their moving average; in place, so that every view sees it."""
        own = self.p.copy()
        self.p[...] = self.ema
        try:
            yield
        finally:
            self.p[...] = own

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.g[...] = 0

    def step(self):
        """Update every parameter from its gradient; returns the norm of all gradients before clipping (0-d).

        If that is not finite, weights, moments and average stay as they are; the step is counted all the same.
        """
        self.skipped_before = self.skipped
        self.step_count += 1
        norm = self.backend.grad_norm(self.g)
        self._norm = self.backend.later(norm)
        decay = 0.0 if self.ema_decay is None else ema_decay(self.ema_decay, self.step_count)
        clip = math.inf if self.clip is None else self.clip
        self.backend.adamw(
            self.p, self.g, self.m, self.v, self.ema, norm, clip,
            self.lr, *self.betas, self.eps, self.weight_decay, self.step_count, decay,
        )  # fmt: skip
        return norm

    @property
    def skipped(self) -> int:
        """How many steps in a row were skipped, up to the last."""
        if self._norm is None:
            return self.skipped_before
        return 0 if math.isfinite(float(self._norm())) else self.skipped_before + 1

    @skipped.setter
    def skipped(self, count: int) -> None:
        self.skipped_before, self._norm = count, None


def ema_decay(decay: float, step: int) -> float:
    """The decay at a step (from 1): small at first, so that the average forgets the random start."""
    return min(decay, (1 + step) / (10 + step))


def half_life(steps: float) -> float:
    """The decay of a moving average in which weights count half as much that many steps later: 2^(-1 / steps)."""
    return 0.5 ** (1 / steps)


def learning_rate(lr: float, step: int, steps: int, warmup: int, decay_from: float = 1.0) -> float:
    """The rate at a step (1..steps): a linear rise over `warmup` steps, then lr, then half a cosine to zero.

    decay_from  the fraction of all steps after which it falls: 0.5 decays over the second half, 1 never.
    """
    rise = min(1.0, step / max(warmup, 1))
    start = decay_from * steps
    if step <= start:
        return lr * rise
    return lr * rise * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start + 1)))
