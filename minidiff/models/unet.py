"""The U-Net of DDPM (Ho et al. 2020, appendix B), as diffusers' UNet2DModel builds it.

Down: residual blocks, each output pushed on the stack hs; every level but the last ends with downsampling by 2.
Middle: residual block, self-attention, residual block. Up: the mirror image; the input of every residual block is
concatenated with an entry popped from hs (skip connection). The time embedding enters every residual block.
Attributes are named as in diffusers, so a checkpoint's keys are the parameter names used here.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.nn import Conv2d, Embedding, GroupNorm, Module, SelfAttention
from minidiff.engine.pooling import avg_pool
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import (
    BlockConfig,
    DownBlock,
    Downsample,
    MidBlock,
    ResnetBlock,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    timestep_embedding,
    up_block_inputs,
)
from minidiff.models.config import AnyUNetConfig, UNetConfig, has_attention

C = TypeVar("C", bound=AnyUNetConfig)


class AnyUNet(Module, Generic[C]):
    """What UNet and TextUNet (text_unet.py) share: all but the kind of attention and of conditioning."""

    SIDE: ClassVar[int]  # of its images, if the configuration has no sample_size

    def __init__(self, config: C, rng: InitRng, backend: str = "numba"):
        self.config: C = config
        cfg, widths, classes = config, config.block_out_channels, config.num_class_embeds
        levels = range(len(widths))  # 0 at full resolution

        self.conv_in: Conv2d = Conv2d(cfg.in_channels, widths[0], 3, rng, pad=1)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(widths[0], cfg.time_embed_dim, rng)
        self.class_embedding: Embedding | None = Embedding(classes, cfg.time_embed_dim, rng) if classes else None
        self.down_blocks: list[DownBlock] = [self._down_block(level, rng) for level in levels]
        self.mid_block: MidBlock = self._mid_block(rng)
        self.up_blocks: list[UpBlock] = [self._up_block(level, rng) for level in reversed(levels)]
        self.conv_norm_out: GroupNorm = GroupNorm(cfg.norm_num_groups, widths[0], cfg.norm_eps)
        self.conv_out: Conv2d = Conv2d(widths[0], cfg.out_channels, 3, rng, pad=1)
        self.move(backend)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images or latents; SIDE x SIDE if the configuration has no sample_size."""
        size = self.config.sample_size or self.SIDE
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width, self.config.in_channels

    def _predict(self, x_t: Tensor, temb: Tensor, text: Tensor | None, rng: Rng | None) -> Tensor:
        """The prediction from x_t (N, H, W, in_channels), temb (N, E) and text (N, S, D); C0, ... CL are the widths."""
        silu_temb = F.silu(temb)
        h = self.conv_in(F.affine(x_t, 2, -1) if self.config.center_input_sample else x_t)  # (N, H, W, C0)
        hs = [h]
        for down in self.down_blocks:
            h = down(h, silu_temb, hs, text, rng)  # (N, H/2, W/2, C0), (N, H/4, W/4, C1), ... (N, H/2^L, W/2^L, CL)
        h = self.mid_block(h, silu_temb, text, rng)  # (N, H/2^L, W/2^L, CL)
        for up in self.up_blocks:
            h = up(h, silu_temb, hs, text, rng)  # ... (N, H/2, W/2, C2), (N, H, W, C1), (N, H, W, C0)
        return norm_conv(self.conv_norm_out, self.conv_out, h)  # (N, H, W, out_channels)

    def _temb(self, t: np.ndarray) -> Tensor:
        cfg = self.config
        sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        return self.time_embedding(Tensor(sinusoids, self.backend))  # (N, E)

    def _attention(self, level: int, rng: InitRng) -> Any:
        """A new attention layer for a level."""
        raise NotImplementedError

    def _mid_attentions(self, rng: InitRng) -> list[Any]:
        """The attention layer of the mid block, or none."""
        return [self._attention(len(self.config.block_out_channels) - 1, rng)]

    def _down_block(self, level: int, rng: InitRng) -> DownBlock:
        cfg, widths = self.config, self.config.block_out_channels
        width, block_type = widths[level], cfg.down_block_types[level]
        inputs = [widths[max(level - 1, 0)]] + [width] * (cfg.layers_per_block - 1)
        resnets = [self._resnet(channels, width, rng) for channels in inputs]
        attentions = [self._attention(level, rng) for _ in resnets if has_attention(block_type)]
        if level == len(widths) - 1:
            downsamplers = []
        elif resamples_in_resnet(block_type, cfg.downsample_type):
            downsamplers = [self._resnet(width, width, rng, avg_pool)]
        else:
            downsamplers = [Downsample(width, cfg.downsample_padding, rng)]
        return DownBlock(resnets, attentions, downsamplers)

    def _mid_block(self, rng: InitRng) -> MidBlock:
        width = self.config.block_out_channels[-1]
        attentions = self._mid_attentions(rng)  # its weights are drawn before those of the residual blocks
        resnets = [self._resnet(width, width, rng) for _ in range(2)]
        return MidBlock(attentions, resnets, self.config.mid_block_scale_factor)

    def _up_block(self, level: int, rng: InitRng) -> UpBlock:
        cfg, widths = self.config, self.config.block_out_channels
        width, block_type = widths[level], cfg.up_block_types[-1 - level]
        inputs = up_block_inputs(widths, cfg.layers_per_block)[level]
        resnets = [self._resnet(channels, width, rng) for channels in inputs]
        attentions = [self._attention(level, rng) for _ in resnets if has_attention(block_type)]
        if level == 0:
            upsamplers = []
        elif resamples_in_resnet(block_type, cfg.upsample_type):
            upsamplers = [self._resnet(width, width, rng, F.upsample_nearest)]
        else:
            upsamplers = [Upsample(width, rng)]
        return UpBlock(resnets, attentions, upsamplers)

    def _resnet(
        self, inputs: int, outputs: int, rng: InitRng, resample: Callable[..., Any] | None = None
    ) -> ResnetBlock:
        cfg = self.config
        block_cfg = BlockConfig(cfg.norm_num_groups, cfg.norm_eps, cfg.time_embed_dim, cfg.scale_shift, cfg.dropout)
        return ResnetBlock(inputs, outputs, block_cfg, rng, resample)

    def _check_images(self, x_t: Tensor, t: np.ndarray) -> None:
        if len(x_t.shape) != 4 or x_t.shape[3] != self.config.in_channels:
            raise ValueError(f"x_t has shape {x_t.shape}, the network takes (N, H, W, {self.config.in_channels})")
        if np.shape(t) != x_t.shape[:1]:
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {x_t.shape[0]} images: give ({x_t.shape[0]},)")


def resamples_in_resnet(block_type: str, resample_type: str) -> bool:
    """Whether a level resamples inside a residual block; for levels with attention the configuration decides."""
    return block_type.startswith("Resnet") or (has_attention(block_type) and resample_type == "resnet")


class UNet(AnyUNet[UNetConfig]):
    """model_output = unet(x_t, t): the prediction of eps, or of x0, v or another target it was trained on.

    config   its architecture; kept as `unet.config`
    rng      initialises the weights; None: zeros, to be loaded
    backend  of the parameters: "numpy", "numba", "cupy" or "cupy-tf32"
    """

    SIDE: ClassVar[int] = 32

    def __call__(self, x_t: Any, t: np.ndarray, cond: np.ndarray | None = None, rng: Rng | None = None) -> Tensor:
        """The prediction, (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; H and W divisible by 2^(levels - 1)
        t     (N,) int, 0-based
        cond  class labels (N,) int if num_class_embeds is set, else None
        rng   for dropout; None: no dropout
        Raises ValueError if a shape does not match, or labels are missing or unexpected.
        """
        x_t = x_t if isinstance(x_t, Tensor) else Tensor(x_t, self.backend)
        self._check(x_t, t, cond)
        temb = self._temb(t)
        if cond is not None and self.class_embedding is not None:
            temb = F.add(temb, self.class_embedding(cond))  # (N, E)
        return self._predict(x_t, temb, None, rng)

    def _attention(self, level: int, rng: InitRng) -> SelfAttention:
        return self._self_attention(level, self.config.norm_num_groups, rng)

    def _mid_attentions(self, rng: InitRng) -> list[SelfAttention]:
        cfg = self.config
        groups = cfg.attn_norm_num_groups or (None if cfg.scale_shift else cfg.norm_num_groups)
        return [self._self_attention(-1, groups, rng)] if cfg.add_attention else []

    def _self_attention(self, level: int, groups: int | None, rng: InitRng) -> SelfAttention:
        cfg, width = self.config, self.config.block_out_channels[level]
        return SelfAttention(width, width // (cfg.attention_head_dim or width), groups, cfg.norm_eps, rng)

    def _check(self, x_t: Tensor, t: np.ndarray, cond: np.ndarray | None) -> None:
        self._check_images(x_t, t)
        N, H, W, _ = x_t.shape
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        if H % factor or W % factor:
            raise ValueError(f"x_t is {H}x{W}: the network needs height and width divisible by {factor}")
        if cond is None and self.class_embedding is not None:
            raise ValueError("cond is missing: this network is conditioned on class labels")
        if cond is not None and self.class_embedding is None:
            raise ValueError("cond is given, but this network was made without num_class_embeds")
        if cond is not None and np.shape(cond) != (N,):
            raise ValueError(f"cond has shape {np.shape(cond)}, x_t holds {N} images: give ({N},)")
