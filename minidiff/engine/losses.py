"""What training makes small, differentiable as the rest."""

import numpy as np

from minidiff.engine.tensor import Function, Tensor


class MSE(Function):
    def __init__(self, target, weight):
        self.target, self.weight = target, weight

    def forward(self, prediction):
        self.error = prediction - self.backend.asarray(self.target)
        self.weighted = self.error if self.weight is None else self.error * self.backend.asarray(self.weight)
        return (self.error * self.weighted).mean()

    def backward(self, dy):
        return (self.weighted * (dy * 2 / self.error.size),)


def mse(prediction: Tensor, target: np.ndarray, weight: np.ndarray | None = None) -> Tensor:
    """The mean of weight (prediction - target)^2 over all numbers; a scalar.

    weight: (N, 1, 1, ...), one number a picture; 1 if not given.
    Raises ValueError if a shape does not fit: broadcasting would hide a mistake.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"mse: prediction {prediction.shape} and target {target.shape} differ in shape")
    if weight is not None and weight.shape != (prediction.shape[0],) + (1,) * (len(prediction.shape) - 1):
        raise ValueError(f"mse: weight {weight.shape} for a prediction {prediction.shape}; give (N, 1, 1, ...)")
    return MSE(target, weight)(prediction)
