"""The robot of docs/tuning.md: its four images, the figures, and the losses.

python docs/tuning_robot.py images FOLDER WORD      four images, with WORD in their captions.csv
python docs/tuning_robot.py losses MODEL RUN ...    losses on the robot's images, and on the emoji dataset's
python docs/tuning_robot.py figures MODEL RUNS      the two figures of the page, from its runs in the folder RUNS
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import minidiff as md
from minidiff.data.batches import evenly_spaced
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.captions import save_captions
from minidiff.data.dataset import from_arrays, subset
from minidiff.data.imaging import save_each, to_float, to_uint8
from minidiff.formats.embedding_files import LEARNED_EMBEDS
from minidiff.formats.run_networks import kept_state
from minidiff.formats.run_state import read_state
from minidiff.sampling.embeddings import with_words
from minidiff.sampling.text_to_image import encode
from minidiff.training.kinds.textual_inversion_run import initial_vectors

# Caption -> how far the pupils are moved to the right, whether it smiles.
LOOKS = {
    "{}": (0, True), "{} looking right": (5, True), "{}, neutral": (0, False), "{} looking left": (-5, False),
}  # fmt: skip
IMAGES = 512  # of a dataset's loss; the robot's four count as many times each
WORD, NAME = "<zibbo>", "zibbo robot"  # of textual inversion, of DreamBooth
COMBINED = ["blue {}", "{}, dark skin tone", "{} in love", "angry {}"]
KEPT = ["owl", "astronaut", "red apple", "cat face", "robot face", "rocket"]  # prompts of the third prior
SHOWN = ["robot face", "red apple", "cat face", "blue heart", "police officer"]


def robot(look: int, smiles: bool) -> np.ndarray:
    """(32, 32, 3) uint8."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.line((64, 8, 64, 30), (60, 60, 60), 6)
    draw.ellipse((54, 0, 74, 20), (250, 160, 20))
    draw.rounded_rectangle((22, 28, 106, 112), 20, (130, 60, 190))
    for x in (34, 68):
        draw.ellipse((x, 46, x + 26, 72), "white")
        draw.ellipse((x + 8 + look, 54, x + 20 + look, 66), (20, 20, 20))
        draw.rectangle((x, 112, x + 18, 126), (60, 60, 60))
    if smiles:
        draw.arc((44, 66, 84, 100), 20, 160, "white", 7)
    else:
        draw.line((46, 92, 82, 92), "white", 7)
    return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))


def robots(word: str):
    """The four images as a dataset, with the word in their captions."""
    images = np.stack([robot(*look) for look in LOOKS.values()])
    return from_arrays("robots", images, np.zeros(4), ("robot",), captions=tuple(look.format(word) for look in LOOKS))


def write_images(folder: Path, word: str) -> None:
    dataset = robots(word)
    folder.mkdir(parents=True)
    save_each(dataset.take(np.arange(4)), folder)
    save_captions(folder, [f"{i:05d}.png" for i in range(4)], dataset.captions)


def opened(model: Path, run: Path) -> tuple[md.TextPipeline, str]:
    """The pipeline of a run, and what it calls the robot."""
    if (run / LEARNED_EMBEDS).is_file():
        return md.with_embeddings(md.open_pipeline(model, kind="text"), [run]), WORD
    return md.open_pipeline(run, kind="text"), NAME


def loss(pipeline, dataset) -> float:
    """The training loss on IMAGES images, with the same timesteps and noise for every pipeline."""
    rng, losses = np.random.default_rng(0), []

    def model(x_t, t, cond):
        return pipeline.unet(x_t, t, pipeline.text_encoder(cond))

    for part in np.split(np.resize(np.arange(len(dataset)), IMAGES), IMAGES // 64):
        latents = encode(pipeline, to_float(dataset.take(part)), rng)
        t, eps = pipeline.schedule.sample_t(rng, len(part)), rng.standard_normal(latents.shape, dtype=np.float32)
        ids = pipeline.tokenizer([dataset.captions[i] for i in part])
        with md.no_grad():
            losses.append(float(md.training_loss(model, pipeline.schedule, latents, t, eps, ids).numpy()))
    return float(np.mean(losses))


def print_losses(model: Path, runs: list[Path]) -> None:
    emoji = md.open_dataset("emoji")
    emoji = subset(emoji, evenly_spaced(len(emoji), IMAGES))
    for run in (model, *runs):
        pipeline, name = opened(model, run)
        print(f"{run.name}: the robot {loss(pipeline, robots(name)):.3f}, emoji {loss(pipeline, emoji):.3f}")


def samples(pipeline, prompts: list[str]) -> np.ndarray:
    """An image of each prompt (N, H, W, C), from the same noise for every pipeline."""
    rng = np.random.default_rng(0)
    return to_uint8(md.text_to_image(pipeline, prompts, guidance=4, steps=50, rng=rng))


def figures(model: Path, runs: Path) -> None:
    base = md.open_pipeline(model, kind="text")
    first, width = initial_vectors(base, "robot"), base.text_encoder.config.hidden_size
    states = (read_state(kept_state(runs / "word", step)) for step in (100, 400))
    later = (state.buffers["ema"].read().reshape(-1, width) for state in states)
    prompts = [look.format(WORD) for look in (*LOOKS, *COMBINED)]
    rows = [samples(with_words(base, {WORD: vectors}), prompts) for vectors in (first, *later)]
    captioned_sheet(np.concatenate(rows), prompts * 3, columns=len(prompts)).save("docs/images/tuning-word.png")
    prompts = [*(look.format(NAME) for look in (*list(LOOKS)[::3], COMBINED[0])), *SHOWN]
    names = ("dreambooth", "dreambooth-class", "dreambooth-prompts", "dreambooth-emoji")
    rows = [samples(pipeline, prompts) for pipeline in (base, *(opened(model, runs / name)[0] for name in names))]
    captioned_sheet(np.concatenate(rows), prompts * 5, columns=len(prompts)).save("docs/images/tuning-dreambooth.png")


if __name__ == "__main__":
    command, first, *others = sys.argv[1:]
    if command == "images":
        write_images(Path(first), *others)
    elif command == "prompts":
        Path(first).write_text("\n".join(KEPT) + "\n")
    elif command == "losses":
        print_losses(Path(first), list(map(Path, others)))
    else:
        figures(Path(first), *map(Path, others))
