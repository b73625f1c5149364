"""The Noto emoji with their names as captions: 3,486 images of 32x32 on white.

emoji.npz, beside this file, was made from Google's font and is under its licence (emoji.LICENSE). It holds images,
captions, categories and subcategories, one per image. Flags are left out, since a country's name does not describe its
flag, and families, which are nearly identical grey silhouettes.
"""

from pathlib import Path

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.errors import MinidiffError

FILE = Path(__file__).with_name("emoji.npz")
SPLITS = ("train", "test")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

# The test split: these names, alone and after "woman " and "man ", in this tone. The training split has each of them in
# the four other tones, and each tone on about three hundred other names: only the combination is new.
WHO = ("", "woman ", "man ")
HELD_OUT = {
    "light": ("cook", "astronaut", "mechanic", "vampire", "girl"),
    "medium-light": ("firefighter", "judge", "police officer", "elf", "older man"),
    "medium": ("farmer", "singer", "detective", "mage", "baby"),
    "medium-dark": ("teacher", "pilot", "artist", "superhero", "boy"),
    "dark": ("scientist", "health worker", "construction worker", "fairy", "princess"),
}


def emoji(split: str = "train") -> Dataset:
    """The dataset, labelled by subcategory, such as food-fruit; its captions are the emoji's names, in lower case.

    "test" has those of `held_out_captions`, "train" all others. `mirrors` is false: there are letters,
    clocks, arrows, hands that point left or right, and people who face right.
    Raises MinidiffError if the split is another.
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
    """The captions of HELD_OUT, such as "woman cook, light skin tone"; some of them have no image."""
    return [f"{who}{name}, {tone} skin tone" for tone, names in HELD_OUT.items() for name in names for who in WHO]


def name_and_tone(caption: str) -> tuple[str, int | None]:
    """Of "cook, dark skin tone": "cook" and 4, the index in TONES. All of it and None if it has not one tone."""
    name, comma, rest = caption.rpartition(", ")
    tone = rest.removesuffix(" skin tone")
    return (name, TONES.index(tone)) if comma and tone in TONES else (caption, None)
