"""What the library needs of a source of random numbers."""

from typing import Any, Protocol

import numpy as np


class Rng(Protocol):
    """A source of random numbers: np.random.Generator, or `torch_generator`. Sizes are an int or a shape."""

    def standard_normal(self, size: Any, /, dtype: Any = ...) -> Any:
        """Normal numbers of mean 0 and standard deviation 1."""

    def integers(self, low: Any, high: Any, size: Any, /) -> Any:
        """Integers from low to high - 1, uniform, int64."""

    def random(self, size: Any, /) -> Any:
        """Numbers from [0, 1), uniform, float64."""


InitRng = np.random.Generator | None  # draws initial weights; None: zeros, to be loaded
