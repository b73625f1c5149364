"""Smooth coloured shapes, drawn with Pillow in a translated, scaled and rotated coordinate system.

An outline is a list of a few points (x, y), x to the right and y down; a smooth closed curve runs through them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

FINE = 4  # supersampling factor: shapes are drawn at FINE times the size, then averaged

Colour = tuple[int, int, int]
Outline = Sequence[tuple[float, float]] | np.ndarray


def rgb(text: str) -> Colour:
    """A colour in hexadecimal, such as "ff8000"."""
    r, g, b = bytes.fromhex(text)
    return r, g, b


def colours(text: str) -> list[Colour]:
    """Several colours, separated by spaces."""
    return [rgb(part) for part in text.split()]


def mix(one: Colour, other: Colour, weight: float) -> Colour:
    """Linear interpolation from `one` (weight 0) to `other` (weight 1)."""
    r, g, b = (round(a + (z - a) * weight) for a, z in zip(one, other, strict=True))
    return r, g, b


CIRCLE = np.array([(np.cos(angle), np.sin(angle)) for angle in np.arange(8) * np.pi / 4])


def oval(x: float, y: float, width: float, height: float) -> Outline:
    """An ellipse around (x, y) with these semi-axes."""
    return CIRCLE * (width, height) + (x, y)


def flip(outline: Outline) -> Outline:
    """The outline mirrored at x = 0."""
    return [(-x, y) for x, y in outline]


def pair(outline: Outline) -> list[Outline]:
    """An outline and its mirror image."""
    return [outline, flip(outline)]


def whole(right: list[tuple[float, float]]) -> Outline:
    """The symmetric outline with this right half, from top to bottom; its first and last point are at x = 0."""
    return [*right, *flip(right[-2:0:-1])]


CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2


@cache
def _curve_weights(n: int) -> np.ndarray:
    """(6n, n) matrix that maps n points to 6n points of the closed Catmull-Rom spline through them."""
    powers = (np.arange(6)[:, None] / 6) ** np.arange(4)  # (6, 4)
    neighbours = np.stack([np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1, 2)])  # (4, n, n)
    return np.einsum("tk,kin->itn", powers @ CATMULL_ROM, neighbours).reshape(6 * n, n)


class Pen:
    """Draws on a supersampled image in coordinates of its own.

    place  position of (0, 0), in pixels of the final image, which is FINE times smaller
    unit   length of 1 in x and in y, in the same pixels
    tilt   rotation of the x axis towards y, in radians
    """

    def __init__(self, image: Image.Image, place: tuple[float, float], unit: tuple[float, float], tilt: float):
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.origin = np.array(place) * FINE
        rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.axes = rotation * np.array(unit)[:, None] * FINE

    def at(self, x: float, y: float, zoom: float = 1) -> "Pen":
        """The same pen with (0, 0) moved to (x, y) and units scaled by `zoom`."""
        pen = copy(self)
        pen.origin = (x, y) @ self.axes + self.origin
        pen.axes = self.axes * zoom
        return pen

    def _pixels(self, points: Outline) -> list[float]:
        return (np.asarray(points) @ self.axes + self.origin).ravel().tolist()

    def _curve(self, outline: Outline) -> list[float]:
        return self._pixels(_curve_weights(len(outline)) @ np.asarray(outline))

    def fill(self, outline: Outline, colour: Colour) -> None:
        """Fill the smooth closed curve through the points of `outline`."""
        self.draw.polygon(self._curve(outline), colour)

    def line(self, points: Outline, width: float, colour: Colour) -> None:
        """Draw a line through points, with round joints."""
        thick = round(width * float(np.hypot(*self.axes[1])))
        self.draw.line(self._pixels(points), colour, thick, joint="curve")

    @contextmanager
    def inside(self, *outlines: Outline) -> Iterator[None]:
        """Within this block, clip what is drawn to the insides of these curves."""
        before = self.image.copy()
        yield
        outside = Image.new("L", self.image.size, 255)
        for outline in outlines:
            ImageDraw.Draw(outside).polygon(self._curve(outline), 0)
        self.image.paste(before, mask=outside)
