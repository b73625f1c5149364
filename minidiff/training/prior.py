"""Prior preservation: while a model learns new images, its loss keeps images of what it knows already.

    L = E[|eps_hat(x_t, c) - eps|^2] + lambda E[|eps_hat(x'_t, c') - eps'|^2]      (Ruiz et al. 2023, eq. 2)

x and c are images and captions of the training set, x' and c' those of the prior: samples of the model as it was, or
images that are given. RUN/prior holds them, with captions.csv; a batch has as many of them as of the training set.

A LoRA has the model as it was at hand, and so needs no such images (kinds/lora_run.py): c' is a text of random words,
x' an image of the training set, and the target the prediction of the model as it was (self-distillation).
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from minidiff.data import Dataset, open_dataset
from minidiff.data.batches import evenly_spaced
from minidiff.data.captions import save_captions
from minidiff.data.dataset import from_arrays, slices, subset
from minidiff.data.imaging import save_each, to_uint8
from minidiff.errors import MinidiffError
from minidiff.files import new_folder
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.tokenizer import Tokenizer
from minidiff.progress import progress
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.text_to_image import text_to_image

FOLDER = "prior"  # in the run's
SAMPLES = 64  # images that are sampled, at least one a prompt
MOST = 5000  # images of a folder
GUIDANCE, STEPS = 4.0, 25  # of the samples
LETTERS, MOST_WORDS = 3, 4  # of random texts: minimum of a word, words
STREAM = 6  # last word of the generator's seed

Batch = tuple[np.ndarray, np.ndarray]  # images (B, H, W, C) and token ids (B, T)


def sample_prior(pipeline: TextPipeline, prompts: Sequence[str], seed: int, batch_size: int) -> Dataset:
    """SAMPLES images of the prompts in turn, at least one of each, by the pipeline as it is."""
    captions = list(islice(cycle(prompts), max(SAMPLES, len(prompts))))
    rng = np.random.default_rng([seed, 0, STREAM])
    compile_for_sampling(pipeline, min(batch_size, len(captions)))
    images = []
    with progress("sampling the prior", len(captions), transient=True) as tick:
        for part in slices(len(captions), batch_size):
            texts = captions[part]
            images.append(to_uint8(text_to_image(pipeline, texts, guidance=GUIDANCE, steps=STEPS, rng=rng)))
            tick(len(texts))
    labels = np.zeros(len(captions), np.int64)
    return from_arrays(FOLDER, np.concatenate(images), labels, (FOLDER,), mirrors=False, captions=tuple(captions))


def given_prior(path: str, shape: tuple[int, int, int]) -> Dataset:
    """At most MOST captioned images of a folder, resized where `shape` (H, W, C) is square.

    Raises MinidiffError for images without captions, or of another shape.
    """
    height, width, _ = shape
    dataset = open_dataset(path, height if height == width else None)
    if not dataset.captions:
        raise MinidiffError(f"{path}: the images of a prior need captions; add a captions.csv")
    if dataset.shape != shape:
        raise MinidiffError(f"{path}: its images have the shape {dataset.shape}, and the model's {shape}; give such")
    return subset(dataset, evenly_spaced(len(dataset), MOST))


def save_prior(folder: Path, prior: Dataset) -> None:
    """Write a prior into the folder of a run, as images with captions.csv."""
    names = [f"{i:05d}" for i in range(len(prior))]
    with new_folder(folder / FOLDER) as part:
        save_each(prior.take(np.arange(len(prior))), part, names)
        save_captions(part, [f"{name}.png" for name in names], prior.captions)


def open_prior(folder: Path, shape: tuple[int, int, int]) -> Dataset:
    """The prior in the folder of a run. Raises MinidiffError if it is missing or damaged."""
    return given_prior(str(folder / FOLDER), shape)


def with_prior(batches: Callable[[int], Batch], prior_batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """A function from a step to its batch, and after it that of the prior: (2 B, H, W, C) and (2 B, T)."""

    def make_batch(step: int) -> Batch:
        (x0, ids), (prior_x0, prior_ids) = batches(step), prior_batches(step)
        return np.concatenate([x0, prior_x0]), np.concatenate([ids, prior_ids])

    return make_batch


def image_weights(n: int, prior_weight: float) -> np.ndarray:
    """The weights (n,) of a batch of `with_prior` whose mean loss is L, the second half's lambda `prior_weight`."""
    return np.repeat(np.array([2, 2 * prior_weight], np.float32), n // 2)


def words_of(tokenizer: Tokenizer) -> list[str]:
    """The words of at least three letters that are a token of their own, sorted; some are the ends of longer words.

    If there are none, the empty text.
    """
    ends = (token.removesuffix("</w>") for token in tokenizer.vocab if token.endswith("</w>"))
    return sorted(word for word in ends if word.isalpha() and len(word) >= LETTERS) or [""]


def random_texts(words: list[str], n: int, empty: float, rng: np.random.Generator) -> list[str]:
    """n texts of one to MOST_WORDS words, each with probability `empty` the empty text."""
    lengths = np.where(rng.random(n) < empty, 0, rng.integers(1, MOST_WORDS + 1, n))
    return [" ".join(rng.choice(words, length)) for length in lengths]
