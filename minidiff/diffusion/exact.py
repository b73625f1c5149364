"""The exact model: for a mixture of Gaussians the denoiser, the score and the density are known at every noise level.

Let x0 ~ sum_k w_k N(m_k, C_k); a finite set of images is the case C_k = 0. x_t, DDPM's eq. 4, is then a mixture with
the same weights. With r_k = p(k | x_t), the posterior probability of each component (its responsibility),

    p(x_t)       sum_k w_k N(x_t; sqrt(alpha_bar) m_k, S_k),     S_k = alpha_bar C_k + (1 - alpha_bar) I
    score        grad log p(x_t) = sum_k r_k s_k,                s_k = -S_k^-1 (x_t - sqrt(alpha_bar) m_k)
    E[x0 | x_t]  sum_k r_k (m_k - sqrt(alpha_bar) C_k s_k)
    E[eps | x_t] -sqrt(1 - alpha_bar) grad log p(x_t)            (Tweedie's formula)

All of it is computed in float64, through the eigenvectors of C_k, in which S_k is diagonal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minidiff.diffusion.forward import target
from minidiff.diffusion.schedule import AnySchedule
from minidiff.diffusion.sde import continuous_time
from minidiff.errors import MinidiffError


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The distribution sum_k w_k N(m_k, C_k) of x0, and that of x_t at every noise level.

    means        (K, D), for points (N, 1, 1, D), or (K, H, W, C), for images
    std          standard deviation of each component around its mean: a number, (K, 1), or (K, D) for one an axis; with
                 0 the mixture is a finite set
    weights      (K,) above 0; they are divided by their sum. None: equal weights
    labels       (K,) the class of each component, from 0. None: each is a class of its own
    covariances  (K, D, D), in the place of std

    x_t is float (N, H, W, C), alpha_bar a number or (N,), and the results are float64. cond (N,) int restricts the
    mixture to one class; the null class, one more than the largest label, and None stand for all classes.
    Raises MinidiffError for arrays that do not fit together, a negative std or weight, a covariance that is not
    symmetric and positive semidefinite, and a cond that is no label.
    """

    means: np.ndarray
    std: float | np.ndarray = 0.0
    weights: np.ndarray | None = None
    labels: np.ndarray | None = None
    covariances: np.ndarray | None = None

    def __post_init__(self) -> None:
        K = len(self.means)
        weights = np.ones(K) if self.weights is None else np.asarray(self.weights, np.float64)
        labels = np.arange(K) if self.labels is None else np.asarray(self.labels)
        object.__setattr__(self, "means", np.asarray(self.means, np.float64))
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "labels", labels)
        _check_mixture(self)
        _ = self._variances_and_axes  # refuses a std or covariances that do not fit

    @property
    def null(self) -> int:
        """The null class, which stands for all classes: the number of classes."""
        assert self.labels is not None
        return int(self.labels.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image; (1, 1, D) of a point."""
        return (1, 1, *self.means.shape[1:]) if self.means.ndim == 2 else self.means.shape[1:]

    def sample(self, n: int, rng: Any, cond: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples x0 (N, H, W, C), and the label of each, (N,). `q_sample` makes of them exact samples of x_t."""
        assert self.labels is not None
        cumulative = np.exp(self._log_weights(cond)).cumsum(1)  # (N or 1, K)
        k = (cumulative / cumulative[:, -1:] <= rng.random(n)[:, None]).sum(1)  # (N,)
        variances, axes = self._variances_and_axes
        x0 = np.sqrt(variances[k]) * rng.standard_normal((n, variances.shape[1]))  # (N, D)
        x0 = x0 if axes is None else np.einsum("nde,ne->nd", axes[k], x0)
        return self._as_images(self._flat_means[k] + x0), self.labels[k]

    def log_density(
        self, x_t: np.ndarray, alpha_bar: float | np.ndarray = 1.0, cond: np.ndarray | None = None
    ) -> np.ndarray:
        """log p(x_t), in nats: (N,)."""
        return _log_sum_exp(self._components(x_t, alpha_bar, cond)[0])

    def score(self, x_t: np.ndarray, alpha_bar: float | np.ndarray = 1.0, cond: np.ndarray | None = None) -> np.ndarray:
        """grad log p(x_t): (N, H, W, C)."""
        log_p, scores = self._components(x_t, alpha_bar, cond)
        return self._as_images(np.einsum("nk,nkd->nd", _responsibilities(log_p), scores))

    def x0_and_eps(
        self, x_t: np.ndarray, alpha_bar: float | np.ndarray, cond: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """E[x0 | x_t], the exact denoiser, and E[eps | x_t]: (N, H, W, C) each."""
        log_p, scores = self._components(x_t, alpha_bar, cond)
        signal, noise = (root[:, None] for root in _signal_and_noise(alpha_bar, len(x_t)))  # (N, 1)
        r = _responsibilities(log_p)
        x0 = r @ self._flat_means - signal * np.einsum("nk,nkd->nd", r, self._times_covariance(scores))
        eps = -noise * np.einsum("nk,nkd->nd", r, scores)
        return self._as_images(x0), self._as_images(eps)

    def class_probabilities(self, x_t: np.ndarray, alpha_bar: float | np.ndarray) -> np.ndarray:
        """p(class | x_t), the exact noisy classifier: (N, classes)."""
        r = _responsibilities(self._components(x_t, alpha_bar, None)[0])
        return r @ (self.labels == np.arange(self.null)[:, None]).T

    @cached_property
    def _flat_means(self) -> np.ndarray:
        return self.means.reshape(len(self.means), -1)  # (K, D)

    @cached_property
    def _variances_and_axes(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The eigenvalues (K, D) and eigenvectors (K, D, D) of the covariances; None: the axes are eigenvectors."""
        K, D = self._flat_means.shape
        if self.covariances is None:
            std = np.asarray(self.std, np.float64)
            if std.shape not in ((), (K, 1), (K, D)) or not np.all(std >= 0):
                raise MinidiffError(
                    f"std must be a number, ({K}, 1) or ({K}, {D}), and not negative: not {std.tolist()!s:.80}"
                )
            return np.broadcast_to(std**2, (K, D)), None
        C = np.asarray(self.covariances, np.float64)
        if C.shape != (K, D, D) or not np.allclose(C, C.swapaxes(1, 2)):
            raise MinidiffError(f"covariances must be symmetric and of shape {(K, D, D)}, not {C.shape}")
        variances, axes = np.linalg.eigh(C)
        if variances.min() < -1e-9 * variances.max():
            raise MinidiffError(f"covariances must be positive semidefinite: an eigenvalue is {variances.min():.3g}")
        return variances.clip(0), axes

    def _components(
        self, x_t: np.ndarray, alpha_bar: float | np.ndarray, cond: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """log(w_k p(x_t | k)), (N, K), and the score of each component, (N, K, D)."""
        if x_t.shape[1:] != self.shape:
            raise MinidiffError(f"x_t has shape {x_t.shape}, the mixture is of points (N, {str(self.shape)[1:]}")
        variances, axes = self._variances_and_axes
        signal, noise = (root[:, None, None] for root in _signal_and_noise(alpha_bar, len(x_t)))  # (N, 1, 1)
        S = signal**2 * variances + noise**2  # (N, K, D)
        if not S.all():
            raise MinidiffError("a mixture with std 0 has no density without noise: give an alpha_bar below 1")
        offset = x_t.reshape(len(x_t), 1, -1) - signal * self._flat_means  # (N, K, D)
        offset = offset if axes is None else np.einsum("kde,nkd->nke", axes, offset)
        log_p = self._log_weights(cond) - 0.5 * (offset**2 / S + np.log(2 * math.pi * S)).sum(2)  # (N, K)
        scores = -offset / S
        return log_p, scores if axes is None else np.einsum("kde,nke->nkd", axes, scores)

    def _times_covariance(self, scores: np.ndarray) -> np.ndarray:
        """C_k s_k: (N, K, D)."""
        variances, axes = self._variances_and_axes
        if axes is None:
            return variances * scores
        return np.einsum("kde,nke->nkd", axes, variances * np.einsum("kde,nkd->nke", axes, scores))

    def _log_weights(self, cond: np.ndarray | None) -> np.ndarray:
        """log p(k | cond): (N, K), or (1, K) without cond; -inf for the components of other classes."""
        assert self.weights is not None and self.labels is not None
        if cond is None:
            return np.log(self.weights)[None]
        cond = np.asarray(cond)
        if not np.isin(cond, [*self.labels, self.null]).all():
            raise MinidiffError(
                f"cond must be labels of the mixture or {self.null}, for all: not {cond.tolist()!s:.80}"
            )
        chosen = (cond[:, None] == self.labels) | (cond[:, None] == self.null)  # (N, K)
        weights = chosen * self.weights
        with np.errstate(divide="ignore"):  # log 0 is -inf
            return np.log(weights / weights.sum(1, keepdims=True))

    def _as_images(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(-1, *self.shape)


def exact_model(mixture: GaussianMixture, schedule: AnySchedule) -> Callable[..., np.ndarray]:
    """The model whose training loss is least: it predicts E[target | x_t], by the schedule's prediction type.

    The target is linear in x0 and eps, so its expectation is that of E[x0 | x_t] and E[eps | x_t].
    model(x_t, t, cond=None) takes x_t float (N, H, W, C), t a number or (N,) of them, and labels cond (N,) as
    `GaussianMixture` does; its prediction is of x_t's dtype. At a t between two timesteps log sigma is interpolated, as
    with Karras' noise levels.
    """
    real_time = continuous_time(schedule)

    def model(x_t: np.ndarray, t: Any, cond: np.ndarray | None = None) -> np.ndarray:
        x0, eps = mixture.x0_and_eps(x_t, real_time.alpha_bar(t), cond)
        return target(real_time, x0, t, eps).astype(x_t.dtype)

    return model


def _signal_and_noise(alpha_bar: float | np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar): (N,) each."""
    alpha_bar = np.asarray(alpha_bar, np.float64)
    if not np.all((alpha_bar >= 0) & (alpha_bar <= 1)):  # NaN is not
        raise MinidiffError(f"alpha_bar must be from 0 to 1, not {alpha_bar.tolist()!s:.80}")
    alpha_bar = np.broadcast_to(alpha_bar, (n,))
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def _log_sum_exp(log_p: np.ndarray) -> np.ndarray:
    """log sum_k exp(log_p): (N, K) -> (N,)."""
    largest = log_p.max(1, keepdims=True)
    return largest[:, 0] + np.log(np.exp(log_p - largest).sum(1))


def _responsibilities(log_p: np.ndarray) -> np.ndarray:
    """p(k | x_t), the softmax of log(w_k p(x_t | k)): (N, K)."""
    return np.exp(log_p - _log_sum_exp(log_p)[:, None])


def _check_mixture(mixture: GaussianMixture) -> None:
    means, weights, labels = mixture.means, mixture.weights, mixture.labels
    assert weights is not None and labels is not None
    if means.ndim not in (2, 4) or not means.size or not np.isfinite(means).all():
        raise MinidiffError(f"means must be finite, of shape (K, D) or (K, H, W, C), not {means.shape}")
    if weights.shape != means.shape[:1] or not np.all(weights > 0):  # NaN is not
        raise MinidiffError(f"weights must be ({len(means)},) and above 0, not {weights.tolist()!s:.80}")
    if labels.shape != means.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise MinidiffError(f"labels must be ({len(means)},) integers from 0, not {labels.tolist()!s:.80}")
