"""The two held-out characters of docs/lora.md: their images, how often samples show them, and the page's figure.

    python docs/lora_held_out.py images FOLDER          a folder of four images, with captions.csv, for each character
    python docs/lora_held_out.py measure FOLDER         what samples of the emoji model show with the LoRAs in a folder
    python docs/lora_held_out.py figure FOLDER          docs/images/lora-held-out.png, of the same

A run is named after its character and its seed, as in RUNS.

Neither has been used to choose any setting of `minidiff tune`: drawings, captions and contexts were fixed before the
first of them was trained. VARIED was added afterwards, to find out why one falls short.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from character import IMAGES, MODEL, Character, measure, samples, save_images
from PIL import Image

import minidiff as md
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.imaging import save_image
from minidiff.data.pen import Pen, mix, oval, pair, rgb, whole

INK, WHITE = rgb("3c3c3c"), rgb("ffffff")


def paper() -> tuple[Image.Image, Pen]:
    """An empty image, four times as large as it will be, and a pen for which it reaches from -1 to 1."""
    image = Image.new("RGB", (128, 128), "white")
    return image, Pen(image, (16, 16), (16, 16), 0)


def shrunk(image: Image.Image) -> np.ndarray:
    """(32, 32, 3) uint8."""
    return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))


def quimby(colour: str, right: float, mouth: str) -> np.ndarray:
    """A ball with three horns, one eye and two feet; its eye looks `right`, and its mouth is "smile", "o" or "flat"."""
    image, pen = paper()
    body, dark = rgb(colour), mix(rgb(colour), INK, 0.45)
    for outline in (*pair([(0.3, -0.5), (0.72, -0.98), (0.7, -0.3)]), [(-0.18, -0.6), (0, -1), (0.18, -0.6)]):
        pen.fill(outline, dark)
    for foot in pair(oval(0.36, 0.88, 0.28, 0.12)):
        pen.fill(foot, rgb("faa014"))
    pen.fill(oval(0, 0.12, 0.78, 0.76), body)
    pen.fill(oval(0, -0.06, 0.4, 0.4), WHITE)
    pen.fill(oval(right, -0.04, 0.19, 0.19), rgb("141414"))
    if mouth == "o":
        pen.fill(oval(0, 0.6, 0.14, 0.16), dark)
    else:
        low = 0.72 if mouth == "smile" else 0.54
        pen.line([(-0.34, 0.54), (-0.18, low), (0.18, low), (0.34, 0.54)], 0.1, dark)
    return shrunk(image)


def drovel(colour: str, tilt: float, flower: bool, winks: bool) -> np.ndarray:
    """A gnome with a striped green hat and a grey beard, the hat's tip to one side; with a flower, or winking."""
    image, pen = paper()
    pen.fill([(-0.66, 0.98), (-0.6, 0.5), (0, 0.34), (0.6, 0.5), (0.66, 0.98)], rgb("1e6eb4"))
    pen.fill(oval(0, 0.12, 0.54, 0.46), rgb(colour))
    pen.fill(whole([(0, 0.28), (0.36, 0.16), (0.54, 0.3), (0.4, 0.78), (0, 0.98)]), rgb("c8ccd2"))
    hat = [(-0.64, -0.1), (-0.3, -0.6), (tilt, -1), (0.3, -0.6), (0.64, -0.1), (0, -0.24)]
    pen.fill(hat, rgb("2e9a48"))
    with pen.inside(hat):
        pen.line([(-0.7, -0.32), (0, -0.44), (0.7, -0.32)], 0.13, rgb("f4e04a"))
    for x in (-0.22, 0.22):
        if winks and x > 0:
            pen.line([(x - 0.1, 0.04), (x + 0.1, 0.04)], 0.07, INK)
        else:
            pen.fill(oval(x, 0.04, 0.09, 0.1), INK)
    pen.fill(oval(0, 0.22, 0.13, 0.1), mix(rgb(colour), rgb("c03030"), 0.35))
    if flower:
        for petal in (oval(0.72, 0.36, 0.2, 0.1), oval(0.72, 0.36, 0.1, 0.2)):
            pen.fill(petal, rgb("e83c78"))
        pen.line([(0.72, 0.46), (0.66, 0.9)], 0.07, rgb("2e9a48"))
    return shrunk(image)


CHARACTERS = {
    "quimby": Character(
        quimby,
        {"quimby": (0, "smile"), "quimby, surprised": (0, "o"), "quimby looking right": (0.16, "smile"),
         "quimby looking left": (-0.16, "flat")},
        [(0.1, "flat"), (-0.1, "smile"), (0.1, "o"), (-0.1, "o")],
        {"quimby": "c83c96", "blue quimby": "5090e0", "green quimby": "5cb04c", "yellow quimby": "fcc828"},
    ),
    "drovel": Character(
        drovel,
        {"drovel": (0, False, False), "drovel with a flower": (0, True, False), "drovel, winking": (0, False, True),
         "old drovel": (0.3, False, False)},
        [(-0.3, False, False), (-0.2, True, False), (0.2, False, True), (0.15, True, True)],
        {"drovel": "ffca28", "drovel, medium-light skin tone": "e0bb95", "drovel, medium-dark skin tone": "a56c43",
         "drovel, dark skin tone": "70534a"},
    ),
}  # fmt: skip
# The same images, with the name at other places than the beginning of their captions.
VARIED = replace(
    CHARACTERS["quimby"],
    trained={"quimby": (0, "smile"), "surprised quimby": (0, "o"), "a quimby looking right": (0.16, "smile"),
             "the quimby looking left": (-0.16, "flat")},
)  # fmt: skip
RUNS = {"quimby": ("quimby-0", "quimby-1", "quimby-varied"), "drovel": ("drovel-0", "drovel-1")}


def measure_all(runs: Path) -> None:
    known = None
    for name, character in CHARACTERS.items():
        known = measure(character, [runs / run for run in RUNS[name]], known=known)


def save_figure(runs: Path) -> None:
    pipeline, rows, labels = md.open_pipeline(MODEL, kind="text"), [], []
    for name, character in CHARACTERS.items():
        rows.append(character.images)
        labels += [f"trained: {caption}" for caption in character.trained]
        for run in RUNS[name]:
            rows.append(samples(pipeline, character.colours, [(md.load_lora(runs / run, pipeline), 1.0)]))
            labels += [f"{prompt}: {run}" for prompt in character.colours]
    save_image(captioned_sheet(np.concatenate(rows), labels, columns=4), IMAGES / "lora-held-out.png")


def main(command, folder):
    if command == "images":
        for name, character in (CHARACTERS | {"quimby-varied": VARIED}).items():
            save_images(character, Path(folder) / name)
    elif command == "measure":
        measure_all(Path(folder))
    else:
        save_figure(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
