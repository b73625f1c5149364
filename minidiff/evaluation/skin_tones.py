"""The skin tone of an emoji: that of the palette whose colours are nearest to its pixels.

A palette holds colours of the pixels that differ between the five tones of one person: the most frequent ones, which
are skin, shaded skin and hair. Clothes and background are the same in all five tones and are in no palette.
"""

import numpy as np

from minidiff.data.dataset import Dataset
from minidiff.data.emoji import TONES, name_and_tone
from minidiff.errors import MinidiffError

COLOURS = 4  # of a palette
CELL = 8  # grey values: side of a histogram cell; a pixel differs between two tones if a channel differs by more
SIGMA = 8.0  # grey values: standard deviation of a pixel's colour about that of the palette


def palettes(dataset: Dataset) -> np.ndarray:
    """The most frequent colours of each of TONES, (5, COLOURS, 3) in 0 ... 255, in descending order of frequency.

    Raises MinidiffError if no name has captions in all five tones.
    """
    people: dict[str, dict[int, int]] = {}  # name -> tone -> image index
    for i, caption in enumerate(dataset.captions):
        name, tone = name_and_tone(caption)
        if tone is not None:
            people.setdefault(name, {})[tone] = i
    index = [[person[tone] for person in people.values() if len(person) == len(TONES)] for tone in range(len(TONES))]
    if not index[0]:
        raise MinidiffError(f"{dataset.name}: no caption names a person in all five skin tones; use the dataset emoji")
    images = np.stack([dataset.take(np.array(i)) for i in index]).astype(np.int64)  # (5, P, H, W, 3)
    pairs = [(a, b) for a in range(len(TONES)) for b in range(a)]
    differs = np.min([np.abs(images[a] - images[b]).max(-1) for a, b in pairs], axis=0) > CELL  # (P, H, W)
    return np.stack([_most_frequent(tone[differs]) for tone in images])


def _most_frequent(pixels: np.ndarray) -> np.ndarray:
    """The mean colours (COLOURS, 3) of the fullest histogram cells of side CELL, of pixels (n, 3)."""
    _, cell, count = np.unique(pixels // CELL, axis=0, return_inverse=True, return_counts=True)
    return np.stack([pixels[cell.ravel() == k].mean(0) for k in (-count).argsort(kind="stable")[:COLOURS]])


def nearest_tone(images: np.ndarray, palettes: np.ndarray) -> np.ndarray:
    """The index of the nearest palette of each image (N, H, W, 3) uint8, (N,) in 0 ... 4; -1 if none is near.

    Every pixel adds exp(-d^2 / (2 SIGMA^2)) to the score of every tone, d being the distance to the nearest colour of
    its palette: about 1 for skin, about 0 for other pixels. None is near if all scores are below 1.
    """
    tones = []
    for pixels in images[:, :, :, None, None].astype(np.float32):  # (H, W, 1, 1, 3)
        d2 = np.square(pixels - palettes.astype(np.float32)).sum(-1).min(-1)  # (H, W, 5)
        scores = np.exp(-d2 / (2 * SIGMA**2)).sum((0, 1))  # (5,)
        tones.append(scores.argmax() if scores.max() >= 1 else -1)
    return np.array(tones, np.int64)
