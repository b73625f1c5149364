"""A built-in dataset: portraits of cats and dogs, drawn by this program on first use.

Every image is drawn with Pillow at four times its size and averaged down, from smooth shapes in the animal's own
coordinates: (0, 0) is the middle of the face, x runs to the right, y down, and 1 is half the width of the head. Coat,
markings, ears, eyes, mouth, pose, pullover and background are random.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from minidiff.data.dataset import Dataset
from minidiff.data.pen import FINE, Colour, Outline, Pen, colours, mix, oval, pair, rgb, whole

SIZE = 32  # side of an image in pixels

BACKDROPS = colours("a9dcc9 f8c9b4 f8df9b b5d0f4 d8c5f0 f5bccb 93cbe2 c5e0a0 7fbdb3 83a6d0 ec9f8d b79bd6")
DRESSES = colours("d94f4f 3f7fc4 3a9d78 8a5bbf e0782f")
IRISES = colours("8ecb57 f2b53a 62b3ee dd8a3c 4fbda4 c9cf4d")
SKY, HAZEL = colours("62b3ee 7a4a2c")
INK, WHITE, PINK, BLUSH, TONGUE, SOOT = colours("2b2530 ffffff f2a0a6 f4a29c ef7d8b 4a434c")


class Coat(NamedTuple):
    """Matching colours, and the markings that occur with them."""

    fur: Colour
    marking: Colour
    light: Colour
    patterns: list[str]
    soot: Colour = SOOT

    @property
    def dark(self) -> bool:
        """Whether INK has little contrast with the fur."""
        return sum(self.fur) < 330


def coats(table: str) -> list[Coat]:
    """One coat per line: fur, marking and light colour, and the names of its patterns, frequent ones repeated."""
    found = []
    for line in table.strip().splitlines():
        fur, marking, light, *patterns = line.split()
        found.append(Coat(rgb(fur), rgb(marking), rgb(light), patterns))
    return found


CAT_COATS = coats("""
    eca45c c8702f fdebd2 plain tabby tabby tuxedo
    f3dcb6 d8a96f fff8ea plain tabby patch
    9aa5b8 667086 e6eaf2 plain tabby tuxedo
    c9cdd9 878ea3 f8f9fc tabby tabby patch
    5b5c6d 3d3d4b f4f1ec tabby tuxedo
    423f4d 2d2b36 f6f2ee plain tuxedo tuxedo
    ad8762 6f5038 f0dfc8 tabby tabby tuxedo
    7d5847 533729 e9d2bd plain tabby tuxedo
    faf6f0 d9a268 ffffff plain tabby patch
    cf8a66 995638 f8e0cc tabby tuxedo
    f5e6cf 6b5148 c3a78f points
    f3e9dd 8a93a8 bcc0cb points
    f8ecd8 c98552 e8bd92 points
    fbf6ee e59a52 ffffff calico
""")
DOG_COATS = coats("""
    e8b96f bf8540 fcefd6 plain plain blaze
    d29e69 96633a f7e6ce plain blaze mask
    ab6a42 733f24 f4dfc6 plain blaze
    775340 4d3226 dcbfa3 plain blaze
    45434f 302e38 f3efe9 blaze hood
    f4e2c1 d5b07d fffaf1 plain monocle mask
    f8f4ed a8845f ffffff plain monocle monocle
    f8f4ed 4a464f ffffff spots
    a1a6b2 6a707e f1f3f6 plain hood hood
    cc754d 92472a fae3cf plain blaze hood
    7b8296 4f5568 f7f8fa hood hood blaze
    3e3a45 2b2932 d39a5e brows
    6a4a3a 4a3329 dba873 brows
""")

# Pattern -> field of Coat with the colour -> outlines to fill.
MARKINGS: dict[str, dict[str, list[Outline]]] = {
    "plain": {},
    "tabby": {
        "marking": [
            [(-0.1, -1), (0.1, -1), (0.06, -0.4), (-0.06, -0.4)],
            *pair([(0.24, -1), (0.46, -1), (0.3, -0.46), (0.22, -0.46)]),
            *pair([(1.3, 0.05), (1.3, 0.3), (0.72, 0.2)]),
        ]
    },
    "tuxedo": {"light": [whole([(0, -0.5), (0.12, -0.1), (0.5, 0.28), (0.8, 0.9), (0, 1.2)])]},
    "points": {"marking": [oval(0, 0.32, 0.46, 0.56), *pair(oval(0.85, -1.1, 0.4, 0.5))]},
    "patch": {"marking": [[(0.1, -0.9), (0.5, -1.6), (1.3, -1.4), (1.2, 0.1), (0.6, 0.26), (0.15, -0.1)]]},
    "calico": {
        "marking": [[(0.1, -0.9), (0.5, -1.6), (1.3, -1.4), (1.2, 0.1), (0.6, 0.26), (0.15, -0.1)]],
        "soot": [[(-0.25, -0.8), (-0.5, -1.6), (-1.3, -1.4), (-1.2, -0.1), (-0.8, 0), (-0.45, -0.4)]],
    },
    "blaze": {"light": [whole([(0, -1), (0.16, -0.9), (0.12, -0.3), (0.5, 0.3), (0.7, 1), (0, 1.2)])]},
    "hood": {"light": [whole([(0, -0.25), (0.3, -0.5), (0.75, -0.3), (0.9, 0.3), (0.7, 1), (0, 1.2)])]},
    "monocle": {"marking": [oval(0.42, -0.15, 0.38, 0.46)]},
    "mask": {"marking": [oval(0, 0.5, 0.64, 0.62)]},
    "spots": {"marking": [oval(-0.1, -0.72, 0.2, 0.15), oval(-0.76, 0.1, 0.2, 0.2), oval(0.7, 0.34, 0.2, 0.16)]},
    "brows": {"light": pair(oval(0.36, -0.44, 0.15, 0.1))},
}


def pick(rng: np.random.Generator, things: Sequence[Any]) -> Any:
    """A uniformly random element."""
    return things[int(rng.integers(len(things)))]


def backdrop(rng: np.random.Generator, fur: Colour) -> Image.Image:
    """A soft colour that contrasts with the fur: plain, shaded, or with a lighter disc."""
    contrast = {colour: sum(abs(a - b) for a, b in zip(colour, fur, strict=True)) for colour in BACKDROPS}
    colour = pick(rng, [colour for colour in BACKDROPS if contrast[colour] > 115])
    edge = SIZE * FINE
    image = Image.new("RGB", (edge, edge), colour)
    draw = ImageDraw.Draw(image)
    kind = pick(rng, ("plain", "shaded", "disc"))
    if kind == "shaded":
        for y in range(0, edge, FINE):
            shade = mix(mix(colour, WHITE, 0.35), mix(colour, INK, 0.06), y / edge)
            draw.rectangle((0, y, edge, y + FINE), shade)
    if kind == "disc":
        draw.ellipse((edge * 0.06, edge * 0.04, edge * 0.94, edge * 0.92), mix(colour, WHITE, 0.35))
    return image


def draw_shoulders(pen: Pen, rng: np.random.Generator, coat: Coat) -> None:
    """Shoulders below the chin, bare or in a pullover."""
    colour = pick(rng, (coat.fur, *DRESSES))
    pen.fill(whole([(0, 0.3), (0.5, 0.62), (0.8, 0.95), (0.95, 1.8), (0, 2)]), colour)
    pen.fill(oval(0, 0.72, 0.6, 0.22), mix(colour, INK, 0.25))


def draw_head(pen: Pen, face: Pen, coat: Coat, pattern: str, head: Outline, ears: list[Outline]) -> None:
    """Head and ears in fur, and on them the pattern, which moves with the face."""
    for outline in (*ears, head):
        pen.fill(outline, coat.fur)
    with pen.inside(*ears, head):
        for colour, outlines in MARKINGS[pattern].items():
            for outline in outlines:
                face.fill(outline, getattr(coat, colour))


def draw_eyes(face: Pen, smiling: bool, distance: float, size: float, iris: Colour, pupil: float) -> None:
    """Two eyes at x = -distance and distance: open, or shut in a smile."""
    for side in (-1, 1):
        eye = face.at(side * distance, 0, size)  # 1 is now the radius of the eye
        if smiling:
            eye.line([(-0.95, 0.45), (-0.6, -0.1), (0, -0.4), (0.6, -0.1), (0.95, 0.45)], 0.08 / size, INK)
            continue
        eye.fill(oval(0, 0, 1.1, 1.1), INK)
        eye.fill(oval(0, 0.02, 0.88, 0.88), iris)
        eye.fill(oval(0, 0.02, pupil, 0.85), INK)
        eye.fill(oval(-0.3, -0.36, 0.34, 0.34), WHITE)


CAT_HEADS = (
    whole([(0, -0.74), (0.5, -0.68), (0.88, -0.32), (1.02, 0.16), (0.8, 0.56), (0.4, 0.76), (0, 0.8)]),
    whole([(0, -0.74), (0.5, -0.66), (0.86, -0.3), (0.95, 0.1), (0.7, 0.52), (0.36, 0.78), (0, 0.84)]),
)


def draw_cat(pen: Pen, face: Pen, rng: np.random.Generator, coat: Coat) -> None:
    """A wide face between pointed ears; large coloured eyes, a small pink nose, whiskers."""
    pattern = pick(rng, coat.patterns)
    tip, top = rng.uniform(0.68, 0.9), rng.uniform(1.12, 1.26)
    ear = [(0.1, -0.55), (0.4, -0.96), (tip, -top), (tip + 0.08, -top), (1, -0.75), (0.96, -0.05)]
    draw_head(pen, face, coat, pattern, pick(rng, CAT_HEADS), pair(ear))
    for inner in pair([(0.42, -0.6), (0.54, -0.86), (tip + 0.03, 0.22 - top), (0.88, -0.72), (0.88, -0.4)]):
        pen.fill(inner, mix(PINK, coat.fur, 0.25))
    smiling = not coat.dark and rng.random() < 0.25
    distance = rng.uniform(0.43, 0.47)
    size = rng.uniform(0.24, 0.28)
    pupil = rng.uniform(0.4, 0.6)
    iris = SKY if pattern == "points" else pick(rng, IRISES)
    draw_eyes(face.at(0, -0.06), smiling, distance, size, iris, pupil)
    draw_cat_muzzle(face, rng, coat)


def draw_cat_muzzle(face: Pen, rng: np.random.Generator, coat: Coat) -> None:
    """Cheeks, mouth (with the tip of a tongue perhaps), nose and whiskers."""
    for side in (-1, 1):
        face.fill(oval(side * 0.17, 0.42, 0.26, 0.19), coat.light)
        if not coat.dark:
            face.fill(oval(side * 0.72, 0.32, 0.16, 0.11), mix(coat.fur, BLUSH, 0.6))
    if rng.random() < 0.3:
        face.fill(oval(0, 0.58, 0.12, 0.15), TONGUE)
    lips = [(-0.28, 0.38), (-0.2, 0.48), (-0.1, 0.5), (0, 0.42), (0.1, 0.5), (0.2, 0.48), (0.28, 0.38)]
    face.line(lips, 0.07, INK)
    face.line([(0, 0.28), (0, 0.44)], 0.06, INK)
    face.fill([(-0.14, 0.19), (0, 0.18), (0.14, 0.19), (0.04, 0.32), (-0.04, 0.32)], mix(TONGUE, INK, 0.1))
    for whisker in (*pair([(0.68, 0.34), (1.2, 0.26)]), *pair([(0.68, 0.46), (1.18, 0.54)])):
        face.line(whisker, 0.06, WHITE if coat.dark else mix(coat.fur, INK, 0.4))


DOG_HEADS = (
    whole([(0, -0.86), (0.48, -0.78), (0.82, -0.42), (0.88, 0.05), (0.74, 0.5), (0.42, 0.8), (0, 0.9)]),
    whole([(0, -0.86), (0.5, -0.8), (0.86, -0.42), (0.95, 0.1), (0.86, 0.52), (0.5, 0.82), (0, 0.9)]),
)
# An ear is two outlines: its base, a part of the head, and over it a flap (or an inside) in another shade.
HANGING_EARS = (
    [(0.5, -0.72), (0.82, -0.82), (1.12, -0.3), (1.22, 0.4), (1.0, 0.72), (0.8, 0.45), (0.78, -0.2)],
    [(0.4, -0.78), (0.8, -0.92), (1.2, -0.55), (1.16, 0.1), (0.98, 0.24), (0.76, -0.3)],
    [(0.55, -0.7), (0.9, -0.78), (1.26, -0.3), (1.28, 0.25), (1.02, 0.42), (0.8, 0.1)],
)
TIPPED_EAR = (
    [(0.2, -0.6), (0.5, -1.1), (0.9, -1.2), (1.1, -0.8), (0.84, -0.2)],
    [(0.46, -1.08), (0.9, -1.22), (1.28, -0.62), (1.14, -0.42), (0.8, -0.7)],
)
STANDING_EAR = (
    [(0.24, -0.6), (0.44, -1.0), (0.66, -1.24), (0.74, -1.22), (0.86, -0.8), (0.8, -0.2)],
    [(0.46, -0.75), (0.66, -1.06), (0.74, -0.78), (0.7, -0.5)],
)
DOG_EARS = (*zip(HANGING_EARS, HANGING_EARS, strict=True), TIPPED_EAR, STANDING_EAR)


def draw_dog(pen: Pen, face: Pen, rng: np.random.Generator, coat: Coat) -> None:
    """A long face with ears that hang, tip over or stand; dark eyes, and a muzzle with a big nose."""
    pattern = pick(rng, coat.patterns)
    # Standing ears only with patterns that no cat has and that cover enough of the face to tell it from a cat's.
    base, flap = pick(rng, DOG_EARS if pattern in ("blaze", "hood", "mask", "monocle") else DOG_EARS[:-1])
    draw_head(pen, face, coat, pattern, pick(rng, DOG_HEADS), pair(base))
    smiling = not coat.dark and rng.random() < 0.25
    distance = rng.uniform(0.36, 0.42)
    size = rng.uniform(0.16, 0.2)
    draw_eyes(face.at(0, -0.16), smiling, distance, size, iris=HAZEL, pupil=0.66)
    draw_dog_muzzle(face.at(0, 0, rng.uniform(1, 1.15)), rng, coat, pattern)
    for outline in pair(flap):
        pen.fill(outline, mix(coat.fur, coat.marking, rng.uniform(0.6, 1)))


def draw_dog_muzzle(face: Pen, rng: np.random.Generator, coat: Coat, pattern: str) -> None:
    """The light (or masked) snout, its mouth, with a tongue perhaps, and nose."""
    face.fill(oval(0, 0.42, 0.5, 0.42), mix(coat.marking, INK, 0.2) if pattern == "mask" else coat.light)
    if rng.random() < 0.6:
        face.fill(oval(0, 0.74, 0.16, 0.24), TONGUE)
    lips = [(-0.33, 0.44), (-0.25, 0.56), (-0.13, 0.6), (0, 0.52), (0.13, 0.6), (0.25, 0.56), (0.33, 0.44)]
    face.line(lips, 0.075, INK)
    face.line([(0, 0.25), (0, 0.52)], 0.06, INK)
    face.fill(oval(0, 0.2, 0.24, 0.17), INK)
    face.fill(oval(-0.07, 0.14, 0.08, 0.045), mix(INK, WHITE, 0.75))


def draw(rng: np.random.Generator, dog: bool) -> np.ndarray:
    """One portrait, (32, 32, 3) uint8."""
    coat = pick(rng, DOG_COATS if dog else CAT_COATS)
    image = backdrop(rng, coat.fur)
    place = rng.uniform(15.4, 16.6), rng.uniform(17.9, 18.7) - 0.8 * dog  # a cat's ears reach higher
    width = rng.uniform(11, 12)
    unit = width, width * rng.uniform(0.96, 1.04)
    tilt = np.deg2rad(rng.uniform(-8, 8))
    draw_shoulders(Pen(image, place, unit, tilt / 2), rng, coat)
    pen = Pen(image, place, unit, tilt)
    face = pen.at(rng.uniform(-0.1, 0.1), 0)  # a turned head: features move, the outline stays
    (draw_dog if dog else draw_cat)(pen, face, rng, coat)
    return np.asarray(image.reduce(FINE))  # (128, 128, 3) -> (32, 32, 3)


def cats_dogs(n: int = 10_000, seed: int = 0) -> Dataset:
    """`n` portraits, about half of them dogs; each is drawn on first use and cached.

    Image i is a function of (seed, i) alone, whatever n and the order of use; two threads at worst draw the same image
    twice.
    """
    labels = (np.random.default_rng(seed).random(n) < 0.5).astype(np.int64)
    images, drawn = np.empty((n, SIZE, SIZE, 3), np.uint8), np.zeros(n, bool)

    def take(indices: np.ndarray) -> np.ndarray:
        for i in indices[~drawn[indices]]:
            images[i] = draw(np.random.default_rng([seed, i]), bool(labels[i]))
            drawn[i] = True  # only now may another thread read it
        return images[indices]

    return Dataset("cats_dogs", take, labels, ("cat", "dog"), (SIZE, SIZE, 3), mirrors=False)
