"""What the functions of this folder take as a model: its protocol, its evaluation, a network as a model."""

from typing import Any, Protocol

import numpy as np

from minidiff.diffusion.forward import signal_and_noise
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError


class Model(Protocol):
    """Any function model(x_t, t) or model(x_t, t, cond=cond): a network (`as_model`), or one built on it (`guided`).

    x_t is float (N, H, W, C), t (N,) timesteps, cond (N, ...) labels or embeddings, all in host memory. It returns the
    prediction, (N, H, W, C), that the schedule's prediction type names: an array, or a Tensor, which training needs.
    With a learned variance it is (N, H, W, 2 C), and the second half is v (`learned_log_variance`).
    `training_loss` passes rng=rng too if it is given one, for dropout.
    """

    def __call__(self, x_t: np.ndarray, t: np.ndarray, /, *args: Any, **kwargs: Any) -> Any: ...


def evaluate(model: Model, x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
    """The model's prediction (N, H, W, C) without gradients, in host memory; with cond=cond unless that is None.

    A learned variance is left out. Raises MinidiffError if the prediction's shape is not x_t's.
    """
    return evaluate_all(model, x_t, t, cond)[..., : x_t.shape[-1]]


def evaluate_all(model: Model, x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
    """The same with v of a learned variance, if the model predicts one: (N, H, W, C) or (N, H, W, 2 C)."""
    prediction = _evaluate(model, x_t, t, cond)
    if prediction.shape not in (x_t.shape, with_variance(x_t.shape)):
        raise MinidiffError(f"the model predicts {prediction.shape} for x_t {x_t.shape}: both shapes must be equal")
    return prediction


def evaluate_with_variance(model: Model, x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
    """The same with v of a learned variance, (N, H, W, 2 C). Raises MinidiffError if the model predicts none."""
    prediction = _evaluate(model, x_t, t, cond)
    if prediction.shape != with_variance(x_t.shape):
        raise MinidiffError(
            f"the model predicts {prediction.shape} for x_t {x_t.shape}, without a variance: use a variance other than "
            "learned_range, or a sampler other than ddpm"
        )
    return prediction


def with_variance(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, H, W, 2 C), the shape of a prediction with a learned variance, of (N, H, W, C)."""
    return (*shape[:-1], 2 * shape[-1])


def _evaluate(model: Model, x_t: np.ndarray, t: np.ndarray, cond: Any) -> np.ndarray:
    with no_grad():
        prediction = model(x_t, t) if cond is None else model(x_t, t, cond=cond)
    return prediction.numpy() if hasattr(prediction, "numpy") else prediction


def as_model(network: Model, schedule: AnySchedule) -> Model:
    """The network as a function of x_t and t, which `training_loss` and `sample` take.

    EDM's network takes c_in x and c_noise, rectified flow's x and 1000 t (continuous.py), any other x_t and t.
    """
    if isinstance(schedule, Schedule):
        return network

    def model(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        return network(*schedule.network_input(x_t, *signal_and_noise(schedule, t, x_t), t), **extras)

    return model
