"""Noise schedules: the betas, and the tables that follow from them.

Every table is (T,) float64, one entry a timestep, and read-only.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import EDM, Flow
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

MAX_TIMESTEPS = 1_000_000
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # of schedules over whole timesteps


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise of T timesteps, and the prediction type of the model.

    betas            (T,) the variance that step t adds (DDPM eq. 2): 0 < beta < 1, and the last may be 1
    prediction_type  what the model predicts: "epsilon" (the noise), "sample" (x0) or "v_prediction" (v); for the
                     noise levels of EDM's or rectified flow's sampling, "edm" or "flow"
    name             diffusers' beta_schedule; "trained" for betas given as numbers
    beta_start, beta_end   the two parameters of the beta schedule, if it has them

    Raises MinidiffError for other betas, for an unknown prediction type, and for "epsilon" and "edm" with zero terminal
    SNR (a last beta of 1): x_t is pure noise there, so eps does not determine x0, and EDM's sigma is infinite.
    """

    betas: np.ndarray
    prediction_type: str = "epsilon"
    name: str = "trained"
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", _read_only(self.betas))
        _check_betas(self.betas)
        _check_alphas_cumprod(self.alphas_cumprod)
        check_prediction_type(self.prediction_type, (*PREDICTION_TYPES, "edm", "flow"))
        # zero in float32, the precision of images
        if self.prediction_type in ("epsilon", "edm") and self.alphas_cumprod[-1] < np.finfo(np.float32).tiny:
            raise MinidiffError(
                f"zero terminal SNR rules prediction_type {self.prediction_type!r} out: use 'v_prediction'"
            )

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def alpha_bar(self, t: Any) -> np.ndarray:
        """alphas_cumprod[t] in t's shape. Raises MinidiffError unless t is integers from 0 to T - 1."""
        return lookup(self.alphas_cumprod, t)

    def sample_t(self, rng: Rng, n: int) -> np.ndarray:
        """Timesteps (n,) for a training step, uniform (DDPM algorithm 1)."""
        return rng.integers(0, len(self), n)

    def quantile(self, t: np.ndarray) -> np.ndarray:
        """Fraction of the timesteps before t, (N,) in [0, 1)."""
        return np.asarray(t) / len(self)

    def at_quantile(self, u: np.ndarray) -> np.ndarray:
        """The inverse: t (N,) such that a fraction u of the timesteps, in [0, 1], is before it."""
        return np.minimum((np.asarray(u) * len(self)).astype(np.int64), len(self) - 1)

    @cached_property
    def alphas(self) -> np.ndarray:
        """alpha_t = 1 - beta_t (DDPM section 2)."""
        return _read_only(1 - self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar_t, the product of the alphas up to t: the squared coefficient of x0 in x_t (DDPM eq. 4)."""
        return _read_only(np.cumprod(self.alphas))

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """alphas_cumprod one timestep earlier; 1 (no noise) before the first."""
        return _read_only(np.append(1.0, self.alphas_cumprod[:-1]))

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """The variance of q(x_{t-1} | x_t, x0), DDPM's beta tilde (eq. 7): 0 at t = 0."""
        return _read_only((1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod) * self.betas)


# each has alpha_bar(t), sample_t(rng, n), its distribution's quantile(t) and at_quantile(u), and a prediction_type
AnySchedule = Schedule | EDM | Flow


def stratified_t(schedule: AnySchedule, rng: Rng, n: int) -> np.ndarray:
    """Timesteps (n,) of the training's distribution, one from each n-th of it, in random order.

    Each alone is distributed as by `sample_t`; together they cover all noise levels, so the mean loss of a batch
    varies less. Variational diffusion models (Kingma et al. 2021, arXiv 2107.00630) shift an even grid for that.
    """
    order = np.argsort(rng.random(n))
    return schedule.at_quantile((order + rng.random(n)) / n)


def linear_schedule(
    T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, prediction_type: str = "epsilon"
) -> Schedule:
    """Betas linear in t (DDPM section 4)."""
    _check_rule(T, beta_start, beta_end)
    betas = np.linspace(beta_start, beta_end, T)
    return Schedule(betas, prediction_type, "linear", beta_start, beta_end)


def scaled_linear_schedule(
    T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, prediction_type: str = "epsilon"
) -> Schedule:
    """Square roots of the betas linear in t (latent diffusion; the defaults are Stable Diffusion's)."""
    _check_rule(T, beta_start, beta_end)
    betas = np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    return Schedule(betas, prediction_type, "scaled_linear", beta_start, beta_end)


def cosine_schedule(T: int = 1000, prediction_type: str = "epsilon") -> Schedule:
    """alphas_cumprod a squared cosine (Nichol & Dhariwal eq. 17, s = 0.008), betas clipped at 0.999."""
    _check_rule(T)
    u = np.arange(T + 1) / T
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return Schedule(betas, prediction_type, "squaredcos_cap_v2")


def sigmoid_schedule(
    T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, prediction_type: str = "epsilon"
) -> Schedule:
    """Betas a sigmoid over -6 to 6: the schedule of GeoDiff (Xu et al., 2022), diffusers' "sigmoid".

    Not the one of Jabri et al. (2022), where alphas_cumprod is the sigmoid.
    """
    _check_rule(T, beta_start, beta_end)
    u = np.linspace(-6, 6, T)
    betas = beta_start + (beta_end - beta_start) / (1 + np.exp(-u))
    return Schedule(betas, prediction_type, "sigmoid", beta_start, beta_end)


def rescale_zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule rescaled to zero terminal SNR: x_{T-1} is pure noise (Lin et al. 2024, algorithm 1).

    Raises MinidiffError for prediction type "epsilon" (see Schedule) and for a single step.
    """
    if len(schedule) == 1:
        raise MinidiffError("a schedule of 1 step cannot be rescaled to zero terminal SNR: use 2 or more")
    root = np.sqrt(schedule.alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # the first is kept, the last becomes 0
    return from_alphas_cumprod(root**2, schedule.prediction_type)


def respace(schedule: Schedule, ts: np.ndarray) -> Schedule:
    """The schedule of sampling at the timesteps ts alone, strictly descending (Nichol & Dhariwal eq. 19).

    Timestep i of the result is the i-th smallest of ts: the same alpha_bar, with the beta from the next smaller one.
    """
    return from_alphas_cumprod(lookup(schedule.alphas_cumprod, ts)[::-1], schedule.prediction_type)


def from_alphas_cumprod(alpha_bar: np.ndarray, prediction_type: str = "epsilon") -> Schedule:
    """The schedule with these alphas_cumprod: (T,), falling."""
    return Schedule(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]), prediction_type)


def snr(schedule: AnySchedule, t: int | np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio of x_t, in t's shape (Salimans & Ho section 2)."""
    alpha_bar = schedule.alpha_bar(t)
    return alpha_bar / (1 - alpha_bar)


def lookup(table: np.ndarray, t: int | np.ndarray) -> np.ndarray:
    """table[t] for an int or an array of ints. Raises MinidiffError unless 0 <= t < T."""
    t = np.asarray(t)
    wrong = t[(t < 0) | (t >= len(table))] if t.dtype.kind in "iu" else t
    if wrong.size or t.dtype.kind not in "iu":
        raise MinidiffError(f"t must be integers from 0 to {len(table) - 1}, not {wrong.ravel()[:8].tolist()}")
    return table[t]


def check_prediction_type(prediction_type: str, known: tuple[str, ...]) -> None:
    """Raises MinidiffError for a prediction type that is not among the known ones."""
    if prediction_type not in known:
        raise MinidiffError(f"prediction_type {prediction_type!r:.80} is not supported: use one of {', '.join(known)}")


def _read_only(values: Any) -> np.ndarray:
    table = np.array(values, dtype=np.float64)
    table.setflags(write=False)
    return table


def _check_rule(T: int, *betas: float) -> None:
    if not isinstance(T, Integral) or isinstance(T, bool) or not 1 <= T <= MAX_TIMESTEPS:
        raise MinidiffError(f"num_train_timesteps must be an integer from 1 to {MAX_TIMESTEPS}, not {T!r:.80}")
    for beta in betas:
        if not isinstance(beta, float | int) or not 0 < beta < 1:
            raise MinidiffError(f"beta_start and beta_end must be floats between 0 and 1, not {beta!r:.80}")


def _check_betas(betas: np.ndarray) -> None:
    if betas.ndim != 1 or not 1 <= len(betas) <= MAX_TIMESTEPS:
        raise MinidiffError(f"betas must have shape (T,) with T from 1 to {MAX_TIMESTEPS}, not {betas.shape}")
    if not np.all((betas > 0) & (betas <= 1)):  # NaN is neither
        raise MinidiffError(f"betas must be between 0 and 1, not {betas.min()} to {betas.max()}")


def _check_alphas_cumprod(alpha_bar: np.ndarray) -> None:
    # a beta below float64's precision, or alpha_bar already 0
    stuck = np.flatnonzero(np.diff(alpha_bar, prepend=1.0) >= 0)
    if len(stuck):
        raise MinidiffError(f"alphas_cumprod does not fall at t = {stuck[0]}: use fewer steps or other betas")
