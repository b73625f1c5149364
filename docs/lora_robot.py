"""The robot of docs/lora.md: its images, how often samples show it, and the page's figures.

    python docs/lora_robot.py images FOLDER [WORD]    four images, with captions.csv; WORD in the place of zibbo
    python docs/lora_robot.py measure RUN...          what samples show with each LoRA, or with the new word <zibbo>
    python docs/lora_robot.py figures FOLDER          docs/images/lora-*.png, of the runs in a folder

`measure` (character.py) compares samples with the robot in other looks than in the four images, with a yellow face as
there, and in three skin tones.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from character import IMAGES, MODEL, Character, measure, samples, save_images
from PIL import Image, ImageDraw

import minidiff as md
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.imaging import save_image
from minidiff.formats.run_state import read_state, step_file
from minidiff.training import state

KNOWN = ["green heart", "blue circle", "cat face", "woman astronaut, dark skin tone", "man farmer, light skin tone"]


def robot(skin, right, below, smiles):
    """An image (32, 32, 3) uint8; right, below: how far the pupils are moved."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.line((64, 8, 64, 30), "#3c3c3c", 6)
    draw.ellipse((54, 0, 74, 20), "#faa014")
    draw.rounded_rectangle((22, 28, 106, 112), 20, "#823cbe")
    draw.rounded_rectangle((30, 38, 98, 104), 16, skin)
    for x in (34, 68):
        draw.ellipse((x, 46, x + 26, 72), "white")
        draw.ellipse((x + 8 + right, 54 + below, x + 20 + right, 66 + below), "#141414")
        draw.rectangle((x, 112, x + 18, 126), "#3c3c3c")
    if smiles:
        draw.arc((44, 66, 84, 100), 20, 160, "#3c3c3c", 7)
    else:
        draw.line((46, 92, 82, 92), "#3c3c3c", 7)
    return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))


ROBOT = Character(
    robot,
    {"zibbo": (0, 0, True), "zibbo looking right": (5, 0, True), "zibbo, neutral": (0, 0, False),
     "zibbo looking left": (-5, 0, True)},
    [(3, 3, True), (-3, 3, True), (3, -3, False), (-3, -3, False)],
    # of Noto's emoji
    {"zibbo": "#ffca28", "zibbo, light skin tone": "#fadcbc", "zibbo, medium skin tone": "#bf8f68",
     "zibbo, dark skin tone": "#594539"},
)  # fmt: skip


def lora_of_step(run, step, pipeline):
    """The LoRA that a run had at one of its checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        state.export(state.build_run(read_state(step_file(run, step))), Path(folder))
        return md.load_lora(folder, pipeline)


def sheet(name, pipeline, prompts, loras):
    """Write docs/images/lora-NAME.png: for each prompt a row, for each of loras, label -> LoRA or None, a column."""
    images = [samples(pipeline, prompts, [] if lora is None else [lora]) for lora in loras.values()]
    labels = [f"{prompt}: {label}" for prompt in prompts for label in loras]
    grid = np.stack(images, axis=1).reshape(-1, 32, 32, 3)
    save_image(captioned_sheet(grid, labels, len(loras)), IMAGES / f"lora-{name}.png")


def save_figures(runs):
    """Write the page's figures, of runs named zibbo, forgets, rank-1 and rank-16."""
    pipeline = md.open_pipeline(MODEL)
    robots = list(ROBOT.colours)
    final, forgets = (md.load_lora(runs / name, pipeline) for name in ("zibbo", "forgets"))
    steps = {f"step {n}": (lora_of_step(runs / "zibbo", n, pipeline), 1.0) for n in (100, 200, 300, 400)}
    sheet("training", pipeline, robots, {"before": None, **steps})
    ranks = {1: runs / "rank-1", 4: runs / "zibbo", 16: runs / "rank-16"}
    loras = {f"rank {rank}": (md.load_lora(run, pipeline), 1.0) for rank, run in ranks.items()}
    sheet("ranks", pipeline, robots, loras)
    kept = {"before": None, "with prior preservation": (final, 1.0), "without": (forgets, 1.0)}
    sheet("forgetting", pipeline, KNOWN, kept)
    weights = {f"weight {w:g}": (final, w) for w in (0, 0.25, 0.5, 0.75, 1)}
    sheet("weights", pipeline, robots[::3], weights)


def main(command, place, *more):
    if command == "images":
        save_images(ROBOT, Path(place), *more)
    elif command == "measure":
        measure(ROBOT, [Path(run) for run in (place, *more)], "<zibbo>")
    else:
        save_figures(Path(place))


if __name__ == "__main__":
    main(*sys.argv[1:])
