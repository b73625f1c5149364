"""The exercise of chapter 0: sampling with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minidiff as md
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import Schedule
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image

MODEL = Path(__file__).parents[1] / "cats_dogs"  # class-conditional, of 32 x 32 pixels; predicts x0
SEED, SCALE = 13, 8  # of the image that is shown


def sample_cat(model: Model, schedule: Schedule, seed: int) -> np.ndarray:
    """Sample an image of a cat with a trained model: reverse diffusion, from noise to an image in 10 steps.

    model     a network that was trained on images of cats and dogs
    schedule  the noise levels that it was trained with
    seed      of the random numbers: np.random.default_rng(seed)

    md.sample(model, schedule, shape, rng, steps=10, cond=labels) is the sampling loop. `for t, x_t, x0_hat in` it goes
    through the steps, and the x_t of the last step is the sample. shape is (number of images, height, width, channels),
    here (1, 32, 32, 3). labels is an array with the class label of every image: 0 for a cat, 1 for a dog.

    The values of the sample lie between -1 and 1. Map them linearly to those of an image, from 0, black, to 1, white.

    Returns the image, (32, 32, 3).
    """
    rng = np.random.default_rng(seed)
    *_, (_, x_t, _) = md.sample(model, schedule, (1, 32, 32, 3), rng, steps=10, cond=np.array([0]))
    return x_t[0] / 2 + 0.5  # (32, 32, 3)


def _dog(model: Model, schedule: Schedule, seed: int) -> np.ndarray:
    """The image is of a dog: the class label of cats is 0, so cond is np.array([0])."""
    rng = np.random.default_rng(seed)
    *_, (_, x_t, _) = md.sample(model, schedule, (1, 32, 32, 3), rng, steps=10, cond=np.array([1]))
    return x_t[0] / 2 + 0.5


def _first_step(model: Model, schedule: Schedule, seed: int) -> np.ndarray:
    """The image is x_t after the first step, still noise: loop to the end, and take the x_t of the last step."""
    rng = np.random.default_rng(seed)
    _, x_t, _ = next(iter(md.sample(model, schedule, (1, 32, 32, 3), rng, steps=10, cond=np.array([0]))))
    return x_t[0] / 2 + 0.5


def _not_mapped(model: Model, schedule: Schedule, seed: int) -> np.ndarray:
    """The values are still from -1 to 1, which shows as an image that is too dark: map them to 0 to 1."""
    return 2 * sample_cat(model, schedule, seed) - 1


def _default_steps(model: Model, schedule: Schedule, seed: int) -> np.ndarray:
    """The image takes 50 steps, the default of md.sample: give it steps=10."""
    rng = np.random.default_rng(seed)
    *_, (_, x_t, _) = md.sample(model, schedule, (1, 32, 32, 3), rng, cond=np.array([0]))
    return x_t[0] / 2 + 0.5


def _inputs(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(*_model(), int(rng.integers(1000)))]


def _model() -> tuple[Model, Schedule]:
    pipeline = md.open_pipeline(MODEL, "numpy")
    assert isinstance(pipeline.schedule, Schedule)
    return pipeline.unet, pipeline.schedule


def _cat(answer: Answer) -> "Image.Image":
    from PIL import Image

    pixels = np.rint(255 * np.clip(answer(*_model(), SEED), 0, 1)).astype(np.uint8)  # (32, 32, 3)
    return Image.fromarray(pixels).resize((32 * SCALE, 32 * SCALE), Image.Resampling.NEAREST)


EXERCISES = (
    Exercise(
        "Sample a cat",
        0,
        sample_cat,
        _inputs,
        (_dog, _first_step, _not_mapped, _default_steps),
        image=_cat,
        rtol=1e-4,
    ),
)
