"""Configurations of Stable Diffusion's networks: the keys of their config.json files, as dataclasses.

Each key has a rule for its values. Unknown keys and values that break their rule raise an error that names them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from minidiff.errors import MinidiffError
from minidiff.models.config import GROUPS, check_width, downsamplings, num_downsamples


@dataclass(frozen=True)
class Rule:
    """Which values are valid, and their description for error messages."""

    holds: Callable[[Any], bool]
    description: str


def integer(low: int, high: int) -> Rule:
    """Integers from low to high."""
    return Rule(lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}")


def real(low: float, high: float) -> Rule:
    """Real numbers from low to high."""
    return Rule(lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low} to {high}")


def one_of(*choices: Any) -> Rule:
    """One of the choices, of the same type."""
    return Rule(lambda value: any(value is c or (value == c and type(value) is type(c)) for c in choices),
                " or ".join(map(repr, choices)))  # fmt: skip


def or_none(rule: Rule) -> Rule:
    """A value of the rule, or None."""
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.description}, or null")


def each(rule: Rule) -> Rule:
    """Lists of one to twelve values of the rule."""
    return Rule(
        lambda value: isinstance(value, tuple) and 1 <= len(value) <= 12 and all(map(rule.holds, value)),
        f"a list of one to twelve, each {rule.description}",
    )


def either(first: Rule, second: Rule) -> Rule:
    """A value of one of two rules."""
    return Rule(
        lambda value: first.holds(value) or second.holds(value), f"{first.description}, or {second.description}"
    )


def key(default: Any, rule: Rule) -> Any:
    """A key of config.json: its default and its rule."""
    return field(default=default, metadata={"rule": rule})


BOOLEAN = one_of(True, False)
SIDE = integer(1, 65536)
PAIR = Rule(lambda value: each(SIDE).holds(value) and len(value) == 2, "a list of two of them, height and width")
SIZE = or_none(either(SIDE, PAIR))


class FileConfig:
    """Base class. Raises MinidiffError, which names key and value, if a value is not supported."""

    CLASS: ClassVar[str]  # the network's class in diffusers or transformers
    FIXED: ClassVar[dict[str, Any]] = {}  # keys of which only one value is implemented; ... allows any

    def __post_init__(self) -> None:
        for entry in fields(self):  # pyright: ignore[reportArgumentType]  of the dataclasses below
            value, rule = getattr(self, entry.name), entry.metadata["rule"]
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, entry.name, value)
            if not rule.holds(value):
                raise self.bad(entry.name, value, f"give {rule.description}")

    @classmethod
    def bad(cls, name: str, value: Any, remedy: str) -> MinidiffError:
        """The error for a value."""
        return MinidiffError(f"{cls.CLASS} configuration: {name} = {value!r:.200} is not supported: {remedy}")

    @classmethod
    def of(cls, values: Any) -> Self:
        """The configuration in a config.json. Raises MinidiffError if a key or value is not supported."""
        if not isinstance(values, dict):
            raise MinidiffError(f"{cls.CLASS} configuration: expected keys and values, found {type(values).__name__}")
        known = {entry.name for entry in fields(cls)}  # pyright: ignore[reportArgumentType]
        cls.check_keys(values, known)
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers config.json."""
        return {"_class_name": self.CLASS, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def check_keys(cls, values: dict[str, Any], known: set[str]) -> None:
        """Raises MinidiffError if the class is another or a key is unknown."""
        if values.get("_class_name", cls.CLASS) != cls.CLASS:
            raise cls.bad("_class_name", values["_class_name"], f"only {cls.CLASS} is read here")
        for name, value in values.items():
            if name in known or name.startswith("_"):
                continue
            if name not in cls.FIXED:
                raise cls.bad(ascii(name)[1:-1], value, "the key is not known")
            if value != cls.FIXED[name] and cls.FIXED[name] is not ...:
                raise cls.bad(name, value, f"only {cls.FIXED[name]!r} is")

    def check_levels(self, widths: tuple[int, ...], groups: int, *names: str) -> None:
        """Raises MinidiffError unless the named lists have one entry per width and groups divides every width."""
        for name in names:
            if len(getattr(self, name)) != len(widths):
                remedy = f"give one for each of the {len(widths)} widths in block_out_channels"
                raise self.bad(name, getattr(self, name), remedy)
        for width in widths:
            if width % groups:
                raise self.bad(
                    "norm_num_groups", groups, f"it must divide every width in block_out_channels, and {width} is one"
                )


@dataclass(frozen=True)
class TextEncoderConfig(FileConfig):
    """CLIP's text encoder, with the keys and defaults of transformers' CLIPTextConfig.

    hidden_size              channels of a token
    intermediate_size        hidden channels of the feed-forward network
    max_position_embeddings  maximum length of a text, in tokens
    """

    CLASS: ClassVar[str] = "CLIPTextModel"

    vocab_size: int = key(49408, integer(2, 1_000_000))
    hidden_size: int = key(512, integer(1, 16384))
    intermediate_size: int = key(2048, integer(1, 65536))
    num_hidden_layers: int = key(12, integer(1, 100))
    num_attention_heads: int = key(8, integer(1, 1024))
    max_position_embeddings: int = key(77, integer(2, 65536))
    hidden_act: str = key("quick_gelu", one_of("quick_gelu", "gelu"))
    layer_norm_eps: float = key(1e-5, real(1e-12, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise self.bad("num_attention_heads", self.num_attention_heads, f"it must divide {self.hidden_size}")

    def to_dict(self) -> dict[str, Any]:
        """The contents of a transformers config.json."""
        return {"architectures": [self.CLASS], "model_type": "clip_text_model", **asdict(self)}

    @classmethod
    def check_keys(cls, values: dict[str, Any], known: set[str]) -> None:
        """Only the model type and the attention mask: transformers writes many keys that change nothing here."""
        if values.get("model_type") != "clip_text_model":
            raise cls.bad("model_type", values.get("model_type"), "only 'clip_text_model' is read here")
        if values.get("use_attention_mask"):
            raise cls.bad("use_attention_mask", True, "only false is")


@dataclass(frozen=True)
class VAEConfig(FileConfig):
    """The autoencoder, with the keys and defaults of diffusers' AutoencoderKL.

    latent_channels   channels of the latents
    scaling_factor    factor that gives the latents a standard deviation of about 1
    sample_size       height and width of a tile in tiled decoding, in pixels
    """

    CLASS: ClassVar[str] = "AutoencoderKL"
    FIXED: ClassVar[dict[str, Any]] = {
        "act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None, "force_upcast": ...,
    }  # fmt: skip

    in_channels: int = key(3, integer(1, 1024))
    out_channels: int = key(3, integer(1, 1024))
    block_out_channels: tuple[int, ...] = key((64,), each(integer(1, 16384)))
    down_block_types: tuple[str, ...] = key(("DownEncoderBlock2D",), each(one_of("DownEncoderBlock2D")))
    up_block_types: tuple[str, ...] = key(("UpDecoderBlock2D",), each(one_of("UpDecoderBlock2D")))
    layers_per_block: int = key(1, integer(1, 64))
    latent_channels: int = key(4, integer(1, 1024))
    norm_num_groups: int = key(32, integer(1, 1024))
    sample_size: int | tuple[int, int] = key(32, SIZE)
    scaling_factor: float = key(0.18215, real(1e-6, 1e6))
    mid_block_add_attention: bool = key(True, BOOLEAN)
    use_quant_conv: bool = key(True, BOOLEAN)
    use_post_quant_conv: bool = key(True, BOOLEAN)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_levels(self.block_out_channels, self.norm_num_groups, "down_block_types", "up_block_types")


DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True)
class TextUNetConfig(FileConfig):
    """The text-conditional U-Net, with the keys and defaults of diffusers' UNet2DConditionModel.

    attention_head_dim            the NUMBER of heads (diffusers' naming mistake), for all levels or per level
    cross_attention_dim           channels of the text embeddings
    transformer_layers_per_block  transformer blocks after each residual block
    use_linear_projection         the projections before and after them are linear layers (Stable Diffusion 2.x) or
                                  1x1 convolutions (1.x)
    """

    CLASS: ClassVar[str] = "UNet2DConditionModel"
    FIXED: ClassVar[dict[str, Any]] = {
        "act_fn": "silu", "addition_embed_type": None, "addition_embed_type_num_heads": ...,
        "addition_time_embed_dim": None,
        "attention_type": "default", "class_embed_type": None, "class_embeddings_concat": False,
        "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
        "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
        "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
        "time_embedding_type": "positional", "timestep_post_act": None, "upcast_attention": ...,
    }  # fmt: skip

    sample_size: int | tuple[int, int] | None = key(None, SIZE)
    in_channels: int = key(4, integer(1, 1024))
    out_channels: int = key(4, integer(1, 1024))
    center_input_sample: bool = key(False, BOOLEAN)
    flip_sin_to_cos: bool = key(True, BOOLEAN)
    freq_shift: float = key(0, real(0, 1))
    down_block_types: tuple[str, ...] = key((CROSS_DOWN,) * 3 + (DOWN,), each(one_of(CROSS_DOWN, DOWN)))
    up_block_types: tuple[str, ...] = key((UP,) + (CROSS_UP,) * 3, each(one_of(CROSS_UP, UP)))
    block_out_channels: tuple[int, ...] = key((320, 640, 1280, 1280), each(integer(4, 16384)))
    layers_per_block: int = key(2, integer(1, 64))
    dropout: float = key(0.0, real(0, 0.99))
    norm_num_groups: int = key(32, integer(1, 1024))
    norm_eps: float = key(1e-5, real(1e-12, 1.0))
    cross_attention_dim: int = key(1280, integer(1, 16384))
    transformer_layers_per_block: int = key(1, integer(1, 64))
    attention_head_dim: int | tuple[int, ...] = key(8, either(integer(1, 1024), each(integer(1, 1024))))
    use_linear_projection: bool = key(False, BOOLEAN)
    time_embedding_dim: int | None = key(None, or_none(integer(1, 65536)))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_levels(self.block_out_channels, self.norm_num_groups, "down_block_types", "up_block_types")
        if len(self.heads) != len(self.block_out_channels):
            raise self.bad("attention_head_dim", self.attention_head_dim, "give one integer, or one per level")
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % heads:
                raise self.bad("attention_head_dim", self.attention_head_dim, f"{heads} heads do not divide {width}")

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads per level."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


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
