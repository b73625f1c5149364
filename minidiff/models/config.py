"""What a U-Net is made of: the keys of diffusers' config.json for UNet2DModel, as a dataclass."""

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

WHOLE = {
    "in_channels": (1, 1024), "out_channels": (1, 1024), "layers_per_block": (1, 64), "norm_num_groups": (1, 1024),
    "downsample_padding": (0, 1),
}  # fmt: skip
WHOLE_OR_NONE = {
    "attention_head_dim": (1, 16384), "attn_norm_num_groups": (1, 1024), "time_embedding_dim": (1, 65536),
    "num_class_embeds": (1, 1_000_000),
}  # fmt: skip
REAL = {
    "norm_eps": (1e-12, 1.0), "dropout": (0.0, 0.99), "freq_shift": (0.0, 1.0), "mid_block_scale_factor": (1e-3, 1e3),
}  # fmt: skip

# Keys that change the network in ways not built here, with the only value that is accepted.
FIXED = {
    "act_fn": "silu",
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_type": "positional",
}


GROUPS = 8  # of a default network's norms


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net in diffusers' terms; the defaults are those of its class.

    attention_head_dim       channels of one head; None: one head over all channels
    downsample_padding       0 pads below and to the right only, 1 on all sides
    downsample_type          how levels with attention halve: by a convolution ("conv"), in a residual block ("resnet")
    upsample_type            and how they double
    resnet_time_scale_shift  the time is added ("default"), or scales and shifts what is normalised ("scale_shift")
    mid_block_scale_factor   what every layer of the middle is divided by
    attn_norm_num_groups     groups of the middle's attention; None: norm_num_groups, no norm at all if "scale_shift"
    center_input_sample      the network is given 2 x_t - 1
    time_embedding_dim       channels of the time embedding; None: four times the first width
    num_class_embeds         rows of the label table, None for no labels; the last row is the null class
    Raises MinidiffError that names the first value that does not make sense.
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

    def __post_init__(self):
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            if not isinstance(getattr(self, name), list | tuple):
                raise _bad(name, getattr(self, name), "give a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.sample_size, list):
            object.__setattr__(self, "sample_size", tuple(self.sample_size))
        _check_numbers(self)
        _check_choices(self)
        _check_blocks(self)

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def scale_shift(self) -> bool:
        """Whether the time scales and shifts."""
        return self.resnet_time_scale_shift == "scale_shift"


def _bad(name: str, value, remedy: str) -> MinidiffError:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return MinidiffError(f"U-Net configuration: {name} = {shown} is not supported: {remedy}")


def _is_int(value, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _check_numbers(cfg: UNetConfig) -> None:
    for name, (low, high) in WHOLE.items():
        if not _is_int(getattr(cfg, name), low, high):
            raise _bad(name, getattr(cfg, name), f"give a whole number from {low} to {high}")
    for name, (low, high) in WHOLE_OR_NONE.items():
        if getattr(cfg, name) is not None and not _is_int(getattr(cfg, name), low, high):
            raise _bad(name, getattr(cfg, name), f"give null or a whole number from {low} to {high}")
    for name, (low, high) in REAL.items():
        value = getattr(cfg, name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise _bad(name, value, f"give a number from {low} to {high}")
    for name in ("flip_sin_to_cos", "center_input_sample", "add_attention"):
        if type(getattr(cfg, name)) is not bool:
            raise _bad(name, getattr(cfg, name), "give true or false")
    size = cfg.sample_size
    pair = size if isinstance(size, list | tuple) else (size, size)
    if size is not None and not (len(pair) == 2 and all(_is_int(n, 1, 65536) for n in pair)):
        raise _bad("sample_size", size, "give null, a whole number or [height, width]")


def _check_blocks(cfg: UNetConfig) -> None:
    widths = cfg.block_out_channels
    if not 1 <= len(widths) <= 12 or not all(_is_int(c, 2, 16384) for c in widths):
        raise _bad("block_out_channels", widths, "give 1 to 12 whole numbers from 2 to 16384")
    if widths[0] // 2 <= cfg.freq_shift:
        raise _bad("freq_shift", cfg.freq_shift, f"it must be less than half of the first width, {widths[0]}")
    for c in widths:
        if c % cfg.norm_num_groups:
            raise _bad("norm_num_groups", cfg.norm_num_groups, f"it must divide every width, and {c} is one")
        if cfg.attention_head_dim and c % cfg.attention_head_dim and _has_attention(cfg, c):
            raise _bad("attention_head_dim", cfg.attention_head_dim, f"it must divide the width {c}")
    if cfg.attn_norm_num_groups and widths[-1] % cfg.attn_norm_num_groups:
        raise _bad("attn_norm_num_groups", cfg.attn_norm_num_groups, f"it must divide the last width, {widths[-1]}")
    for name in ("down_block_types", "up_block_types"):
        if len(getattr(cfg, name)) != len(widths):
            raise _bad(name, getattr(cfg, name), f"block_out_channels has {len(widths)} levels, so give as many")


def _check_choices(cfg: UNetConfig) -> None:
    for name, known in CHOICES.items():
        value = getattr(cfg, name)
        for choice in value if name.endswith("_block_types") else [value]:
            if choice not in known:
                raise _bad(name, choice, f"choose from {', '.join(known)}")


def _has_attention(cfg: UNetConfig, width: int) -> bool:
    levels = zip(cfg.block_out_channels, cfg.down_block_types, cfg.up_block_types[::-1], strict=False)
    middle = cfg.add_attention and width == cfg.block_out_channels[-1]
    return middle or any(c == width and "Attn" in f"{down}{up}" for c, down, up in levels)


def config_from_dict(values: dict) -> UNetConfig:
    """The configuration in the words of a diffusers config.json. Raises MinidiffError for what is not built here."""
    if not isinstance(values, dict):
        raise MinidiffError(
            f"U-Net configuration: expected an object of keys and values, found {type(values).__name__}"
        )
    if values.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise _bad("_class_name", values["_class_name"], "only UNet2DModel is read here")
    known = {field.name for field in fields(UNetConfig)}
    for name, value in values.items():
        if name.startswith("_") or name in known or name == "num_train_timesteps":  # of learned time embeddings only
            continue
        if name not in FIXED:
            raise _bad(ascii(name)[1:-1], value, "the key is not known")
        if value != FIXED[name]:
            raise _bad(name, value, f"only {FIXED[name]!r} is")
    return UNetConfig(**{name: value for name, value in values.items() if name in known})


def config_to_dict(cfg: UNetConfig) -> dict:
    """The contents of a config.json that diffusers reads."""
    return {"_class_name": "UNet2DModel", **asdict(cfg)}


def times_halved(H: int, W: int) -> int:
    """How often H and W divide by two, down to 4, three times at most."""
    halvings = 0
    while (
        halvings < 3 and H % 2 ** (halvings + 1) == 0 and W % 2 ** (halvings + 1) == 0 and min(H, W) >= 8 * 2**halvings
    ):
        halvings += 1
    return halvings


def downsamplings(H: int, W: int, depth: int, fewest: int = 1, most: int = 12) -> int:
    """How often a network of `depth` levels downsamples H x W pixels by two: depth - 1 times.

    Raises MinidiffError for a depth outside fewest..most, and where H or W do not divide by two so often.
    """
    side = gcd(H, W)
    most = min(most, (side & -side).bit_length())  # one level more than the times that two divides both
    if not fewest <= depth <= most:
        allowed = f"give {fewest} to {most} levels" if fewest <= most else "cut the images to another size"
        raise MinidiffError(f"depth {depth}: does not go with {W}x{H} pixels; {allowed}")
    return depth - 1


def check_width(width: int, multiple: int) -> None:
    """Raises MinidiffError for channels of a first level that are no multiple of that, or more than 4096."""
    if width % multiple or not multiple <= width <= 4096:
        raise MinidiffError(f"width {width}: give a multiple of {multiple}, from {multiple} to 4096")


def default_config(
    shape: tuple[int, int, int], width: int = 32, num_class_embeds: int | None = None, depth: int | None = None
) -> UNetConfig:
    """A U-Net for images of shape (H, W, C): widths 1, 2, 3, 3, ... times `width`, attention at the lowest level.

    depth  how many levels; None: it halves as often as H and W divide by two, down to 4 pixels, three times at most
    Raises MinidiffError for a width that is no multiple of 8, and a depth that does not go with H and W.
    """
    H, W, C = shape
    check_width(width, GROUPS)
    halvings = times_halved(H, W) if depth is None else downsamplings(H, W, depth)
    widths = tuple(width * min(level + 1, 3) for level in range(halvings + 1))
    return UNetConfig(
        sample_size=H if H == W else (H, W),
        in_channels=C,
        out_channels=C,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * halvings + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * halvings,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        attention_head_dim=None,
        num_class_embeds=num_class_embeds,
    )
