"""The Noto emoji with their names: 3,486 pictures of 32x32 on white, with captions to draw from.

emoji.npz, beside this file, was made from Google's drawings and is under their licence (emoji.LICENSE). It holds
images, captions, categories and subcategories, one a picture. Left out are flags, which no one would draw from their
country's name, and families, which are grey silhouettes, all but alike.
"""

from pathlib import Path

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.errors import MinidiffError

FILE = Path(__file__).with_name("emoji.npz")
SPLITS = ("train", "test")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

# Whom training never sees in which tone: those of that name, and the woman and the man of that name. Each of them is
# seen in the four other tones, and each tone on some three hundred others: only their combination is new.
WHO = ("", "woman ", "man ")
HELD_OUT = {
    "light": ("cook", "astronaut", "mechanic", "vampire", "girl"),
    "medium-light": ("firefighter", "judge", "police officer", "elf", "older man"),
    "medium": ("farmer", "singer", "detective", "mage", "baby"),
    "medium-dark": ("teacher", "pilot", "artist", "superhero", "boy"),
    "dark": ("scientist", "health worker", "construction worker", "fairy", "princess"),
}


def emoji(split: str = "train") -> Dataset:
    """The set, labelled by subcategory, such as food-fruit; its captions are the emoji's names, in lower case.

    "test" has those of `held_out_captions`, "train" all others. A mirror image is never the same emoji: there are
    letters, clocks, arrows, hands that point left or right, and people who walk to the right.
    Raises MinidiffError for another split.
    """
    if split not in SPLITS:
        raise MinidiffError(f"{split}: no such split; take {' or '.join(SPLITS)}")
    with np.load(FILE) as stored:
        captions, subcategories = stored["captions"], stored["subcategories"]  # (3486,) each
        chosen = np.isin(captions, held_out_captions()) == (split == "test")
        images = stored["images"][chosen]  # (N, 32, 32, 3)
    classes, labels = np.unique(subcategories, return_inverse=True)
    return from_arrays(
        "emoji",
        images,
        labels[chosen],
        tuple(classes.tolist()),
        mirrors=False,
        captions=tuple(captions[chosen].tolist()),
    )


def held_out_captions() -> list[str]:
    """The captions that belong to HELD_OUT, such as "woman cook, light skin tone"; not each of them has a picture."""
    return [f"{who}{name}, {tone} skin tone" for tone, names in HELD_OUT.items() for name in names for who in WHO]


def name_and_tone(caption: str) -> tuple[str, int | None]:
    """Of "cook, dark skin tone" cook and 4, the place in TONES; all of it and None if it names no tone, or two."""
    name, comma, rest = caption.rpartition(", ")
    tone = rest.removesuffix(" skin tone")
    return (name, TONES.index(tone)) if comma and tone in TONES else (caption, None)
