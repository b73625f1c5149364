"""Pipelines: a U-Net with its schedule and sampler; for prompts also tokenizer, text encoder and autoencoder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.nn import Module
from minidiff.models.mlp import MLP
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE, Pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
    """A folder that was opened to sample images from it, on one backend.

    unet     predicts eps, x0, v or another target, which the schedule names
    sampler  with the folder's settings
    classes  names of a class-conditional network's classes; () if it has none, or the folder does not name them
    folder   for messages
    step     of a run: the training step of its weights
    """

    unet: UNet | TextUNet | MLP
    schedule: AnySchedule
    sampler: Sampler
    classes: tuple[str, ...] = ()
    folder: Path = Path()
    step: int | None = None

    @property
    def num_class_embeds(self) -> int | None:
        """The number of class embeddings, the null class's included; None unless it is class-conditional."""
        return None if isinstance(self.unet, TextUNet) else self.unet.config.num_class_embeds

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the U-Net was trained on; see `AnyUNet.image_shape`."""
        return self.unet.image_shape

    @property
    def learned_variance(self) -> bool:
        """Whether the U-Net predicts the reverse variance too, in twice as many channels."""
        return not isinstance(self.unet, MLP) and self.unet.config.out_channels == 2 * self.unet.config.in_channels

    def to(self, backend: str) -> Self:
        """A pipeline with the networks copied to another backend."""
        return replace(self, **{k: part.to(backend) for k, part in vars(self).items() if isinstance(part, Module)})


@dataclass(frozen=True, eq=False, kw_only=True)
class TextPipeline(Pipeline):
    """A pipeline that samples images of prompts.

    text_encoder  the U-Net cross-attends to its output
    vae           the U-Net works on its latents, or on pixels
    """

    unet: TextUNet
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    vae: VAE | Pixels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images, after the autoencoder, that the U-Net was trained on."""
        height, width, _ = self.unet.image_shape  # latents
        return height * self.vae.factor, width * self.vae.factor, self.vae.config.in_channels


@dataclass(frozen=True, eq=False, kw_only=True)
class PointsPipeline(Pipeline):
    """A pipeline that samples points: images of one pixel, whose channels are the coordinates.

    unet  in the place of a U-Net, an MLP
    data  the name of the dataset, one of POINTS
    """

    unet: MLP
    data: str
