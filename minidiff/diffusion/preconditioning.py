"""Preconditioning of the network's input: EDM's c_in and c_noise, rectified flow's x and t."""

from typing import Any

import numpy as np

from minidiff.diffusion.forward import signal_and_noise
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import AnySchedule, Schedule


def as_model(network: Model, schedule: AnySchedule) -> Model:
    """The network as a function of x_t and t, which `training_loss` and `sample` take.

    EDM's network takes c_in x and c_noise, rectified flow's x and 1000 t (continuous.py), any other x_t and t.
    """
    if isinstance(schedule, Schedule):
        return network

    def model(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        return network(*schedule.network_input(x_t, *signal_and_noise(schedule, t, x_t), t), **extras)

    return model
