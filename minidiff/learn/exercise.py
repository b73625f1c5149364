"""What an exercise is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes, with what is needed to check it.

    title      a few words, for the list
    chapter    number of the chapter that it belongs to
    solution   the function as it should be. The reader is given its signature and its docstring, which says what to
               compute, with shapes; arguments and results are arrays, numbers, strings, or lists and dicts of them
    inputs     rng -> a list of argument tuples to compare answers on
    mistakes   functions of the solution's signature, each a typical wrong answer. Their docstrings are the hints
    image      answer -> an image made with it, to be looked at once the answer is right
    rtol       largest difference, relative to the largest absolute value of the result
    """

    title: str
    chapter: int
    solution: Answer
    inputs: Callable[[np.random.Generator], list[tuple[Any, ...]]]
    mistakes: tuple[Answer, ...]
    image: Callable[[Answer], "Image.Image"] | None = None
    rtol: float = 1e-6
