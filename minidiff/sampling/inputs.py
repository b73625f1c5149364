"""Inputs of sampling: images and masks as network input, class labels, batches, seeds, the source of noise."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import minidiff.ranks as ranks
from minidiff.data.dataset import slices
from minidiff.data.imaging import load_image, to_float
from minidiff.diffusion.reverse import skip
from minidiff.engine.torch_generator import torch_generator
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import Pipeline

BATCH_SIZE = 64  # images that are sampled together
MAX_SEEDS = 100_000


def load_network_input(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file as network input (1, H, W, C), float32 in [-1, 1]: its centre, scaled to `shape` (H, W, C)."""
    from PIL import Image, ImageOps

    height, width, channels = shape
    pixels = load_image(path, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    centre = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return to_float(centre.reshape(1, height, width, channels))


def load_mask(path: Path, size: tuple[int, int], factor: int = 1) -> np.ndarray:
    """A mask file as bool (H, W, 1), True where it is white; cropped and scaled as `load_network_input` does.

    Constant in blocks of factor x factor pixels, one block a latent. Raises MinidiffError if nothing is white.
    """
    from PIL import Image, ImageOps

    height, width = size
    image, small = Image.fromarray(load_image(path, 1)[..., 0]), (width // factor, height // factor)
    mask = np.asarray(ImageOps.fit(image, small, Image.Resampling.LANCZOS))[..., None] > 127
    if not mask.any():
        raise MinidiffError(f"{path}: the mask is black, with nothing to fill; make white what is to be sampled")
    return mask.repeat(factor, 0).repeat(factor, 1)


def noise_source(noise: str, seed: int) -> Any:
    """The random generator of a seed: "numpy" for NumPy's default_rng, "torch" for the numbers of torch.Generator."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


class NoiseOfEach:
    """A source of noise for images each of which has a seed: row i is drawn from the generator of the i-th seed.

    So an image's noise does not depend on the batch that it is sampled in. noise as of `noise_source`.
    """

    def __init__(self, noise: str, seeds: Iterable[int]):
        self._generators = [noise_source(noise, seed) for seed in seeds]

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Standard normal numbers of this shape, (N, ...); N is the number of seeds."""
        N, *row = shape
        assert N == len(self._generators)
        return np.concatenate([generator.standard_normal((1, *row), dtype=dtype) for generator in self._generators])


def parse_seeds(text: str) -> list[int]:
    """The seeds that a text such as "0-63" or "3,7,10-12" lists, in its order.

    Raises MinidiffError unless it lists from 1 to MAX_SEEDS seeds below 2^64, each once.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})(?:-([0-9]{1,20}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**64:
            raise MinidiffError(f"--seeds {text!r:.80}: give numbers and rising ranges, such as 0-63 or 3,7,10-12")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise MinidiffError(f"--seeds {text!r:.80}: lists more than {MAX_SEEDS} seeds; sample them in parts")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise MinidiffError(f"--seeds {text!r:.80}: lists a seed twice; give each once")
    return seeds


def seeds_text(seeds: list[int]) -> str:
    """The text from which `parse_seeds` reads these seeds, in their order."""
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def class_labels(pipeline: Pipeline, name: str | None, n: int, seeds: list[int] | None = None) -> np.ndarray | None:
    """Labels (n,) of one class; for "all" or None of every class in order, as evenly as n allows.

    With seeds (n,), the class of each is then its seed modulo the number of classes, whatever the others are.
    None for a network without classes. Without classes.json the class names are the indices.
    Raises MinidiffError if there is no class of that name.
    """
    folder, most = pipeline.folder, pipeline.num_class_embeds
    if most is None:
        if name is not None:
            raise MinidiffError(f"{folder}: was not trained by class; leave --class out")
        return None
    names = class_names(pipeline)
    if len(names) > most:
        raise MinidiffError(f"{folder}: classes.json names more classes than its network has; copy both again")
    return labels_of(folder, names, name, n, seeds)


def class_names(pipeline: Pipeline) -> tuple[str, ...]:
    """The names of a network's classes, their indices without classes.json; () for a network without classes."""
    return pipeline.classes or tuple(map(str, range(pipeline.num_class_embeds or 0)))


def labels_of(
    folder: Path, names: tuple[str, ...], name: str | None, n: int, seeds: list[int] | None = None
) -> np.ndarray:
    """Labels (n,) of the class `name` among `names`, the folder's; for "all" or None as `class_labels`."""
    if name in (None, "all"):
        return np.arange(n) * len(names) // n if seeds is None else np.array([seed % len(names) for seed in seeds])
    if name not in names:
        raise MinidiffError(f"{folder}: has no class {name!r}; choose from {', '.join(names)}, or all")
    return np.full(n, names.index(name))


def batches(
    n: int, image_shape: tuple[int, int, int], labels: np.ndarray | None
) -> list[tuple[tuple[int, int, int, int], Any]]:
    """Shape (N, H, W, C) and labels (N,), or None, of each batch of up to BATCH_SIZE of n images (H, W, C)."""
    return [
        ((part.stop - part.start, *image_shape), None if labels is None else labels[part])
        for part in slices(n, BATCH_SIZE)
    ]


def of_this_rank(
    batches: list[tuple[tuple[int, int, int, int], Any]], rngs: Iterable[Any], pipeline: Pipeline, steps: int
) -> Iterator[tuple[tuple[int, int, int, int], Any, Any]]:
    """Shape and labels of the batches that this rank samples, each with its source of noise.

    rngs    the source of noise of every batch, which may be the same one
    steps   of sampling, by the pipeline's sampler
    Whole batches are shared out, so that every image has the bits that one process gives it: those of a kernel depend
    on the batch's size. What other ranks draw for the batches before is skipped.
    """
    own = ranks.share(len(batches))
    for i, ((shape, cond), rng) in enumerate(zip(batches[: own.stop], rngs, strict=False)):  # rngs may be endless
        if i < own.start:
            skip(pipeline.schedule, shape, rng, steps, pipeline.sampler)
        else:
            yield shape, cond, rng


def num_of_this_rank(batches: int) -> int:
    """How many of so many batches this rank samples."""
    own = ranks.share(batches)
    return own.stop - own.start


def of_all_ranks(images: list[np.ndarray], image_shape: tuple[int, int, int]) -> np.ndarray:
    """The images (N, H, W, C) uint8 of all batches of all ranks, on every rank; of this one possibly none."""
    return ranks.concatenate(np.concatenate([np.empty((0, *image_shape), np.uint8), *images]))
