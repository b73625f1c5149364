"""The exercise of chapter 12: the stages of text-to-image."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise


def stages(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """The arrays of text-to-image with classifier-free guidance, in the order in which they come to be, with shapes.

    N         prompts, each for one square image
    size      height and width of an image in pixels
    tokens    length of a row of token ids
    width     channels of a text embedding
    factor    pixels per latent, along each side
    channels  of the latents

    Returns a list of [name, shape], a shape being a list of integers with the channels last. The names, here in
    alphabetical order: "U-Net input" (of one model evaluation, for both predictions), "guided prediction", "image"
    (uint8, RGB), "latents" (at the end of the sampling loop), "noise", "text embeddings" (of the prompts alone),
    "token ids" (of the prompts alone). Noise is drawn after the prompts are encoded.
    """
    latents = [N, size // factor, size // factor, channels]
    return [
        ["token ids", [N, tokens]],
        ["text embeddings", [N, tokens, width]],
        ["noise", latents],
        ["U-Net input", [2 * N, *latents[1:]]],
        ["guided prediction", latents],
        ["latents", latents],
        ["image", [N, size, size, 3]],
    ]


def _one_batch(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """The U-Net's batch is too small: guidance needs a conditional and an unconditional prediction of each image."""
    result = stages(N, size, tokens, width, factor, channels)
    result[3][1] = result[2][1]
    return result


def _pixels(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """The noise has as many rows and columns as the image: the U-Net works on latents, smaller by the factor."""
    return stages(N, size, tokens, width, 1, channels)


def _channels_first(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """The channels come second, as in PyTorch: here they are the last axis."""
    result = stages(N, size, tokens, width, factor, channels)
    return [[name, [s[0], s[-1], *s[1:-1]] if len(s) == 4 else s] for name, s in result]


def _embeddings_first(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """The text encoder takes token ids: they come before the embeddings."""
    ids, embeddings, *rest = stages(N, size, tokens, width, factor, channels)
    return [embeddings, ids, *rest]


def _pooled(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """Cross-attention takes the embeddings of all tokens, not one embedding of each prompt."""
    result = stages(N, size, tokens, width, factor, channels)
    result[1][1] = [N, width]
    return result


def _both_guided(N: int, size: int, tokens: int, width: int, factor: int, channels: int) -> list:
    """Guidance makes one prediction of two: the guided prediction has as many images as the noise."""
    result = stages(N, size, tokens, width, factor, channels)
    result[4][1] = result[3][1]
    return result


def _sizes(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    emoji = (3, 32, 32, 128, 4, 12)
    stable = (1, 512, 77, 768, 8, 4)
    return [emoji, stable, (int(rng.integers(2, 9)), 64, 20, 48, 2, 5)]


EXERCISES = (
    Exercise(
        "Stages of text-to-image",
        12,
        stages,
        _sizes,
        (_one_batch, _pixels, _channels_first, _embeddings_first, _pooled, _both_guided),
    ),
)
