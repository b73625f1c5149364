"""A new character for a model that knows the emoji dataset: its images, and how often samples show it.

An image counts as what its nearest neighbour shows in the features of the emoji classifier (evaluation.md), among all
emoji and the character in looks that training does not have, as its captions name it and in its new contexts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minidiff as md
from minidiff.data.captions import save_captions
from minidiff.data.dataset import Dataset, from_arrays
from minidiff.data.emoji import emoji, name_and_tone
from minidiff.data.imaging import save_each, to_uint8
from minidiff.evaluation.feature_classifier import open_classifier
from minidiff.evaluation.prompt_agreement import nearest_captions, sample_prompts
from minidiff.formats.embedding_files import LEARNED_EMBEDS
from minidiff.formats.lora_files import LORA_WEIGHTS

MODEL = Path(__file__).parent / "models" / "emoji"
IMAGES = Path(__file__).parent / "images"
GUIDANCE, STEPS, SEED = 4.0, 10, 0
SAMPLES, CAPTIONS = 32, 512  # of each of the character's prompts; random captions of the training set


@dataclass(frozen=True)
class Character:
    """What a model is to learn, and what it is measured by.

    draw      (colour, *look) -> image (32, 32, 3) uint8
    trained   caption -> look, of the training images, which all have the first of `colours`
    looks     of the drawings that samples are compared with: none of the trained ones
    colours   prompt -> colour: the name alone, then contexts that no training image has
    """

    draw: Callable[..., np.ndarray]
    trained: dict[str, tuple[Any, ...]]
    looks: list[tuple[Any, ...]]
    colours: dict[str, str]

    @property
    def images(self) -> np.ndarray:
        """The training images (N, 32, 32, 3) uint8."""
        colour = next(iter(self.colours.values()))
        return np.stack([self.draw(colour, *look) for look in self.trained.values()])


def save_images(character: Character, folder: Path, word: str | None = None) -> None:
    """Write the training images and captions.csv into a folder; with `word` in the place of the name."""
    own = next(iter(character.colours))
    captions = [caption.replace(own, word or own) for caption in character.trained]
    names = [f"{own}-{i}" for i in range(len(captions))]
    folder.mkdir(parents=True)
    save_each(character.images, folder, names)
    save_captions(folder, [f"{name}.png" for name in names], captions)


def reference(character: Character) -> Dataset:
    """The dataset that samples are looked up in: all emoji, and the character in `looks` and all of `colours`."""
    parts, prompts = [emoji("train"), emoji("test")], character.colours
    drawn = [(character.draw(prompts[prompt], *look), prompt) for prompt in prompts for look in character.looks]
    images = np.concatenate([*(part.take(np.arange(len(part))) for part in parts), [image for image, _ in drawn]])
    captions = (*(caption for part in parts for caption in part.captions), *(caption for _, caption in drawn))
    return from_arrays("emoji and a character", images, np.zeros(len(images)), ("any",), captions=captions)


def samples(pipeline: md.TextPipeline, prompts: Iterable[str], loras: list[tuple[Any, float]]) -> np.ndarray:
    """An image of each prompt (N, 32, 32, 3) uint8 with these LoRAs, all from the same noise."""
    images = []
    with md.merged_loras(pipeline, loras):
        for prompt in prompts:  # one by one: all start from the same noise
            rng = np.random.default_rng(SEED)
            images.append(to_uint8(md.text_to_image(pipeline, [prompt], guidance=GUIDANCE, steps=25, rng=rng))[0])
    return np.stack(images)


def percent(right: Iterable[bool]) -> float:
    return 100 * float(np.mean(list(right)))


def measure(
    character: Character, runs: list[Path], word: str | None = None, known: np.ndarray | None = None
) -> np.ndarray:
    """Print a row of figures for the model as it is, and with what each run has learned: a LoRA, or `word`.

    In percent: samples of the character's prompts whose nearest image is the character (in the prompt's colour);
    samples of captions of the training set whose nearest image has the name; the latter relative to the model as it is.

    known: the images of those captions by the model as it is, which the call returns; they are the same for all
    characters of as many prompts, so a second call need not sample them.
    """
    base, dataset, captions = md.open_pipeline(MODEL, kind="text"), reference(character), emoji("train").captions
    classifier = open_classifier(emoji("train"), emoji("test"), "numba")
    some = [captions[i] for i in np.random.default_rng(SEED).permutation(len(captions))[:CAPTIONS]]
    own, before = list(character.colours), 0.0
    print(f"{'':10}   kB  {''.join(f'{prompt[-22:]:>24}' for prompt in own)}    captions   kept", flush=True)
    for run in (None, *runs):
        learned = run is not None and (run / LEARNED_EMBEDS).is_file()
        pipeline = md.with_embeddings(base, [run]) if learned else base
        prompts = [prompt.replace(own[0], word) if learned else prompt for prompt in own for _ in range(SAMPLES)]
        again = run is None and known is not None
        with md.merged_loras(pipeline, [] if run is None or learned else [(md.load_lora(run, base), 1.0)]):
            texts = prompts + ([] if again else some)
            images = sample_prompts(pipeline, texts, GUIDANCE, STEPS, SEED, lambda: None).images
        images = np.concatenate([images, known]) if again else images
        known = images[len(prompts) :] if run is None else known
        nearest = nearest_captions(images, dataset, classifier)
        size = 0 if run is None else (run / (LEARNED_EMBEDS if learned else LORA_WEIGHTS)).stat().st_size / 1000
        shown = ""
        for i, prompt in enumerate(own):
            found = nearest[i * SAMPLES : (i + 1) * SAMPLES]
            shown += f"{percent(c in own for c in found):16.1f} ({percent(c == prompt for c in found):5.1f})"
        pairs = zip(nearest[len(prompts) :], some, strict=True)
        kept = percent(name_and_tone(c)[0] == name_and_tone(caption)[0] for c, caption in pairs)
        before = kept if run is None else before
        label = "without" if run is None else run.name
        print(f"{label:10} {size:4.0f}  {shown} {kept:11.1f} {100 * kept / before:6.1f}", flush=True)
    return known
