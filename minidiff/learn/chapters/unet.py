"""Exercises of chapter 5: the U-Net."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise


def unet_shapes(shape: tuple[int, int, int], widths: tuple[int, ...]) -> np.ndarray:
    """The shape of the activation after each stage of a U-Net with one level for each width.

    shape   (H, W, C) of the image; H and W are divisible by 2^(levels - 1)
    widths  output channels of each level, the first at full resolution

    The stages are conv_in, each down block (every one but the last downsamples by 2), the mid block, each up block,
    from the lowest resolution up (every one but the last upsamples by 2), and conv_out. A block's output has the
    channels of its own level; conv_out returns the channels of the image.

    Returns the rows (H, W, channels) in order of execution, int (2 levels + 3, 3).
    """
    H, W, C = shape
    last = len(widths) - 1
    rows = [(H, W, widths[0])]  # conv_in
    for level, width in enumerate(widths):
        if level < last:
            H, W = H // 2, W // 2
        rows.append((H, W, width))
    rows.append((H, W, widths[-1]))  # mid block
    for level in range(last, -1, -1):
        if level > 0:
            H, W = 2 * H, 2 * W
        rows.append((H, W, widths[level]))
    return np.array([*rows, (H, W, C)])


def _every_block_downsamples(shape: tuple[int, int, int], widths: tuple[int, ...]) -> np.ndarray:
    """The last down block does not downsample, the last up block does not upsample: L levels resample L - 1 times."""
    H, W, C = shape
    rows = [(H, W, widths[0])]
    for width in widths:
        H, W = H // 2, W // 2
        rows.append((H, W, width))
    rows.append((H, W, widths[-1]))
    for width in reversed(widths):
        H, W = 2 * H, 2 * W
        rows.append((H, W, width))
    return np.array([*rows, (H, W, C)])


def _width_of_next_level(shape: tuple[int, int, int], widths: tuple[int, ...]) -> np.ndarray:
    """An up block returns the channels of its own level, upsampled; the next width comes with the next block."""
    rows = unet_shapes(shape, widths)
    first = len(widths) + 2
    rows[first : first + len(widths), 2] = [*widths[-2::-1], widths[0]]
    return rows


def _concatenated(shape: tuple[int, int, int], widths: tuple[int, ...]) -> np.ndarray:
    """The skip connections make the input of an up block's residual blocks wider, not its output."""
    rows = unet_shapes(shape, widths)
    first = len(widths) + 2
    rows[first : first + len(widths), 2] *= 2
    return rows


def _width_out(shape: tuple[int, int, int], widths: tuple[int, ...]) -> np.ndarray:
    """conv_out returns the channels of the image: the prediction has the shape of x_t."""
    rows = unet_shapes(shape, widths)
    rows[-1, 2] = widths[0]
    return rows


def _networks(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    sizes = (16, 32, 64)
    level_widths = ((8, 16), (16, 32, 48, 48), (32, 64, 128))
    return [((int(rng.choice(sizes)), int(rng.choice(sizes)), 3), widths) for widths in level_widths]


def receptive_field(layers: list[tuple[int, float]]) -> tuple[int, float]:
    """The receptive field of one output pixel of a chain of layers, and the stride of the output.

    layers  (kernel, stride) of each layer, first to last: a convolution with a kernel of 3 and stride 2 is (3, 2),
            nearest-neighbour upsampling by 2 is (1, 0.5)

    Before the first layer the receptive field r is 1 pixel, and the stride j, the distance between neighbouring pixels
    of the activation in pixels of the image, is 1. A layer first adds (kernel - 1) j to r, then multiplies j by its
    stride.

    Returns (r, j).
    """
    r, j = 1.0, 1.0
    for kernel, stride in layers:
        r += (kernel - 1) * j
        j *= stride
    return round(r), j


def _ignores_stride(layers: list[tuple[int, float]]) -> tuple[int, float]:
    """Each layer adds (kernel - 1) times the stride so far: after downsampling, neighbours lie further apart."""
    _, j = receptive_field(layers)
    return 1 + sum(kernel - 1 for kernel, _ in layers), j


def _stride_too_early(layers: list[tuple[int, float]]) -> tuple[int, float]:
    """A layer's own stride is the distance between its outputs, not its inputs: add to r first, then multiply j."""
    r, j = 1.0, 1.0
    for kernel, stride in layers:
        j *= stride
        r += (kernel - 1) * j
    return round(r), j


def _whole_kernel(layers: list[tuple[int, float]]) -> tuple[int, float]:
    """A kernel of k adds k - 1 neighbours, not k: a 1x1 convolution adds none."""
    r, j = 1.0, 1.0
    for kernel, stride in layers:
        r += kernel * j
        j *= stride
    return round(r), j


def _chains(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    conv, down, up = (3, 1.0), (3, 2.0), (1, 0.5)
    blocks = [[conv] * int(n) for n in rng.integers(1, 4, 6)]
    first = [*blocks[0], down, *blocks[1], (1, 1.0), down, *blocks[2]]
    second = [(5, 1.0), down, *blocks[3], down, *blocks[4], up, *blocks[5], up, conv, conv]
    return [(first,), (second,)]


EXERCISES = (
    Exercise(
        "Shapes in a U-Net",
        5,
        unet_shapes,
        _networks,
        (_every_block_downsamples, _width_of_next_level, _concatenated, _width_out),
    ),
    Exercise(
        "Receptive field",
        5,
        receptive_field,
        _chains,
        (_ignores_stride, _stride_too_early, _whole_kernel),
    ),
)
