"""The built-in set: portraits of cats and dogs, drawn as they are asked for.

Every picture is drawn with Pillow at four times its size and averaged down, from smooth shapes in the
animal's own coordinates: (0, 0) is the middle of the face, x runs to the right, y down, and 1 is half the
width of the head. Chance chooses coat, markings, ears, eyes, expression, pose and backdrop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from minidiff.data.dataset import Dataset

SIZE = 32  # pixels of a picture
FINE = 4  # it is drawn this many times larger

Colour = tuple[int, int, int]


def _colours(text: str) -> tuple[Colour, ...]:
    return tuple((rgb[0], rgb[1], rgb[2]) for rgb in map(bytes.fromhex, text.split()))


# A coat is three colours that go together: fur, markings, and the light parts (muzzle, chest).
CAT_COATS = tuple(
    _colours(coat)
    for coat in (
        "eca45c c8702f fdebd2",  # ginger
        "f3dcb6 d8a96f fff8ea",  # cream
        "9aa5b8 667086 e6eaf2",  # blue
        "c9cdd9 878ea3 f8f9fc",  # silver
        "5b5c6d 3d3d4b f4f1ec",  # charcoal
        "423f4d 2d2b36 f6f2ee",  # black
        "ad8762 6f5038 f0dfc8",  # brown
        "7d5847 533729 e9d2bd",  # chocolate
        "faf6f0 d6a06a ffffff",  # white
        "cf8a66 995638 f8e0cc",  # cinnamon
    )
)
DOG_COATS = tuple(
    _colours(coat)
    for coat in (
        "e8b96f bf8540 fcefd6",  # golden
        "d29e69 96633a f7e6ce",  # tan
        "ab6a42 733f24 f4dfc6",  # chestnut
        "775340 4d3226 dcbfa3",  # chocolate
        "45434f 302e38 f3efe9",  # black
        "f4e2c1 d5b07d fffaf1",  # cream
        "f8f4ed a8845f ffffff",  # white
        "a1a6b2 6a707e f1f3f6",  # grey
        "cc754d 92472a fae3cf",  # red
        "8d93a5 555b6e f7f8fa",  # slate
    )
)
BACKDROPS = _colours("a9dcc9 f8c9b4 f8df9b b5d0f4 d8c5f0 f5bccb 93cbe2 c5e0a0 7fbdb3 83a6d0 ec9f8d b79bd6")
IRISES = _colours("8ecb57 f2b53a 62b3ee dd8a3c 4fbda4 c9cf4d")
INK, PINK, BLUSH, TONGUE = _colours("2b2530 f2a0a6 f4a29c ee7f8c")
WHITE: Colour = (255, 255, 255)

CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 28, endpoint=False)) for f in (np.cos, np.sin)], axis=1)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` (0 ... 1) of `other` in it."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(one, other, strict=True))
    return r, g, b


@cache
def _curve_weights(n: int) -> np.ndarray:
    """(6n, n): turns n points into a smooth closed curve through them (Catmull and Rom's cubic)."""
    t = np.arange(6)[:, None] / 6
    cubic = np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    weights = np.zeros((n, 6, n))
    for i in range(n):
        for j in range(4):
            weights[i, :, (i + j - 1) % n] += cubic[:, j]
    return weights.reshape(6 * n, n)


class Pen:
    """Draws in a face's own coordinates on a picture: moved to `place` (pixels), `unit` pixels to 1, tilted."""

    def __init__(self, image: Image.Image, place: tuple[float, float], unit: float, tilt: float):
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.unit = unit * FINE
        self.origin = np.array(place) * FINE
        self.turn = self.unit * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])

    def _pixels(self, points) -> list[float]:
        return (points @ self.turn + self.origin).ravel().tolist()

    def curve(self, points, colour: Colour, side: int = 1) -> None:
        """Fills the smooth closed curve through `points`; side = -1 mirrors it."""
        outline = _curve_weights(len(points)) @ np.array(points) * (side, 1)
        self.draw.polygon(self._pixels(outline), colour)

    def oval(self, x: float, y: float, width: float, height: float, colour: Colour, lean: float = 0) -> None:
        """Fills an ellipse of these half axes around (x, y), its lower end leaning to the left."""
        oval = CIRCLE * (width, height)
        oval[:, 0] -= lean * oval[:, 1]
        self.draw.polygon(self._pixels(oval + (x, y)), colour)

    def line(self, points, width: float, colour: Colour) -> None:
        """A line through points, rounded where it bends."""
        self.draw.line(self._pixels(np.array(points)), colour, round(width * self.unit), joint="curve")

    @contextmanager
    def inside(self, points) -> Iterator[None]:
        """What is drawn meanwhile shows only inside the smooth closed curve through `points`."""
        before = self.image.copy()
        yield
        outside = Image.new("L", self.image.size, 255)
        ImageDraw.Draw(outside).polygon(self._pixels(_curve_weights(len(points)) @ np.array(points)), 0)
        self.image.paste(before, mask=outside)

    def aside(self, x: float, y: float) -> "Pen":
        """The same pen with its (0, 0) moved: a head that turns moves its features and not its outline."""
        pen = copy(self)
        pen.origin = np.array(self._pixels(np.array([[x, y]])))
        return pen


def mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The outline whose right half, from top to bottom, is given; first and last lie on the middle line."""
    return right + [(-x, y) for x, y in right[-2:0:-1]]


CAT_HEAD = mirrored([(0, -0.74), (0.5, -0.68), (0.88, -0.32), (1.02, 0.16), (0.8, 0.56), (0.4, 0.76), (0, 0.8)])
DOG_HEAD = mirrored([(0, -0.86), (0.48, -0.78), (0.82, -0.42), (0.88, 0.05), (0.74, 0.5), (0.42, 0.8), (0, 0.9)])


def pick(rng, things):
    return things[rng.integers(len(things))]


def draw_cat(rng, image, coat, pen, pose):
    fur, mark, light = coat
    pattern = pick(rng, ("plain", "tabby", "tabby", "tuxedo", "points", "calico", "patch"))
    if pattern == "points":
        fur, mark, light = pick(rng, POINTS)
    if pattern == "calico":
        fur, mark, light = pick(rng, CALICO)
    ear = mark if pattern == "points" else fur
    pen.body(fur, light if pattern != "plain" else mix(fur, light, .5), rng)
    tall, wide = rng.uniform(-.12, .08), rng.uniform(-.08, .08)
    folded = rng.random() < .15
    for side in (-1, 1):
        colour = ear
        if pattern == "calico":
            colour = mark if side == 1 else CALICO_DARK
        if pattern == "patch" and side == 1:
            colour = mark
        cat_ear(pen, side, tall, wide, folded, colour, mix(PINK, ear, .25))
    pen.curve(CAT_HEAD, fur)
    face = pen.aside(pose * .1, 0)
    with pen.inside(CAT_HEAD):
        if pattern == "tabby":
            tabby(face, mark)
        if pattern == "tuxedo":
            face.curve(mirrored([(0, -.45), (.14, -.1), (.5, .3), (.8, .9), (0, 1.2)]), light)
        if pattern == "points":
            face.oval(0, .3, .52, .62, mix(fur, mark, .75))
        if pattern == "calico":
            face.curve([(.1, -.9), (1.1, -.9), (1.1, .2), (.5, .25), (.2, -.2)], mark)
            face.curve([(-.25, -.9), (-1.1, -.9), (-1.2, .0), (-.7, .1), (-.4, -.4)], CALICO_DARK)
        if pattern == "patch":
            face.curve([(.1, -.9), (1.1, -.9), (1.1, .2), (.5, .3), (.15, -.1)], mark)
    muzzle = light if pattern != "points" else mark
    for side in (-1, 1):
        face.oval(side * .17, .42, .26, .19, muzzle)
        face.oval(side * .72, .32, .16, .11, mix(fur, BLUSH, .6))
    mood = pick(rng, ("open", "open", "open", "open", "sleepy", "happy"))
    iris = pick(rng, IRISES) if pattern != "points" else IRISES[2]
    cat_eyes(face, rng, mood, iris, mark if pattern == "points" else fur)
    face.line([(0, .28), (0, .44)], .06, INK)
    face.curve([(-.13, .2), (0, .19), (.13, .2), (.04, .32), (-.04, .32)], mix(TONGUE, INK, .1))
    for side in (-1, 1):
        face.line([(0, .43), (side * .1, .51), (side * .22, .47)], .07, INK)
        hair = mix(light, INK, .25) if sum(fur) > 450 else light
        face.line([(side * .62, .36), (side * 1.2, .28)], .05, hair)
        face.line([(side * .62, .46), (side * 1.18, .54)], .05, hair)


def cat_ear(pen, side, tall, wide, folded, colour, inner):
    if folded:
        pen.curve([(.12, -.6), (.3, -.95), (.72, -1.1), (.98, -.8), (.98, -.1)], colour, side)
        pen.curve([(.3, -.92), (.74, -1.1), (.9, -.62), (.72, -.55)], mix(colour, INK, .2), side)
        return
    top = -1.3 - tall
    pen.curve([(.1, -.55), (.42, -1.0), (.74 + wide, top), (.82 + wide, top), (1.0, -.75), (.98, -.05)], colour, side)
    pen.curve([(.42, -.6), (.55, -.88), (.74 + wide, top + .24), (.87, -.72), (.88, -.4)], inner, side)


def tabby(face, mark):
    face.curve([(-.09, -1), (.09, -1), (.05, -.4), (-.05, -.4)], mark)
    for side in (-1, 1):
        face.curve([(.24, -1), (.44, -1), (.28, -.46), (.2, -.46)], mark, side)
        face.curve([(1.2, -.05), (1.2, .12), (.74, .12)], mark, side)
        face.curve([(1.2, .3), (1.2, .5), (.72, .4)], mark, side)


def cat_eyes(face, rng, mood, iris, fur):
    size, gap = rng.uniform(.23, .28), rng.uniform(.42, .47)
    slit = rng.uniform(.3, .65)
    for side in (-1, 1):
        x, y = side * gap, -.06
        if mood == "happy":
            face.line([(x - .22, y + .1), (x - .12, y - .06), (x, y - .1), (x + .12, y - .06), (x + .22, y + .1)], .1, INK)
            continue
        face.oval(x, y, size * 1.08, size * 1.08, INK)
        face.oval(x, y + .01, size * .88, size * .88, iris)
        face.oval(x, y, size * slit, size * .82, INK)
        face.oval(x - size * .3, y - size * .36, size * .32, size * .32, WHITE)
        if mood == "sleepy":
            face.oval(x, y - size * .95, size * 1.3, size * .8, fur)
            face.line([(x - size * 1.1, y - size * .2), (x + size * 1.1, y - size * .2)], .08, INK)


def draw_dog(rng, image, coat, pen, pose):
    fur, mark, light = coat
    pattern = pick(rng, ("plain", "blaze", "patch", "mask", "brows", "husky"))
    ears = pick(rng, ("long", "flap", "flap", "round", "pricked", "half"))
    if pattern == "brows":
        fur, mark, light = pick(rng, BROWS)
    pen.body(fur, light, rng)
    ear = pick(rng, (mark, mark, fur))
    behind = ears in ("pricked", "half")
    if behind:
        for side in (-1, 1):
            dog_ear(pen, side, ears, ear if pattern != 'husky' else fur, fur)
    pen.curve(DOG_HEAD, fur)
    face = pen.aside(pose * .1, 0)
    with pen.inside(DOG_HEAD):
        if pattern == "blaze":
            face.curve(mirrored([(0, -1), (.16, -.9), (.12, -.3), (.5, .3), (.7, 1), (0, 1.2)]), light)
        if pattern == "husky":
            face.curve(mirrored([(0, -.25), (.3, -.5), (.75, -.3), (.85, .3), (.7, 1), (0, 1.2)]), light)
        if pattern == "patch":
            face.oval(.42, -.15, .38, .46, mark)
        if pattern == "mask":
            face.oval(0, .5, .64, .62, mark)
    if pattern == "brows":
        for side in (-1, 1):
            face.oval(side * .36, -.42, .15, .1, light)
    muzzle = light if pattern != "mask" else mix(mark, INK, .2)
    snout = face.aside(pose * .06, 0)
    snout.oval(0, .42, .5, .4, muzzle)
    dog_eyes(face, rng, fur)
    tongue = rng.random() < .5
    if tongue:
        snout.oval(0, .74, .15, .22, TONGUE)
    snout.line([(0, .25), (0, .56)], .06, INK)
    for side in (-1, 1):
        snout.line([(0, .56), (side * .13, .63), (side * .28, .55)], .075, INK)
    snout.oval(0, .2, .23, .16, INK)
    snout.oval(-.07, .14, .07, .04, mix(INK, WHITE, .7))
    if not behind:
        for side in (-1, 1):
            dog_ear(pen, side, ears, mix(fur, mark, .8) if ear == fur else ear, fur)


def dog_ear(pen, side, kind, colour, fur):
    if kind == "long":
        pen.curve([(.5, -.72), (.82, -.82), (1.12, -.3), (1.22, .4), (1.0, .72), (.8, .45), (.78, -.2)], colour, side)
    if kind == "flap":
        pen.curve([(.4, -.78), (.8, -.92), (1.2, -.55), (1.16, .1), (.98, .24), (.76, -.3)], colour, side)
    if kind == "round":
        pen.curve([(.55, -.7), (.9, -.78), (1.26, -.3), (1.28, .25), (1.02, .42), (.8, .1)], colour, side)
    if kind == "pricked":
        pen.curve([(.2, -.6), (.42, -1.2), (.58, -1.42), (.72, -1.3), (.86, -.8), (.8, -.2)], colour, side)
        pen.curve([(.42, -.75), (.56, -1.2), (.7, -.8), (.7, -.5)], mix(PINK, colour, .4), side)
    if kind == "half":
        pen.curve([(.2, -.6), (.5, -1.1), (.9, -1.2), (1.1, -.8), (.84, -.2)], fur, side)
        pen.curve([(.46, -1.08), (.9, -1.22), (1.28, -.62), (1.14, -.42), (.8, -.7)], mix(colour, INK, .15), side)


def dog_eyes(face, rng, fur):
    size, gap = rng.uniform(.15, .19), rng.uniform(.36, .42)
    mood = pick(rng, ("open", "open", "open", "happy"))
    for side in (-1, 1):
        x, y = side * gap, -.16
        if mood == "happy":
            face.line([(x - .18, y + .08), (x - .1, y - .06), (x, y - .1), (x + .1, y - .06), (x + .18, y + .08)], .1, INK)
            continue
        face.oval(x, y, size, size * 1.1, INK)
        face.oval(x - size * .3, y - size * .4, size * .42, size * .42, WHITE)


POINTS = [_colours("f5e6cf 6b5148 f5e6cf"), _colours("f3e9dd 8a93a8 f3e9dd"), _colours("f8ecd8 c98552 f8ecd8")]
CALICO = [_colours("fbf6ee e59a52 ffffff")]
CALICO_DARK = _colours("4a434c")[0]
BROWS = [_colours("3e3a45 2b2932 d39a5e"), _colours("6a4a3a 4a3329 dba873")]


def body(pen, fur, light, rng):
    pen.curve(mirrored([(0, .3), (.6, .6), (.85, 1.3), (.95, 2.4), (0, 2.6)]), fur)
    pen.oval(0, 1.3, .42, .6, light)
    pen.oval(0, .78, .62, .22, mix(fur, INK, .25))
    if rng.random() < .6:
        colour = pick(rng, COLLARS)
        pen.line([(-.62, .84), (-.3, 1.0), (0, 1.04), (.3, 1.0), (.62, .84)], .17, colour)
        pen.oval(0, 1.12, .13, .13, TAG)

Pen.body = lambda pen, *a: body(pen, *a)
COLLARS = _colours("d94f4f 3f7fc4 3a9d78 8a5bbf e0782f")
TAG = _colours("ffd35c")[0]


def backdrop(rng, fur):
    colours = [c for c in BACKDROPS if sum(abs(a - b) for a, b in zip(c, fur)) > 90]
    colour = pick(rng, colours)
    image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), colour)
    d = ImageDraw.Draw(image)
    kind = pick(rng, ("flat", "halo", "floor", "gradient"))
    W = SIZE * FINE
    if kind == "halo":
        d.ellipse([W * .06, W * .04, W * .94, W * .92], mix(colour, WHITE, .35))
    if kind == "floor":
        d.rectangle([0, W * .78, W, W], mix(colour, INK, .12))
    if kind == "gradient":
        for y in range(0, W, 4):
            d.rectangle([0, y, W, y + 3], mix(mix(colour, WHITE, .3), mix(colour, INK, .06), y / W))
    return image


def draw(rng, label):
    coat = pick(rng, DOG_COATS if label else CAT_COATS)
    image = backdrop(rng, coat[0])
    place = (16 + rng.uniform(-1, 1), 16 + rng.uniform(-.7, .7))
    pen = Pen(image, place, rng.uniform(9.4, 10.8), np.deg2rad(rng.uniform(-9, 9)))
    (draw_dog if label else draw_cat)(rng, image, coat, pen, rng.uniform(-1, 1))
    return np.asarray(image.reduce(FINE))


def cats_dogs(n: int = 10_000, seed: int = 0) -> Dataset:
    labels = (np.random.default_rng(seed).random(n) < 0.5).astype(np.int64)
    images, drawn = np.empty((n, SIZE, SIZE, 3), np.uint8), np.zeros(n, bool)

    def take(indices):
        for i in np.asarray(indices)[~drawn[indices]]:
            images[i] = draw(np.random.default_rng([seed, i]), labels[i])
            drawn[i] = True
        return images[indices]

    return Dataset("cats_dogs", take, labels, ("cat", "dog"), (SIZE, SIZE, 3))
