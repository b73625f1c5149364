"""The distance of samples as a function of the final loss, whatever the network's size and the number of images seen.

    distance = slope loss / (1 + exp((middle - loss) / width))

At a high loss samples are noisy patches of colour, and their distance is proportional to the loss. Around `middle` they
get textures and shapes, and the distance falls much faster. The form was chosen for the measurements of docs/law.md and
has no derivation. It has no irreducible part, though real images have a distance too: it holds in its range alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidiff.training.forecast.least_squares import least_squares

START = (1300.0, 0.13, 0.01)
Number = float | np.ndarray


@dataclass(frozen=True)
class DistanceLaw:
    """The constants, slope in distance per loss, the others in losses."""

    slope: float
    middle: float
    width: float

    def __call__(self, loss: Number) -> Any:
        return self.slope * loss * np.exp(-np.logaddexp(0, (self.middle - loss) / self.width))


def fit_distance_law(losses: np.ndarray, distances: np.ndarray) -> DistanceLaw:
    """The law with the least sum of squared relative errors, of logarithms, at n points; both (n,)."""
    return DistanceLaw(
        *least_squares(lambda constants: np.log(DistanceLaw(*constants)(losses) / distances), START).tolist()
    )
