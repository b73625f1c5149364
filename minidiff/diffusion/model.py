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
    `training_loss` passes rng=rng too if it is given one, for dropout.
    """

    def __call__(self, x_t: np.ndarray, t: np.ndarray, /, *args: Any, **kwargs: Any) -> Any: ...


def evaluate(model: Model, x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
    """The model's prediction (N, H, W, C) without gradients, in host memory; with cond=cond unless that is None.

    Raises MinidiffError if its shape is not x_t's.
    """
    with no_grad():
        prediction = model(x_t, t) if cond is None else model(x_t, t, cond=cond)
    prediction = prediction.numpy() if hasattr(prediction, "numpy") else prediction
    if prediction.shape != x_t.shape:
        raise MinidiffError(f"the model predicts {prediction.shape} for x_t {x_t.shape}: both shapes must be equal")
    return prediction


def as_model(network: Model, schedule: AnySchedule) -> Model:
    """The network as a function of x_t and t, which `training_loss` and `sample` take.

    EDM's network takes c_in x and c_noise, rectified flow's x and 1000 t (continuous.py), any other x_t and t.
    """
    if isinstance(schedule, Schedule):
        return network

    def model(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        return network(*schedule.network_input(x_t, *signal_and_noise(schedule, t, x_t), t), **extras)

    return model
