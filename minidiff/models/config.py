"""The U-Net's configuration: the keys of diffusers' config.json for UNet2DModel, as a dataclass."""

from dataclasses import asdict, dataclass, fields
from math import gcd

from minidiff.errors import MinidiffError

CHOICES = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}

# The smallest and largest value of each number.
INTEGERS = {
    "in_channels": (1, 1024), "out_channels": (1, 1024), "layers_per_block": (1, 64), "norm_num_groups": (1, 1024),
    "downsample_padding": (0, 1),
}  # fmt: skip
OPTIONAL_INTEGERS = {
    "attention_head_dim": (1, 16384), "attn_norm_num_groups": (1, 1024), "time_embedding_dim": (1, 65536),
    "num_class_embeds": (1, 1_000_000),
}  # fmt: skip
REALS = {
    "norm_eps": (1e-12, 1.0), "dropout": (0.0, 0.99), "freq_shift": (0.0, 1.0), "mid_block_scale_factor": (1e-3, 1e3),
}  # fmt: skip

# Keys of which only one value is implemented.
FIXED = {
    "act_fn": "silu",
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_type": "positional",
}


GROUPS = 8  # of a default network's norms


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a U-Net, with the keys and defaults of diffusers' UNet2DModel.

    attention_head_dim       channels per head; None: one head over all channels
    downsample_padding       1 pads all sides, 0 the bottom and right only
    downsample_type          downsampling at levels with attention: "conv", or "resnet" for a residual block
    upsample_type            upsampling at levels with attention: "conv" or "resnet"
    resnet_time_scale_shift  the time embedding is added ("default"), or scales and shifts the norm ("scale_shift")
    mid_block_scale_factor   divides the output of every layer of the mid block
    attn_norm_num_groups     norm groups of the mid block's attention; None: norm_num_groups, no norm if "scale_shift"
    center_input_sample      the input is 2 x_t - 1
    time_embedding_dim       channels of the time embedding; None: 4 block_out_channels[0]
    num_class_embeds         rows of the class embedding, the last for the null class; None: unconditional
    Raises MinidiffError, which names key and value, if a value is not supported.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attn_norm_num_groups: int | None = None
    attention_head_dim: int | None = 8
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    resnet_time_scale_shift: str = "default"
    mid_block_scale_factor: float = 1
    center_input_sample: bool = False
    time_embedding_dim: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    dropout: float = 0.0
    add_attention: bool = True
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            if not isinstance(getattr(self, name), list | tuple):
                raise _unsupported(name, getattr(self, name), "give a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.sample_size, list):
            object.__setattr__(self, "sample_size", tuple(self.sample_size))
        _check_numbers(self)
        _check_choices(self)
        _check_levels(self)

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def scale_shift(self) -> bool:
        """Whether the time embedding scales and shifts."""
        return self.resnet_time_scale_shift == "scale_shift"


def _unsupported(name: str, value, remedy: str) -> MinidiffError:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return MinidiffError(f"U-Net configuration: {name} = {shown} is not supported: {remedy}")


def _is_int(value, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _check_numbers(cfg: UNetConfig) -> None:
    for name, (low, high) in INTEGERS.items():
        if not _is_int(getattr(cfg, name), low, high):
            raise _unsupported(name, getattr(cfg, name), f"give an integer from {low} to {high}")
    for name, (low, high) in OPTIONAL_INTEGERS.items():
        if getattr(cfg, name) is not None and not _is_int(getattr(cfg, name), low, high):
            raise _unsupported(name, getattr(cfg, name), f"give null or an integer from {low} to {high}")
    for name, (low, high) in REALS.items():
        value = getattr(cfg, name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise _unsupported(name, value, f"give a number from {low} to {high}")
    for name in ("flip_sin_to_cos", "center_input_sample", "add_attention"):
        if type(getattr(cfg, name)) is not bool:
            raise _unsupported(name, getattr(cfg, name), "give true or false")
    size = cfg.sample_size
    pair = size if isinstance(size, list | tuple) else (size, size)
    if size is not None and not (len(pair) == 2 and all(_is_int(n, 1, 65536) for n in pair)):
        raise _unsupported("sample_size", size, "give null, an integer or [height, width]")


def _check_levels(cfg: UNetConfig) -> None:
    widths = cfg.block_out_channels
    if not 1 <= len(widths) <= 12 or not all(_is_int(c, 2, 16384) for c in widths):
        raise _unsupported("block_out_channels", widths, "give 1 to 12 integers from 2 to 16384")
    if widths[0] // 2 <= cfg.freq_shift:
        raise _unsupported("freq_shift", cfg.freq_shift, f"it must be less than half the first width, {widths[0]}")
    for c in widths:
        if c % cfg.norm_num_groups:
            raise _unsupported(
                "norm_num_groups",
                cfg.norm_num_groups,
                f"it must divide every width in block_out_channels, and {c} is one",
            )
        if cfg.attention_head_dim and c % cfg.attention_head_dim and _has_attention(cfg, c):
            raise _unsupported("attention_head_dim", cfg.attention_head_dim, f"it must divide the width {c}")
    if cfg.attn_norm_num_groups and widths[-1] % cfg.attn_norm_num_groups:
        raise _unsupported(
            "attn_norm_num_groups", cfg.attn_norm_num_groups, f"it must divide the last width, {widths[-1]}"
        )
    for name in ("down_block_types", "up_block_types"):
        if len(getattr(cfg, name)) != len(widths):
            raise _unsupported(
                name, getattr(cfg, name), f"give one for each of the {len(widths)} widths in block_out_channels"
            )


def _check_choices(cfg: UNetConfig) -> None:
    for name, known in CHOICES.items():
        value = getattr(cfg, name)
        for choice in value if name.endswith("_block_types") else [value]:
            if choice not in known:
                raise _unsupported(name, choice, f"choose from {', '.join(known)}")


def _has_attention(cfg: UNetConfig, width: int) -> bool:
    levels = zip(cfg.block_out_channels, cfg.down_block_types, cfg.up_block_types[::-1], strict=False)
    in_mid_block = cfg.add_attention and width == cfg.block_out_channels[-1]
    return in_mid_block or any(c == width and "Attn" in f"{down}{up}" for c, down, up in levels)


def config_from_dict(values: dict) -> UNetConfig:
    """The configuration in a diffusers config.json. Raises MinidiffError if a key or value is not supported."""
    if not isinstance(values, dict):
        raise MinidiffError(
            f"U-Net configuration: expected an object of keys and values, found {type(values).__name__}"
        )
    if values.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise _unsupported("_class_name", values["_class_name"], "only UNet2DModel is read here")
    known = {field.name for field in fields(UNetConfig)}
    for name, value in values.items():
        if name.startswith("_") or name in known or name == "num_train_timesteps":  # for learned time embeddings only
            continue
        if name not in FIXED:
            raise _unsupported(ascii(name)[1:-1], value, "the key is not known")
        if value != FIXED[name]:
            raise _unsupported(name, value, f"only {FIXED[name]!r} is")
    return UNetConfig(**{name: value for name, value in values.items() if name in known})


def config_to_dict(cfg: UNetConfig) -> dict:
    """The contents of a diffusers config.json."""
    return {"_class_name": "UNet2DModel", **asdict(cfg)}


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
        down_block_types=("DownBlock2D",) * downsamples + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * downsamples,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        attention_head_dim=None,
        num_class_embeds=num_class_embeds,
    )
