"""What sampling launches, for compilation ahead: one evaluation of each network."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np

import minidiff.ranks as ranks
from minidiff.compilation import compile_ahead
from minidiff.engine.nn import Module, Parameter
from minidiff.engine.tensor import no_grad
from minidiff.formats.pipeline import Pipeline, TextPipeline

TILE = 32  # latents in height and width that are decoded: enough to launch what a large image does


def compile_for_sampling(pipeline: Pipeline, n: int = 1, size: tuple[int, int] | None = None) -> None:
    """Compile the kernels that sampling n images at once launches, of that height and width or the pipeline's own.

    The encoder of an autoencoder and a classifier for guidance are not included: their kernels compile at first use.
    Of several ranks rank 0 compiles, and the others wait: they find the kernels in the cache.
    """
    size = size or pipeline.image_shape[:2]
    if ranks.rank() == 0:
        compile_ahead(pipeline.unet.backend.name, lambda: _evaluate(_without_weights(pipeline), n, size))
    ranks.gather(None)


def _without_weights(pipeline: Pipeline) -> Pipeline:
    """A pipeline of the same networks, but with weights of zero."""
    networks = [part for part in vars(pipeline).values() if isinstance(part, Module)]
    largest = max((p.data.nbytes for network in networks for p in network.parameters()), default=0)
    zeros = np.zeros(largest, np.uint8)  # of all weights: many small arrays would be filled, and stay in the heap
    return replace(pipeline, **{name: _zeros_like(part, zeros) for name, part in vars(pipeline).items()})


def _zeros_like(part: Any, zeros: np.ndarray) -> Any:
    """A copy of a network whose weights are zero, which takes no memory until they are read; others unchanged.

    So whatever an operation may keep of its weights, such as packed ones, is not of the network's own.
    """
    if isinstance(part, list):
        return [_zeros_like(value, zeros) for value in part]
    copied = copy.copy(part)
    if isinstance(part, Parameter):
        copied.data = zeros[: part.data.nbytes].view(part.data.dtype).reshape(part.shape)
    elif isinstance(part, Module):
        vars(copied).update({name: _zeros_like(value, zeros) for name, value in vars(part).items()})
    return copied


def _evaluate(pipeline: Pipeline, n: int, size: tuple[int, int]) -> None:
    """Evaluate the networks once."""
    t = np.zeros(n, np.int64)
    with no_grad():
        if isinstance(pipeline, TextPipeline):
            (height, width), vae = size, pipeline.vae
            text = pipeline.text_encoder(pipeline.tokenizer([""] * n))
            shape = height // vae.factor, width // vae.factor, vae.config.latent_channels
            latents = pipeline.unet(np.zeros((n, *shape), np.float32), t, text)
            vae.decode(latents.numpy()[:1, :TILE, :TILE])
        else:
            labels = None if pipeline.num_class_embeds is None else np.zeros(n, np.int64)
            pipeline.unet(np.zeros((n, *pipeline.image_shape), np.float32), t, labels)
