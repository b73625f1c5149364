"""A pen for smooth coloured shapes in coordinates of one's own, moved, scaled and tilted.

An outline is a list of a few points (x, y), x to the right and y down; the curve through them is smooth and
closed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

FINE = 4  # the image is so many times larger than the picture that it is averaged down to

Colour = tuple[int, int, int]
Outline = Sequence[tuple[float, float]] | np.ndarray


def rgb(text: str) -> Colour:
    """A colour in hexadecimal, such as "ff8000"."""
    r, g, b = bytes.fromhex(text)
    return r, g, b


def colours(text: str) -> list[Colour]:
    """Several of them, parted by spaces."""
    return [rgb(part) for part in text.split()]


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` (0 ... 1) of `other` in it."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(one, other, strict=True))
    return r, g, b


CIRCLE = np.array([(np.cos(angle), np.sin(angle)) for angle in np.arange(8) * np.pi / 4])


def oval(x: float, y: float, width: float, height: float) -> Outline:
    """An ellipse around (x, y) with these half axes."""
    return CIRCLE * (width, height) + (x, y)


def flip(outline: Outline) -> Outline:
    """The mirror image on the other side of x = 0."""
    return [(-x, y) for x, y in outline]


def pair(outline: Outline) -> list[Outline]:
    """An outline and its mirror image."""
    return [outline, flip(outline)]


def whole(right: list[tuple[float, float]]) -> Outline:
    """The outline whose right half, from top to bottom, is given; first and last lie on the middle line."""
    return [*right, *flip(right[-2:0:-1])]


CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2


@cache
def _curve_weights(n: int) -> np.ndarray:
    """(6n, n): turns n points into a closed curve through them, Catmull and Rom's cubic."""
    powers = (np.arange(6)[:, None] / 6) ** np.arange(4)  # (6, 4)
    neighbours = np.stack([np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1, 2)])  # (4, n, n)
    return np.einsum("tk,kin->itn", powers @ CATMULL_ROM, neighbours).reshape(6 * n, n)


class Pen:
    """Draws on an image. (0, 0) is at `place`, and 1 is `unit` long in x and in y, both in pixels of the
    picture, FINE times fewer than the image's; `tilt` (radians) turns the x axis towards y.
    """

    def __init__(self, image: Image.Image, place: tuple[float, float], unit: tuple[float, float], tilt: float):
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.origin = np.array(place) * FINE
        turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.axes = turn * np.array(unit)[:, None] * FINE

    def at(self, x: float, y: float, zoom: float = 1) -> "Pen":
        """The same pen with its (0, 0) at (x, y) and its unit `zoom` times as long."""
        pen = copy(self)
        pen.origin = (x, y) @ self.axes + self.origin
        pen.axes = self.axes * zoom
        return pen

    def _pixels(self, points) -> list[float]:
        return (np.asarray(points) @ self.axes + self.origin).ravel().tolist()

    def _curve(self, outline: Outline) -> list[float]:
        return self._pixels(_curve_weights(len(outline)) @ np.asarray(outline))

    def fill(self, outline: Outline, colour: Colour) -> None:
        """Fills the smooth closed curve through the points of `outline`."""
        self.draw.polygon(self._curve(outline), colour)

    def line(self, points: Outline, width: float, colour: Colour) -> None:
        """A line through points, rounded where it bends."""
        thick = round(width * float(np.hypot(*self.axes[1])))
        self.draw.line(self._pixels(points), colour, thick, joint="curve")

    @contextmanager
    def inside(self, *outlines: Outline) -> Iterator[None]:
        """What is drawn meanwhile shows only inside these curves."""
        before = self.image.copy()
        yield
        outside = Image.new("L", self.image.size, 255)
        for outline in outlines:
            ImageDraw.Draw(outside).polygon(self._curve(outline), 0)
        self.image.paste(before, mask=outside)
