"""CLIP's text encoder: token ids become one embedding per position (Radford et al. 2021).

A transformer (Vaswani et al. 2017) with causal attention: a position's embedding depends on the tokens up to it, so
the one at the end-of-text token depends on the whole text. Attributes are named as in transformers' CLIPTextModel.
"""

from collections.abc import Callable

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Embedding, LayerNorm, Linear, Module
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor
from minidiff.models.config import TextEncoderConfig


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of gelu (Hendrycks & Gimpel 2016)."""
    return F.affine(F.silu(F.affine(x, 1.702)), 1 / 1.702)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Embeddings(Module):
    """Token embedding plus position embedding: ids (N, T) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng: InitRng):
        self.token_embedding: Embedding = Embedding(cfg.vocab_size, cfg.hidden_size, rng)
        self.position_embedding: Embedding = Embedding(cfg.max_position_embeddings, cfg.hidden_size, rng)

    def __call__(self, ids: np.ndarray) -> Tensor:
        N, T = ids.shape
        tokens = F.reshape(self.token_embedding(ids.reshape(-1)), (N, T, -1))  # (N, T, D)
        return F.add(tokens, self.position_embedding(np.arange(T)))


class CausalSelfAttention(Module):
    """Attention of every position to itself and earlier ones, + add: (N, T, D) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng: InitRng):
        width = cfg.hidden_size
        self.heads: int = cfg.num_attention_heads
        self.k_proj: Linear = Linear(width, width, rng)
        self.v_proj: Linear = Linear(width, width, rng)
        self.q_proj: Linear = Linear(width, width, rng)
        self.out_proj: Linear = Linear(width, width, rng)

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        N, T, D = x.shape
        split = (N, T, self.heads, D // self.heads)
        q, k, v = (F.reshape(project(x), split) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.reshape(F.attention(q, k, v, causal=True), x.shape), add=add)


class MLP(Module):
    """Position-wise feed-forward network, + add: (N, T, D) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng: InitRng):
        self.fc1: Linear = Linear(cfg.hidden_size, cfg.intermediate_size, rng)
        self.fc2: Linear = Linear(cfg.intermediate_size, cfg.hidden_size, rng)
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[cfg.hidden_act]

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)), add=add)


class Layer(Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, cfg: TextEncoderConfig, rng: InitRng):
        self.self_attn: CausalSelfAttention = CausalSelfAttention(cfg, rng)
        self.layer_norm1: LayerNorm = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)
        self.mlp: MLP = MLP(cfg, rng)
        self.layer_norm2: LayerNorm = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.self_attn(self.layer_norm1(x), add=x)
        return self.mlp(self.layer_norm2(x), add=x)


class Layers(Module):
    """The list of layers, nested as in transformers so that the keys match; TextEncoder calls them."""

    def __init__(self, cfg: TextEncoderConfig, rng: InitRng):
        self.layers: list[Layer] = [Layer(cfg, rng) for _ in range(cfg.num_hidden_layers)]


class TextEncoder(Module):
    """embeddings = text_encoder(ids): the context of the U-Net's cross-attention.

    config, rng, backend: as for UNet.
    """

    def __init__(self, config: TextEncoderConfig, rng: InitRng, backend: str = "numba"):
        self.config: TextEncoderConfig = config
        self.embeddings: Embeddings = Embeddings(config, rng)
        self.encoder: Layers = Layers(config, rng)
        self.final_layer_norm: LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.move(backend)

    def __call__(self, ids: np.ndarray, clip_skip: int = 0) -> Tensor:
        """Embeddings (N, T, D), after the final layer norm.

        ids        (N, T) integers, T at most max_position_embeddings
        clip_skip  number of last layers to skip
        Raises ValueError if the shape or clip_skip is out of range, IndexError if an id is not in the vocabulary.
        """
        ids = np.asarray(ids)
        layers = self.encoder.layers
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_position_embeddings:
            raise ValueError(
                f"ids have shape {ids.shape}: give (N, T), T from 1 to {self.config.max_position_embeddings}"
            )
        if not 0 <= clip_skip < len(layers):
            raise ValueError(
                f"clip_skip is {clip_skip}, the encoder has {len(layers)} layers: give 0 to {len(layers) - 1}"
            )
        x = self.embeddings(ids)  # (N, T, D)
        for layer in layers[: len(layers) - clip_skip]:
            x = layer(x)
        return self.final_layer_norm(x)
