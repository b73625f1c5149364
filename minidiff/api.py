"""The public names: `import minidiff as md` has them all as md.NAME (__init__.py)."""

from minidiff.data import open_dataset
from minidiff.diffusion.bound import bits_per_dim
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.editing import inpainting, invert, redraw, repaint, slerp
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.forward import q_posterior, q_sample
from minidiff.diffusion.guidance import autoguided, classifier_gradient, classifier_guided, guided
from minidiff.diffusion.likelihood import log_likelihood, ode_bits_per_dim
from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.model import as_model
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    sigmoid_schedule,
)
from minidiff.diffusion.steps import ddim_step, p_sample
from minidiff.engine.backend import get_backend
from minidiff.engine.ema import ema_profile, post_hoc_ema
from minidiff.engine.muon import Muon
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.engine.torch_generator import torch_generator
from minidiff.errors import MinidiffError, MinidiffWarning
from minidiff.formats.lora_files import load_lora, save_lora
from minidiff.formats.networks import load_classifier, load_sampler, load_schedule, load_unet, save_unet
from minidiff.formats.pipeline import Pipeline, PointsPipeline, TextPipeline
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config
from minidiff.models.unet import UNet
from minidiff.sampling.adapted import merged_loras
from minidiff.sampling.embeddings import with_embeddings
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import image_to_image, inpaint, text_to_image
from minidiff.training.step import train, train_step

__all__ = [
    "AdamW", "EDM", "Flow", "GaussianMixture", "MinidiffError", "MinidiffWarning", "Muon", "Pipeline", "PointsPipeline",
    "Sampler", "Schedule", "Tensor", "TextPipeline", "UNet", "UNetConfig", "as_model", "autoguided", "bits_per_dim",
    "classifier_gradient", "classifier_guided", "cosine_schedule", "ddim_step", "default_config", "ema_profile",
    "exact_model", "get_backend", "guided", "image_to_image", "inpaint", "inpainting", "invert", "linear_schedule",
    "load_classifier", "load_lora", "load_sampler", "load_schedule", "load_unet", "log_likelihood", "merged_loras",
    "min_snr_weight", "no_grad", "ode_bits_per_dim", "open_dataset", "open_pipeline", "p_sample", "post_hoc_ema",
    "q_posterior", "q_sample", "redraw", "repaint", "rescale_zero_terminal_snr", "sample", "save_lora", "save_unet",
    "scaled_linear_schedule", "sigmoid_schedule", "slerp", "text_to_image", "torch_generator", "train", "train_step",
    "training_loss", "with_embeddings",
]  # fmt: skip
