"""AdamW over flat buffers, the exponential moving average (EMA) of the weights, learning-rate schedules."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidiff.engine.backend import Backend
from minidiff.engine.nn import Parameter
from minidiff.errors import MinidiffError


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with gradient clipping and weight EMA, in one pass over memory.

    The constructor turns every parameter's data and gradient into views of two flat arrays, `p` and `g`; m, v and
    ema have the same layout. So move a module to its backend first; loading copies in place.

    clip  maximum norm of all gradients together (Pascanu et al. 2013); None: no clipping
    ema   decay of the EMA (None: no EMA), with warm-up: min(ema, (1 + step) / (10 + step)); several decays: as many
          averages, `emas`, the first of which is `ema`
    A step whose gradient norm is not finite is skipped. `skipped` counts consecutive skipped steps up to the last step;
    `skipped_before` up to the step before it, which needs no synchronisation with a GPU.
    Raises ValueError if there are no parameters, one is given twice, or they are on different backends,
    MinidiffError on "numba-bf16".
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        ema: float | Sequence[float] | None = None,
    ):
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.clip = clip
        self.ema_decays: tuple[float, ...] = () if ema is None else tuple(np.atleast_1d(ema).tolist())
        self.step_count: int = 0
        self.skipped_before: int = 0
        self._norm: Callable | None = None  # returns the gradient norm of the last step
        if len(set(map(id, params))) != len(params) or len({p.backend for p in params}) != 1:
            raise ValueError("AdamW: give at least one parameter, each once, all on one backend")
        self.backend: Backend = params[0].backend
        if self.backend.name == "numba-bf16":
            raise MinidiffError("backend numba-bf16 is for sampling, not for training: choose numba")
        self.p: Any = self.backend.asarray(np.concatenate([p.numpy().ravel() for p in params]))  # (P,)
        xp = self.backend.xp
        self.g: Any = xp.zeros_like(self.p)
        self.m: Any = xp.zeros_like(self.p)
        self.v: Any = xp.zeros_like(self.p)
        self.emas: list[Any] = [self.p.copy() for _ in self.ema_decays]
        self.ema: Any = self.emas[0] if self.emas else None
        self.params: list[Parameter] = list(params)
        self.shapes: list[tuple[int, ...]] = [p.shape for p in params]
        for p, data, grad in zip(params, self.split(self.p), self.split(self.g), strict=True):
            p.data, p.grad = data, grad

    def split(self, flat: Any) -> list[Any]:
        """Views of a flat buffer (p, g, m, v or ema) with the parameters' shapes, in their order."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        return [flat[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, self.shapes, strict=True)]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the parameters hold their EMA, swapped in place so that views stay valid."""
        raw = self.p.copy()
        self.p[...] = self.ema
        try:
            yield
        finally:
            self.p[...] = raw

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.g[...] = 0

    def step(self) -> Any:
        """Update every parameter; returns the norm of all gradients before clipping, a 0-d array.

        If it is not finite, weights, moments and EMA stay unchanged; `step_count` still increases.
        """
        self.skipped_before = self.skipped
        self.step_count += 1
        norm = self.backend.grad_norm(self.g)
        self._norm = self.backend.later(norm)
        decays = [ema_decay(decay, self.step_count) for decay in self.ema_decays]
        clip = math.inf if self.clip is None else self.clip
        self._update(norm, clip, decays[0] if decays else 0.0)
        for decay, ema in zip(decays[1:], self.emas[1:], strict=True):
            self._update_ema(ema, decay, norm)
        return norm

    def _update(self, norm: Any, clip: float, ema_decay: float) -> None:
        """Update the weights and the first average."""
        self._adamw(slice(None), norm, clip, ema_decay)

    def _adamw(self, place: slice, norm: Any, clip: float, ema_decay: float) -> None:
        """Update a part of the flat buffers."""
        ema = None if self.ema is None else self.ema[place]
        self.backend.adamw(
            self.p[place], self.g[place], self.m[place], self.v[place], ema, norm, clip,
            self.lr, *self.betas, self.eps, self.weight_decay, self.step_count, ema_decay,
        )  # fmt: skip

    def _update_ema(self, ema: Any, decay: float, norm: Any) -> None:
        """One step of a further average; the kernel computes the first. No change if the step was skipped."""
        xp, dtype = self.backend.xp, self.p.dtype
        rate = xp.where(
            xp.isfinite(norm), xp.full((), 1 - decay, dtype), xp.zeros((), dtype)
        )  # a GPU is not waited for
        difference = self.p - ema
        difference *= rate
        ema += difference

    @property
    def skipped(self) -> int:
        """Number of consecutive skipped steps up to the last step; waits for a GPU."""
        if self._norm is None:
            return self.skipped_before
        return 0 if math.isfinite(float(self._norm())) else self.skipped_before + 1

    @skipped.setter
    def skipped(self, count: int) -> None:
        self.skipped_before = count
        self._norm = None


def ema_decay(decay: float, step: int) -> float:
    """EMA decay at a step (1, 2, ...): small at first, so that the average forgets the initial weights."""
    return min(decay, (1 + step) / (10 + step))


def half_life(steps: float) -> float:
    """EMA decay with a half-life of that many steps: 2^(-1 / steps)."""
    return 0.5 ** (1 / steps)


def half_life_of(decay: float) -> float:
    """The half-life in steps of an EMA decay, the inverse of `half_life`: ln 2 / -ln decay."""
    return math.log(2) / -math.log(decay)


def learning_rate(lr: float, step: int, steps: int, warmup: int, decay_from: float = 1.0) -> float:
    """Learning rate at a step (1..steps): linear warm-up over `warmup` steps, constant lr, cosine decay towards 0.

    decay_from  fraction of all steps after which the decay starts: 0.5 decays over the second half, 1 never.
    """
    warmup_factor = min(1.0, step / max(warmup, 1))
    start = decay_from * steps
    if step <= start:
        return lr * warmup_factor
    return lr * warmup_factor * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start + 1)))
