"""What a sampling loop takes and yields.

A loop is a function of (predict, estimate, fresh_noise, levels, sampler, x_T). predict(x_t, t) is the model's
prediction; estimate(prediction, x_t, i) converts it to x0_hat and eps_hat at timestep i of levels.schedule, or of a
schedule given as a fourth argument; fresh_noise() is standard normal. It yields (t, x_t, x0_hat) after every step: the
timestep reached, the state there, and the model's latest estimate of x0 in that step.
"""

from collections.abc import Callable, Iterator

import numpy as np

Trajectory = Iterator[tuple[float, np.ndarray, np.ndarray]]
Predict = Callable[[np.ndarray, float], np.ndarray]
Estimate = Callable[..., tuple[np.ndarray, np.ndarray]]
Noise = Callable[[], np.ndarray]
