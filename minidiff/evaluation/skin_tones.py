"""Which skin tone a drawn emoji has: the one whose colours its pixels come nearest to.

A palette is what differs when the same person is drawn in all five tones: of those pixels the commonest colours, which
are skin, skin in shade, and hair. Clothes and background are the same in all five, and are in none.
"""

import numpy as np

from minidiff.data.dataset import Dataset
from minidiff.data.emoji import TONES, name_and_tone
from minidiff.errors import MinidiffError

COLOURS = 4  # of a palette
CELL = 8  # grey values that count as one colour; a pixel differs if it does so by more, in every pair of tones
SPREAD = 8.0  # grey values: of a pixel's colour about that of the palette


def palettes(dataset: Dataset) -> np.ndarray:
    """The colours of each of TONES, (5, COLOURS, 3) in 0 ... 255, the commonest first.

    Raises MinidiffError for a set whose captions name nobody in all five tones.
    """
    people: dict[str, dict[int, int]] = {}  # name -> tone -> the picture's number
    for i, caption in enumerate(dataset.captions):
        name, tone = name_and_tone(caption)
        if tone is not None:
            people.setdefault(name, {})[tone] = i
    index = [[person[tone] for person in people.values() if len(person) == len(TONES)] for tone in range(len(TONES))]
    if not index[0]:
        raise MinidiffError(f"{dataset.name}: its captions name nobody in five skin tones; the set emoji does")
    images = np.stack([dataset.take(np.array(i)) for i in index]).astype(np.int64)  # (5, P, H, W, 3)
    pairs = [(a, b) for a in range(len(TONES)) for b in range(a)]
    apart = np.min([np.abs(images[a] - images[b]).max(-1) for a, b in pairs], axis=0) > CELL  # (P, H, W)
    return np.stack([_commonest(tone[apart]) for tone in images])


def _commonest(pixels: np.ndarray) -> np.ndarray:
    """The means (COLOURS, 3) of the fullest cells of side CELL, of pixels (n, 3)."""
    _, cell, count = np.unique(pixels // CELL, axis=0, return_inverse=True, return_counts=True)
    return np.stack([pixels[cell.ravel() == k].mean(0) for k in (-count).argsort(kind="stable")[:COLOURS]])


def nearest_tone(images: np.ndarray, palettes: np.ndarray) -> np.ndarray:
    """Of pictures (N, H, W, 3) uint8 the number of the nearest palette, (N,) in 0 ... 4; -1 where all are far off.

    Every pixel votes for every tone, by exp(-d^2 / (2 SPREAD^2)) with d the distance to the nearest colour of its
    palette: 1 for what is skin, next to nothing for the rest. All are far off if none gets the vote of a whole pixel.
    """
    tones = []
    for pixels in images[:, :, :, None, None].astype(np.float32):  # (H, W, 1, 1, 3)
        d2 = np.square(pixels - palettes.astype(np.float32)).sum(-1).min(-1)  # (H, W, 5)
        votes = np.exp(-d2 / (2 * SPREAD**2)).sum((0, 1))  # (5,)
        tones.append(votes.argmax() if votes.max() >= 1 else -1)
    return np.array(tones, np.int64)
