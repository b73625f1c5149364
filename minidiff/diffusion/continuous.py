"""Continuous-time schedules: EDM and rectified flow, whose t is a real number.

Both papers write the noisy image x with other coefficients of x0 and eps than DDPM. Divided by the root of the sum of
their squares these are sqrt(alpha_bar) and sqrt(1 - alpha_bar), DDPM's eq. 4. So x_t means the same everywhere, every
sampler works with every prediction type, and each of the two defines only alpha_bar(t), the timestep distribution of
training, the network's input and the noise levels of sampling. The prediction target is in forward.py.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

RHO = 7  # Karras et al. (2022), section 3: larger values put more of the noise levels near sigma_min
SIGMA_DATA = 0.5  # the standard deviation of images in [-1, 1], about (ibid., table 1)


@dataclass(frozen=True)
class EDM:
    """Karras et al. 2022 (arXiv 2206.00364), table 1: t is sigma, the standard deviation of the noise.

    x = x0 + sigma eps, which is x_t / sqrt(alpha_bar), and D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) is x0_hat
    (`preconditioning`). Sampling goes from sigma_max to sigma_min and then to 0.
    Raises MinidiffError unless 0 < sigma_min < sigma_max <= 10000.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    prediction_type: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        sigmas = (self.sigma_min, self.sigma_max)
        if not all(type(s) in (int, float) for s in sigmas) or not 0 < self.sigma_min < self.sigma_max <= 10_000:
            raise MinidiffError(f"sigma_min, sigma_max = {sigmas}: give 0 < sigma_min < sigma_max <= 10000")

    def alpha_bar(self, t: Any) -> np.ndarray:
        """1 / (1 + sigma^2), in t's shape."""
        return 1 / (1 + np.square(_within(t, 1e-9, 1e9)))

    def sample_t(self, rng: Rng, n: int) -> np.ndarray:
        """Noise levels (n,) for a training step: ln sigma is normal with mean -1.2 and standard deviation 1.2."""
        return np.exp(1.2 * rng.standard_normal((n,), dtype=np.float64) - 1.2)

    def quantile(self, t: np.ndarray) -> np.ndarray:
        """Fraction of the training's noise levels below t, (N,) in [0, 1]: Phi((ln sigma + 1.2) / 1.2)."""
        return np.array([NormalDist(-1.2, 1.2).cdf(x) for x in np.log(t)])

    def at_quantile(self, u: np.ndarray) -> np.ndarray:
        """The inverse: the noise levels (N,) of quantiles u (N,) in [0, 1]."""
        return np.exp([NormalDist(-1.2, 1.2).inv_cdf(x) for x in np.clip(u, 2**-53, 1 - 2**-53)])

    def sampling_times(self, steps: int) -> np.ndarray:
        """The noise levels of sampling, (steps,) from sigma_max down to sigma_min (eq. 5)."""
        return karras(self.sigma_max, self.sigma_min, steps)

    def network_input(self, x_t: Any, signal: Any, noise: Any, t: np.ndarray) -> tuple[Any, np.ndarray]:
        """c_in x, which has unit variance, and c_noise (table 1): (N, H, W, C) and (N,)."""
        x, sigma = x_t / signal, noise / signal  # (N, H, W, C), (N, 1, 1, 1)
        _, _, c_in, _ = preconditioning(sigma)
        _, _, _, c_noise = preconditioning(t)
        return c_in * x, c_noise


def preconditioning(sigma: Any) -> tuple[Any, Any, Any, Any]:
    """c_skip, c_out, c_in and c_noise of EDM (Karras et al. 2022, table 1) in sigma's shape.

    The denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) is x0_hat, F is the network. Its input and its target
    (x0 - c_skip x) / c_out (eq. 8) have variance 1 at every sigma if x0's standard deviation is SIGMA_DATA.
    """
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5
    c_in = 1 / (sigma**2 + SIGMA_DATA**2) ** 0.5
    c_noise = np.log(sigma) / 4
    return c_skip, c_out, c_in, c_noise


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022, arXiv 2209.03003): x = (1 - t) x0 + t eps for t from 0 to 1.

    Here t = 0 is the image and t = 1 the noise, as in diffusers; the paper's time runs the other way. x is
    x_t / (sqrt(alpha_bar) + sqrt(1 - alpha_bar)). Given x0 and eps the path is a straight line; the model learns the
    mean velocity of the paths through (x, t), so its trajectories are curved.
    """

    prediction_type: ClassVar[str] = "flow"

    def alpha_bar(self, t: Any) -> np.ndarray:
        """(1 - t)^2 / ((1 - t)^2 + t^2), in t's shape."""
        t = _within(t, 0.0, 1.0)
        return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)

    def sample_t(self, rng: Rng, n: int) -> np.ndarray:
        """Times (n,) for a training step, uniform in [0, 1)."""
        return rng.random(n)

    def quantile(self, t: np.ndarray) -> np.ndarray:
        """Fraction of the training's times before t, (N,) in [0, 1]: t itself."""
        return np.asarray(t)

    def at_quantile(self, u: np.ndarray) -> np.ndarray:
        """The inverse: u itself."""
        return np.asarray(u)

    def sampling_times(self, steps: int) -> np.ndarray:
        """The times of sampling, (steps,) evenly from 1 down to 0.001; the last step goes from there to 0."""
        return np.linspace(1, 0.001, steps)

    def network_input(self, x_t: Any, signal: Any, noise: Any, t: np.ndarray) -> tuple[Any, np.ndarray]:
        """x and 1000 t, the range of DDPM's timesteps: (N, H, W, C) and (N,)."""
        return x_t / (signal + noise), 1000 * np.asarray(t)


def karras(largest: float, smallest: float, steps: int) -> np.ndarray:
    """(steps,) falling sigmas, denser near the smallest (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (largest ** (1 / RHO) + ramp * (smallest ** (1 / RHO) - largest ** (1 / RHO))) ** RHO


def _within(t: Any, low: float, high: float) -> np.ndarray:
    t = np.asarray(t, dtype=np.float64)
    if not np.all((t >= low) & (t <= high)):  # NaN is not
        raise MinidiffError(f"t must be from {low:g} to {high:g}, not {t.ravel()[:8].tolist()}")
    return t
