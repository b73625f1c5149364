"""The networks' configurations: the keys of their config.json files in diffusers and transformers, as dataclasses."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from minidiff.models.config_rules import (
    BOOLEAN,
    PAIR,
    SIDE,
    SIZE,
    FileConfig,
    Rule,
    each,
    either,
    integer,
    key,
    one_of,
    or_none,
    real,
)

DOWN, ATTN_DOWN, RESNET_DOWN = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
UP, ATTN_UP, RESNET_UP = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


def has_attention(block_type: str) -> bool:
    """Whether each residual block of a level of that type is followed by attention."""
    return "Attn" in block_type


class LevelsConfig(FileConfig):
    """Base class of networks of levels: one width and one block type each, down and up."""

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    norm_num_groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        widths, groups = self.block_out_channels, self.norm_num_groups
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != len(widths):
                remedy = f"give one for each of the {len(widths)} widths in block_out_channels"
                raise self.bad(name, getattr(self, name), remedy)
        for width in widths:
            if width % groups:
                remedy = f"it must divide every width in block_out_channels, and {width} is one"
                raise self.bad("norm_num_groups", groups, remedy)


class AnyUNetConfig(LevelsConfig):
    """Base class of the U-Nets' configurations. Where there is a value here, TextUNetConfig has no other."""

    sample_size: int | tuple[int, int] | None
    in_channels: int
    out_channels: int
    layers_per_block: int
    norm_eps: float
    dropout: float
    center_input_sample: bool
    flip_sin_to_cos: bool
    freq_shift: float
    time_embedding_dim: int | None
    num_class_embeds: int | None = None
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    resnet_time_scale_shift: str = "default"
    mid_block_scale_factor: float = 1

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def scale_shift(self) -> bool:
        """Whether the time embedding scales and shifts."""
        return self.resnet_time_scale_shift == "scale_shift"


@dataclass(frozen=True)
class UNetConfig(AnyUNetConfig):
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

    CLASS: ClassVar[str] = "UNet2DModel"
    FIXED: ClassVar[dict[str, Any]] = {
        "act_fn": "silu", "class_embed_type": None, "mid_block_type": "UNetMidBlock2D", "num_train_timesteps": ...,
        "time_embedding_type": "positional",
    }  # fmt: skip

    sample_size: int | tuple[int, int] | None = key(None, SIZE)
    in_channels: int = key(3, integer(1, 1024))
    out_channels: int = key(3, integer(1, 1024))
    block_out_channels: tuple[int, ...] = key((224, 448, 672, 896), each(integer(2, 16384)))
    down_block_types: tuple[str, ...] = key((DOWN,) + (ATTN_DOWN,) * 3, each(one_of(DOWN, ATTN_DOWN, RESNET_DOWN)))
    up_block_types: tuple[str, ...] = key((ATTN_UP,) * 3 + (UP,), each(one_of(UP, ATTN_UP, RESNET_UP)))
    layers_per_block: int = key(2, integer(1, 64))
    norm_num_groups: int = key(32, integer(1, 1024))
    norm_eps: float = key(1e-5, real(1e-12, 1.0))
    attn_norm_num_groups: int | None = key(None, or_none(integer(1, 1024)))
    attention_head_dim: int | None = key(8, or_none(integer(1, 16384)))
    downsample_padding: int = key(1, integer(0, 1))
    downsample_type: str = key("conv", one_of("conv", "resnet"))
    upsample_type: str = key("conv", one_of("conv", "resnet"))
    resnet_time_scale_shift: str = key("default", one_of("default", "scale_shift"))
    mid_block_scale_factor: float = key(1, real(1e-3, 1e3))
    center_input_sample: bool = key(False, BOOLEAN)
    time_embedding_dim: int | None = key(None, or_none(integer(1, 65536)))
    flip_sin_to_cos: bool = key(True, BOOLEAN)
    freq_shift: float = key(0, real(0, 1))
    dropout: float = key(0.0, real(0, 0.99))
    add_attention: bool = key(True, BOOLEAN)
    num_class_embeds: int | None = key(None, or_none(integer(1, 1_000_000)))

    def __post_init__(self) -> None:
        super().__post_init__()
        widths, head = self.block_out_channels, self.attention_head_dim
        if widths[0] // 2 <= self.freq_shift:
            remedy = f"it must be less than half the first width, {widths[0]}"
            raise self.bad("freq_shift", self.freq_shift, remedy)
        for width in self._widths_with_attention():
            if head and width % head:
                raise self.bad("attention_head_dim", head, f"it must divide the width {width}")
        if self.attn_norm_num_groups and widths[-1] % self.attn_norm_num_groups:
            remedy = f"it must divide the last width, {widths[-1]}"
            raise self.bad("attn_norm_num_groups", self.attn_norm_num_groups, remedy)

    def _widths_with_attention(self) -> list[int]:
        types = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        levels = zip(self.block_out_channels, types, strict=True)
        widths = [width for width, (down, up) in levels if has_attention(down) or has_attention(up)]
        return widths + [self.block_out_channels[-1]] * self.add_attention


@dataclass(frozen=True)
class TextUNetConfig(AnyUNetConfig):
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


@dataclass(frozen=True)
class VAEConfig(LevelsConfig):
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


CLASS_NAMES = Rule(
    lambda value: isinstance(value, tuple) and len(value) > 1 and all(isinstance(name, str) and name for name in value),
    "a list of at least two names",
)


@dataclass(frozen=True)
class ClassifierConfig(FileConfig):
    """A classifier of noisy images (classifier.py), a class of this package alone.

    sample_size  height and width of the images that it was trained on
    classes      their names
    """

    CLASS: ClassVar[str] = "NoisyClassifier"

    in_channels: int = key(3, integer(1, 1024))
    sample_size: int | tuple[int, int] = key(32, either(SIDE, PAIR))
    classes: tuple[str, ...] = key(("0", "1"), CLASS_NAMES)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that it was trained on."""
        height, width = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,) * 2
        return height, width, self.in_channels
