"""The images of a report: sheets of samples of the checkpoints, and frames of trajectories from noise to samples."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidiff.data import open_dataset
from minidiff.data.batches import evenly_spaced
from minidiff.data.imaging import load_image, sheet, to_uint8
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.solvers.loop import Trajectory
from minidiff.errors import MinidiffError
from minidiff.progress import progress
from minidiff.sampling.preview import colours_of, rgb_map
from minidiff.sampling.prompts import escaped
from minidiff.sampling.text_to_image import decode, text_trajectory
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import SHEET_GUIDANCE, TextRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.run import Run

SHEETS = 16  # at most; of more checkpoints, evenly spaced ones
SIDE = 720  # pixels of an image; a larger one is downsampled
IMAGES, PROMPTS = 8, 4  # samples of a trajectory, and those of a text-conditional run
STEPS, FRAMES = 24, 13  # sampling steps, and those that are shown
DECODED = 128 * 128  # pixels of an image up to which the latents of every frame are decoded
ROWS = "Above x_t, below x0_hat, by the averaged weights and"

State = tuple[float, np.ndarray, np.ndarray]  # t, x_t, x0_hat


def sheets(folder: Path) -> list[tuple[int, str]]:
    """Step and data URI of the sheets of samples at the checkpoints; unreadable files are left out."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    found = []
    for i in evenly_spaced(len(paths), SHEETS):
        try:
            step, image = int(paths[i].stem.removeprefix("step-")), Image.fromarray(load_image(paths[i]))
        except (ValueError, MinidiffError):
            continue
        found.append((step, data_uri(image)))
    return found


def trajectory(run: Run) -> dict[str, Any] | None:
    """What a report shows of the sampling loop: a note, frames and, of a text-conditional run, the prompts.

    The weights are the averaged ones, and the noise depends on the run's seed alone. None for runs of other kinds, and
    for consistency models, which take no small steps.
    """
    if run.config.consistency:
        return None
    if isinstance(run, UNetRun):
        return _of_classes(run)
    return _of_captions(run) if isinstance(run, TextRun) else None


def _of_classes(run: UNetRun) -> dict[str, Any]:
    """IMAGES samples, class after class."""
    classes = run.config.classes
    labels = np.arange(IMAGES) * len(classes) // IMAGES if classes else None
    rng = np.random.default_rng([run.config.seed, 0])
    with run.optimizer.averaged():
        states = _states(sample(run.model, run.schedule, (IMAGES, *run.shape), rng, STEPS, cond=labels))
    names = [] if labels is None else list(dict.fromkeys(classes[k] for k in labels))
    note = f"{ROWS} DDIM" + (f": {', '.join(names)}." if names else ".")
    return {"note": note, "frames": _frames(states, lambda x, t: x), "prompts": []}


def _of_captions(run: TextRun) -> dict[str, Any]:
    """Samples of PROMPTS captions of the run's dataset, by the pipeline's sampler; none if that has moved.

    Latents of images of more than DECODED pixels are shown as colours, and decoded where the loop ends alone.
    """
    try:
        prompts = _captions(run.config)
    except MinidiffError as error:
        note = f"Not sampled, for the captions of its dataset are missing: {error}"
        return {"note": note, "frames": [], "prompts": []}
    pipeline, rng = run.pipeline, np.random.default_rng([run.config.seed, 0])
    with run.optimizer.averaged():
        texts = list(map(escaped, prompts))
        states = _states(text_trajectory(pipeline, texts, guidance=SHEET_GUIDANCE, steps=STEPS, rng=rng))
        height, width, _ = pipeline.image_shape
        latent_map = None if pipeline.vae.factor == 1 or height * width <= DECODED else rgb_map(pipeline)

        def images_of(z: np.ndarray, t: float) -> np.ndarray:
            return decode(pipeline, z) if latent_map is None or t < 0 else colours_of(z, latent_map)

        frames = _frames(states, images_of, 1 if latent_map is None else pipeline.vae.factor)
    latents = "" if latent_map is None else "; latents as colours, and decoded at the end"
    note = f"{ROWS} {pipeline.sampler.name}, guidance scale {SHEET_GUIDANCE:g}{latents}."
    return {"note": note, "frames": frames, "prompts": prompts}


def _captions(config: TrainConfig) -> list[str]:
    """PROMPTS captions of a run's dataset, or all of fewer. Raises MinidiffError if it cannot be opened or has none."""
    skip = (lambda error: None) if config.skip_bad else None
    captions = open_dataset(config.data, config.size, skip=skip).captions
    if not captions:
        raise MinidiffError(f"{config.data}: has no captions any more")
    return [captions[i] for i in evenly_spaced(len(captions), PROMPTS)]


def _states(loop: Trajectory) -> list[State]:
    """All states of a sampling loop of STEPS steps, with a progress bar."""
    states = []
    with progress("sampling", STEPS) as tick:
        for state in loop:
            states.append(state)
            tick()
    return states


def _frames(
    states: list[State], images_of: Callable[[np.ndarray, float], np.ndarray], factor: int = 1
) -> list[tuple[int, str]]:
    """t and data URI of FRAMES of the states: images of x_t above those of x0_hat, which the page enlarges.

    images_of(x, t) are images (N, H, W, C); at the end, where t is -1, they are `factor` times as high and wide.
    """
    frames = []
    for i in evenly_spaced(len(states), FRAMES):
        t, x_t, x0_hat = states[i]
        images = to_uint8(np.concatenate([images_of(x_t, t), images_of(x0_hat, t)]))
        image = sheet(images, columns=len(x_t), scale=1, gap=factor if t < 0 else 1)
        frames.append((int(t), data_uri(image)))
    return frames


def data_uri(image: Image.Image) -> str:
    """The image as a data URI, of at most SIDE pixels: lossless, or with a loss that is hardly seen where that is
    smaller.
    """
    image.thumbnail((SIDE, SIDE))
    encoded = []
    for options in ({"lossless": True}, {"quality": 85}):
        file = io.BytesIO()
        image.save(file, "WEBP", **options)
        encoded.append(file.getvalue())
    return "data:image/webp;base64," + base64.b64encode(min(encoded, key=len)).decode()
