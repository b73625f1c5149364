"""The robot of docs/lora.md: its images, how often samples show it, and the page's figures.

    python docs/lora_robot.py images FOLDER           four images, with captions.csv
    python docs/lora_robot.py measure RUN...          what samples of the emoji model show with each LoRA
    python docs/lora_robot.py figures FOLDER          docs/images/lora-*.png, of the runs in a folder

`measure` looks up the nearest of all emoji and of DRAWN, by the features of the emoji classifier (evaluation.md).
DRAWN has the robot with other looks than in the four images, with a yellow face as there, and in three skin tones.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import minidiff as md
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.captions import save_captions
from minidiff.data.dataset import from_arrays
from minidiff.data.emoji import emoji, name_and_tone
from minidiff.data.imaging import save_each, save_image, to_uint8
from minidiff.evaluation.feature_classifier import open_classifier
from minidiff.evaluation.prompt_agreement import nearest_captions, sample_prompts
from minidiff.formats.lora_files import LORA_WEIGHTS
from minidiff.formats.run_state import read_state, step_file
from minidiff.training import state

HERE = Path(__file__).parent
MODEL = HERE / "models" / "emoji"
SKIN = {"": "#ffca28", "light": "#fadcbc", "medium": "#bf8f68", "dark": "#594539"}  # of Noto's emoji, "" without a tone
LOOKS = [(3, 3, True), (-3, 3, True), (3, -3, False), (-3, -3, False)]  # as of TRAINED, and none of them
GUIDANCE, STEPS, SEED = 4.0, 10, 0
SAMPLES, CAPTIONS = 32, 512  # of each of the robot's prompts; random captions of the training set
KNOWN = ["green heart", "blue circle", "cat face", "woman astronaut, dark skin tone", "man farmer, light skin tone"]
# Caption -> how far the pupils are to the right and below, and whether the robot smiles.
TRAINED = {
    "zibbo": (0, 0, True),
    "zibbo looking right": (5, 0, True),
    "zibbo, neutral": (0, 0, False),
    "zibbo looking left": (-5, 0, True),
}


def robot(right, below, smiles, skin=""):
    """An image (32, 32, 3) uint8."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.line((64, 8, 64, 30), "#3c3c3c", 6)
    draw.ellipse((54, 0, 74, 20), "#faa014")
    draw.rounded_rectangle((22, 28, 106, 112), 20, "#823cbe")
    draw.rounded_rectangle((30, 38, 98, 104), 16, SKIN[skin])
    for x in (34, 68):
        draw.ellipse((x, 46, x + 26, 72), "white")
        draw.ellipse((x + 8 + right, 54 + below, x + 20 + right, 66 + below), "#141414")
        draw.rectangle((x, 112, x + 18, 126), "#3c3c3c")
    if smiles:
        draw.arc((44, 66, 84, 100), 20, 160, "#3c3c3c", 7)
    else:
        draw.line((46, 92, 82, 92), "#3c3c3c", 7)
    return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))


def save_images(folder):
    """Write the four training images and captions.csv into a folder."""
    names = [f"zibbo-{i}" for i in range(len(TRAINED))]
    folder.mkdir(parents=True)
    save_each(np.stack([robot(*look) for look in TRAINED.values()]), folder, names)
    save_captions(folder, [f"{name}.png" for name in names], list(TRAINED))


def prompt_of(skin):
    """The robot's caption, with a skin tone that training lacks."""
    return f"zibbo, {skin} skin tone" if skin else "zibbo"


def reference():
    """The dataset that samples are looked up in: all emoji, and the robot in LOOKS and all of SKIN."""
    parts = [emoji("train"), emoji("test")]
    drawn = [(robot(*look, skin), prompt_of(skin)) for skin in SKIN for look in LOOKS]
    images = np.concatenate([*(part.take(np.arange(len(part))) for part in parts), [image for image, _ in drawn]])
    captions = (*(caption for part in parts for caption in part.captions), *(caption for _, caption in drawn))
    return from_arrays("emoji and robot", images, np.zeros(len(images)), ("any",), captions=captions)


def right(prompts, nearest):
    """The fraction of images whose nearest caption has the prompt's name, and of those where it is the prompt."""
    pairs = list(zip(prompts, nearest, strict=True))
    name = np.mean([name_and_tone(a)[0] == name_and_tone(b)[0] for a, b in pairs])
    return float(name), float(np.mean([a == b for a, b in pairs]))


def measure(runs):
    """Print a row of figures for the model without a LoRA, and with each.

    In percent: samples of the robot's prompts whose nearest image is the robot (with the right skin tone); samples of
    captions of the training set whose nearest image has the name; the latter relative to the model without a LoRA.
    """
    pipeline, dataset, captions = md.open_pipeline(MODEL), reference(), emoji("train").captions
    classifier = open_classifier(emoji("train"), emoji("test"), "numba")
    known = [captions[i] for i in np.random.default_rng(SEED).permutation(len(captions))[:CAPTIONS]]
    prompts = [prompt_of(skin) for skin in SKIN for _ in range(SAMPLES)] + known
    groups = [slice(i * SAMPLES, (i + 1) * SAMPLES) for i in range(len(SKIN))]
    heads = "".join(f"{skin or 'no tone':>15}" for skin in SKIN)
    print(f"{'':10}   kB  {heads}    captions   kept", flush=True)
    before = None
    for run in (None, *runs):
        with md.merged_loras(pipeline, [] if run is None else [(md.load_lora(run, pipeline), 1.0)]):
            images = sample_prompts(pipeline, prompts, GUIDANCE, STEPS, SEED, lambda: None).images
        nearest = nearest_captions(images, dataset, classifier)
        size = 0 if run is None else (run / LORA_WEIGHTS).stat().st_size / 1000
        robots = [right(prompts[group], nearest[group]) for group in groups]
        name, _ = right(known, nearest[len(prompts) - CAPTIONS :])
        before = name if run is None else before
        shown = "".join(f"{100 * name:7.1f} ({100 * same:5.1f})" for name, same in robots)
        label = "without" if run is None else run.name
        print(f"{label:10} {size:4.0f}  {shown} {100 * name:11.1f} {100 * name / before:6.1f}", flush=True)


def lora_of_step(run, step, pipeline):
    """The LoRA that a run had at one of its checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        state.export(state.build_run(read_state(step_file(run, step))), Path(folder))
        return md.load_lora(folder, pipeline)


def sheet(name, pipeline, prompts, loras):
    """Write docs/images/lora-NAME.png: for each prompt a row, for each of loras, label -> LoRA or None, a column."""
    images = []
    for lora in loras.values():
        with md.merged_loras(pipeline, [] if lora is None else [lora]):
            for prompt in prompts:  # one by one: all start from the same noise
                rng = np.random.default_rng(SEED)
                images.append(to_uint8(md.text_to_image(pipeline, [prompt], guidance=GUIDANCE, steps=25, rng=rng))[0])
    grid = np.stack(images).reshape(len(loras), len(prompts), 32, 32, 3).swapaxes(0, 1).reshape(-1, 32, 32, 3)
    labels = [f"{prompt}: {label}" for prompt in prompts for label in loras]
    save_image(captioned_sheet(grid, labels, len(loras)), HERE / "images" / f"lora-{name}.png")


def save_figures(runs):
    """Write the page's figures, of runs named zibbo, forgets, rank-1 and rank-16."""
    pipeline = md.open_pipeline(MODEL)
    robots = [prompt_of(skin) for skin in SKIN]
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


def main(command, *places):
    folders = [Path(place) for place in places]
    {"images": lambda: save_images(*folders), "measure": lambda: measure(folders),
     "figures": lambda: save_figures(*folders)}[command]()  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
