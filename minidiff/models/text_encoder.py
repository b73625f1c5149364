"""CLIP's text encoder: the numbers of a text become a vector for each of its places (Radford et al. 2021).

A transformer (Vaswani et al. 2017) that looks back only: the vector of a place knows all that stands before it, so
that of the end knows the whole text. Attributes are named as transformers' CLIPTextModel names them.
"""

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Embedding, LayerNorm, Linear, Module
from minidiff.engine.tensor import Tensor
from minidiff.models.latent_config import TextEncoderConfig


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which is about gelu (Hendrycks & Gimpel 2016)."""
    return F.affine(F.silu(F.affine(x, 1.702)), 1 / 1.702)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Embeddings(Module):
    """What is said, plus where: ids (N, T) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng, backend: str):
        self.token_embedding = Embedding(cfg.vocab_size, cfg.hidden_size, rng, backend)
        self.position_embedding = Embedding(cfg.max_position_embeddings, cfg.hidden_size, rng, backend)

    def __call__(self, ids: np.ndarray) -> Tensor:
        N, T = ids.shape
        said = F.reshape(self.token_embedding(ids.reshape(-1)), (N, T, -1))  # (N, T, D)
        return F.add(said, self.position_embedding(np.arange(T)))


class CausalSelfAttention(Module):
    """Attention of every place to itself and those before it: (N, T, D) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng, backend: str):
        width, self.heads = cfg.hidden_size, cfg.num_attention_heads
        self.k_proj = Linear(width, width, rng, backend)
        self.v_proj = Linear(width, width, rng, backend)
        self.q_proj = Linear(width, width, rng, backend)
        self.out_proj = Linear(width, width, rng, backend)

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        N, T, D = x.shape
        split = (N, T, self.heads, D // self.heads)
        q, k, v = (F.reshape(project(x), split) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.reshape(F.attention(q, k, v, causal=True), x.shape), add=add)


class MLP(Module):
    """Wide and back: (N, T, D) -> (N, T, D)."""

    def __init__(self, cfg: TextEncoderConfig, rng, backend: str):
        self.fc1 = Linear(cfg.hidden_size, cfg.intermediate_size, rng, backend)
        self.fc2 = Linear(cfg.intermediate_size, cfg.hidden_size, rng, backend)
        self.activation = ACTIVATIONS[cfg.hidden_act]

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)), add=add)


class Layer(Module):
    """Attention, then the two linear layers; each normalised first and added."""

    def __init__(self, cfg: TextEncoderConfig, rng, backend: str):
        self.self_attn = CausalSelfAttention(cfg, rng, backend)
        self.layer_norm1 = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, backend)
        self.mlp = MLP(cfg, rng, backend)
        self.layer_norm2 = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, backend)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.self_attn(self.layer_norm1(x), add=x)
        return self.mlp(self.layer_norm2(x), add=x)


class Layers(Module):
    """All of them, under the name that transformers gives them."""

    def __init__(self, cfg: TextEncoderConfig, rng, backend: str):
        self.layers = [Layer(cfg, rng, backend) for _ in range(cfg.num_hidden_layers)]


class TextEncoder(Module):
    """embeddings = text_encoder(ids): what the U-Net listens to.

    config, rng and backend as of UNet.
    """

    def __init__(self, config: TextEncoderConfig, rng, backend: str = "numba"):
        self.config = config
        self.embeddings = Embeddings(config, rng, backend)
        self.encoder = Layers(config, rng, backend)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, backend)

    def __call__(self, ids: np.ndarray, clip_skip: int = 0) -> Tensor:
        """(N, T, D), normalised at the end.

        ids        (N, T) integers, T at most max_position_embeddings
        clip_skip  how many of the last layers are left out
        Raises ValueError if the shape or clip_skip does not fit, IndexError for an id beyond the vocabulary.
        """
        ids, layers = np.asarray(ids), self.encoder.layers
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_position_embeddings:
            raise ValueError(f"ids have shape {ids.shape}: give (N, T), T up to {self.config.max_position_embeddings}")
        if not 0 <= clip_skip < len(layers):
            raise ValueError(f"clip_skip is {clip_skip}, of {len(layers)} layers: give 0 to {len(layers) - 1}")
        x = self.embeddings(ids)  # (N, T, D)
        for layer in layers[: len(layers) - clip_skip]:
            x = layer(x)
        return self.final_layer_norm(x)
