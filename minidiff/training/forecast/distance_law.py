"""The distance of samples as a function of the final loss, whatever the network's size and the number of images seen.

    distance = slope loss / (1 + exp((middle - loss) / width))

At a high loss samples are noisy patches of colour, and their distance is proportional to the loss. Around `middle` they
get textures and shapes, and the distance falls much faster. The form was chosen for the measurements of docs/law.md and
has no derivation. It has no irreducible part, though real images have a distance too: it holds in its range alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

GRID, ZOOMS = 24, 8  # values on a side of the grid; times that it is made finer around the best pair
KEPT = 3  # steps to each side of the best pair that the finer grid spans: the least error lies along a narrow valley
NARROWEST, WIDEST = 0.01, 0.5  # widths that are tried, in mean losses

Number = float | np.ndarray


@dataclass(frozen=True)
class DistanceLaw:
    """The constants, slope in distance per loss, the others in losses."""

    slope: float
    middle: float
    width: float

    def __call__(self, loss: Number) -> Any:
        return self.slope * loss / (1 + np.exp((self.middle - loss) / self.width))


def fit_distance_law(losses: np.ndarray, distances: np.ndarray) -> DistanceLaw:
    """The law with the least sum of squared relative errors at n points; both (n,), positive.

    Given middle and width the law is linear in the slope, so these two are searched for, on a grid that is made finer
    around the best pair. Raises ValueError for fewer points than the law has constants.
    """
    if len(losses) < 3:
        raise ValueError(f"{len(losses)} points: the law has 3 constants")
    middles = np.linspace(losses.min() / 2, losses.max(), GRID)
    widths = np.geomspace(NARROWEST, WIDEST, GRID) * losses.mean()
    best = (np.inf, DistanceLaw(0, 0, 1))
    for _ in range(ZOOMS + 1):
        for middle, width in np.stack(np.meshgrid(middles, widths), -1).reshape(-1, 2):
            relative = DistanceLaw(1.0, middle, width)(losses) / distances  # (n,), times the slope to be 1
            slope = relative.sum() / (relative**2).sum()
            error = ((slope * relative - 1) ** 2).sum()
            if error < best[0]:
                best = (error, DistanceLaw(float(slope), float(middle), float(width)))
        step, ratio = middles[1] - middles[0], widths[1] / widths[0]
        middles = np.linspace(best[1].middle - KEPT * step, best[1].middle + KEPT * step, GRID)
        widths = np.geomspace(best[1].width / ratio**KEPT, best[1].width * ratio**KEPT, GRID)
    return best[1]
