"""All exercises of the course, numbered in the order of its chapters."""

from typing import NamedTuple

from minidiff.errors import MinidiffError
from minidiff.learn.chapters import (
    autoencoder,
    autograd,
    forward_diffusion,
    guidance,
    loss,
    parameterisations,
    reverse_diffusion,
    stable_diffusion,
    start,
    text_encoder,
    tokenizer,
    training,
    two_dimensions,
    unet,
)
from minidiff.learn.chapters.kernels import fusion, gpu, matrix_product, roofline, winograd
from minidiff.learn.exercise import Exercise


class Chapter(NamedTuple):
    """A chapter of the course: its title, its page without a suffix, and its exercises."""

    title: str
    page: str
    exercises: tuple[Exercise, ...]


CHAPTERS = {  # by number
    0: Chapter("Start", "00_start", start.EXERCISES),
    1: Chapter("Forward diffusion", "01_forward_diffusion", forward_diffusion.EXERCISES),
    2: Chapter("Two dimensions", "02_two_dimensions", two_dimensions.EXERCISES),
    3: Chapter("The noise predictor and its loss", "03_loss", loss.EXERCISES),
    4: Chapter("Reverse diffusion", "04_reverse_diffusion", reverse_diffusion.EXERCISES),
    5: Chapter("The U-Net", "05_unet", unet.EXERCISES),
    6: Chapter("Autograd and AdamW", "06_autograd", autograd.EXERCISES),
    7: Chapter("Training", "07_training", training.EXERCISES),
    8: Chapter("The autoencoder", "08_autoencoder", autoencoder.EXERCISES),
    9: Chapter("Tokens", "09_tokenizer", tokenizer.EXERCISES),
    10: Chapter("Text encoder", "10_text_encoder", text_encoder.EXERCISES),
    11: Chapter("Conditioning and guidance", "11_guidance", guidance.EXERCISES),
    12: Chapter("Stable Diffusion assembled", "12_stable_diffusion", stable_diffusion.EXERCISES),
    13: Chapter("Parameterisations and evaluation", "13_parameterisations", parameterisations.EXERCISES),
    14: Chapter("Roofline", "14_roofline", roofline.EXERCISES),
    15: Chapter("A fast matrix product", "15_matrix_product", matrix_product.EXERCISES),
    16: Chapter("Convolution: from im2col to Winograd", "16_winograd", winograd.EXERCISES),
    17: Chapter("Fusion", "17_fusion", fusion.EXERCISES),
    18: Chapter("On a GPU", "18_gpu", gpu.EXERCISES),
}
EXERCISES = dict(enumerate((e for chapter in CHAPTERS.values() for e in chapter.exercises), start=1))  # by number


def exercise_of(number: int) -> Exercise:
    """The exercise of that number. Raises MinidiffError if there is none."""
    if number not in EXERCISES:
        raise MinidiffError(f"exercise {number}: there is none; give a number from 1 to {len(EXERCISES)}")
    return EXERCISES[number]
