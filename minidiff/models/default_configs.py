"""Configurations of new networks, by the size of their images or texts; they train on two CPU cores."""

from math import gcd

from minidiff.errors import MinidiffError
from minidiff.models.config import (
    ATTN_DOWN,
    ATTN_UP,
    CROSS_DOWN,
    CROSS_UP,
    DOWN,
    UP,
    TextEncoderConfig,
    TextUNetConfig,
    UNetConfig,
)

GROUPS = 8  # of a default network's norms


def num_downsamples(H: int, W: int) -> int:
    """How often H and W can be divided by 2 without a remainder, at most 3 times and not below 4 pixels."""
    for count in (3, 2, 1):
        factor = 2**count
        if H % factor == 0 and W % factor == 0 and min(H, W) >= 4 * factor:
            return count
    return 0


def downsamplings(H: int, W: int, depth: int, fewest: int = 1, most: int = 12) -> int:
    """How often a network of `depth` levels downsamples H x W pixels by two: depth - 1 times.

    Raises MinidiffError if depth is outside fewest..most, or if 2^(depth - 1) does not divide H and W.
    """
    side = gcd(H, W)
    most = min(most, (side & -side).bit_length())  # one level more than the times that two divides both
    if not fewest <= depth <= most:
        allowed = f"give {fewest} to {most} levels" if fewest <= most else "cut the images to another size"
        raise MinidiffError(f"depth {depth}: does not go with {W}x{H} pixels; {allowed}")
    return depth - 1


def check_width(width: int, multiple: int) -> None:
    """Raises MinidiffError if the width of the first level is no multiple of `multiple`, or more than 4096."""
    if width % multiple or not multiple <= width <= 4096:
        raise MinidiffError(f"width {width}: give a multiple of {multiple}, from {multiple} to 4096")


def default_config(
    shape: tuple[int, int, int], width: int = 32, num_class_embeds: int | None = None, depth: int | None = None
) -> UNetConfig:
    """A U-Net for images (H, W, C): widths 1, 2, 3, 3, ... times `width`, self-attention at the lowest resolution.

    depth  number of levels; None: `num_downsamples(H, W) + 1`
    Raises MinidiffError if width is no multiple of 8, or if H and W do not allow that depth.
    """
    H, W, C = shape
    check_width(width, GROUPS)
    downsamples = num_downsamples(H, W) if depth is None else downsamplings(H, W, depth)
    widths = tuple(width * min(level + 1, 3) for level in range(downsamples + 1))
    return UNetConfig(
        sample_size=H if H == W else (H, W),
        in_channels=C,
        out_channels=C,
        block_out_channels=widths,
        down_block_types=(DOWN,) * downsamples + (ATTN_DOWN,),
        up_block_types=(ATTN_UP,) + (UP,) * downsamples,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        attention_head_dim=None,
        num_class_embeds=num_class_embeds,
    )


def default_text_unet(
    shape: tuple[int, int, int], context_width: int, width: int | None = None, depth: int | None = None
) -> TextUNetConfig:
    """A text U-Net for images or latents (H, W, C) and text embeddings of `context_width` channels.

    Widths 1, 2, 3, 3, ... times `width`; None: 32, or 64 if H or W is at most 16. Depth as of `default_config`. Self-
    and cross-attention at the levels of at most 16 x 16 and at the lowest. It trains on two CPU cores.
    Raises MinidiffError if width is no multiple of 32, the channels of a head, or if H and W do not allow that depth.
    """
    H, W, C = shape
    if width is None:
        width = 32 if min(H, W) > 16 else 64
    check_width(width, 32)
    downsamples = num_downsamples(H, W) if depth is None else downsamplings(H, W, depth)
    widths = tuple(width * min(level + 1, 3) for level in range(downsamples + 1))
    cross = [max(H, W) >> level <= 16 or level == downsamples for level in range(downsamples + 1)]
    return TextUNetConfig(
        sample_size=H if H == W else (H, W),
        in_channels=C,
        out_channels=C,
        block_out_channels=widths,
        down_block_types=tuple(CROSS_DOWN if here else DOWN for here in cross),
        up_block_types=tuple(CROSS_UP if here else UP for here in cross[::-1]),
        layers_per_block=1,
        norm_num_groups=GROUPS,
        cross_attention_dim=context_width,
        attention_head_dim=tuple(width // 32 for width in widths),
    )


def default_text_encoder(vocab_size: int, length: int) -> TextEncoderConfig:
    """A text encoder for that vocabulary size and text length, in tokens; 0.8 million parameters plus embeddings."""
    return TextEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=length,
    )
