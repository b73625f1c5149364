"""Pictures of a text, with a Stable Diffusion pipeline: drawn from nothing, drawn anew, filled in.

The walk is that of every other model, among latents; a text is its condition, and guidance its insistence. Pictures are
float32 (N, H, W, 3) in [-1, 1], as many as there are prompts. rng as for `sample`: `torch_generator(seed)` draws the
noise of torch.Generator().manual_seed(seed), and with a sampler that is as_diffusers the images are diffusers'.
tick() is called after every step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.editing import blended, check_strength, redraw
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.reverse import Trajectory, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.stable_diffusion import Pipeline

Tick = Callable[[], object]

WHOLE = 1024 * 1024  # pixels of the largest picture that is decoded in one go


def text_to_image(
    pipeline: Pipeline,
    prompts: list[str],
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Any = None,
    size: tuple[int, int] | None = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
) -> np.ndarray:
    """Draw a picture of each prompt, out of noise.

    negative_prompt  what to lead away from
    guidance         how much to insist: 1 is the model as it is
    rng              draws the noise; None: default_rng()
    size             height and width; None: what the network was trained for
    sampler          None: the folder's own
    Raises MinidiffError for sizes, steps and guidance that do not go.
    """
    rng = np.random.default_rng() if rng is None else rng
    height, width = check_size(pipeline, size or native_size(pipeline))
    factor, C = pipeline.vae.factor, pipeline.vae.config.latent_channels
    shape = (len(prompts), height // factor, width // factor, C)
    model, cond = _listening(pipeline, prompts, negative_prompt, guidance)
    walk = sample(model, pipeline.schedule, shape, rng, steps, sampler or pipeline.sampler, cond)
    return decode(pipeline, _end(walk, tick))


def image_to_image(
    pipeline: Pipeline,
    prompts: list[str],
    x0: np.ndarray,
    strength: float = 0.8,
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Any = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
) -> np.ndarray:
    """Half-drown the latents of pictures x0 in noise and walk back from there, toward the prompts (SDEdit).

    strength is the share of the walk that is walked, 0 to 1, cut to whole steps. The rest as of `text_to_image`.
    """
    check_strength(strength)
    rng, sampler = np.random.default_rng() if rng is None else rng, sampler or pipeline.sampler
    noise_levels(pipeline.schedule, steps, sampler)  # raises for steps that do not go
    _check_one_each(prompts, x0)
    latents = encode(pipeline, x0, rng)
    model, cond = _listening(pipeline, prompts, negative_prompt, guidance)
    share = int(steps * strength) / steps
    return decode(pipeline, _end(redraw(model, pipeline.schedule, latents, share, rng, steps, sampler, cond), tick))


def inpaint(
    pipeline: Pipeline,
    prompts: list[str],
    x0: np.ndarray,
    mask: np.ndarray,
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Any = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
) -> np.ndarray:
    """Draw what is under the mask anew, out of noise, toward the prompts; the rest keeps its latents.

    mask is bool (H, W, 1): one pixel of it speaks for each latent. The rest as of `text_to_image`.
    Raises MinidiffError for walks that do not keep to whole timesteps, as some over sigma do not.
    """
    rng, sampler = np.random.default_rng() if rng is None else rng, sampler or pipeline.sampler
    way = noise_levels(pipeline.schedule, steps, sampler)
    if way.ts.dtype.kind != "i":
        raise MinidiffError(f"{sampler.name} with {sampler.spacing} steps asks between whole timesteps: use ddim")
    _check_one_each(prompts, x0)
    if mask.shape != (*x0.shape[1:3], 1):
        raise MinidiffError(f"the mask has shape {mask.shape}, the pictures have {x0.shape}: give (H, W, 1)")
    latents = encode(pipeline, x0, rng)
    eps = rng.standard_normal(latents.shape, dtype=np.float32)
    known = ~mask[:: pipeline.vae.factor, :: pipeline.vae.factor]  # (h, w, 1)
    model, cond = _listening(pipeline, prompts, negative_prompt, guidance)
    model = blended(model, pipeline.schedule, latents, ~known, eps, way.ts[0])
    walk = sample(model, pipeline.schedule, latents.shape, rng, steps, sampler, cond, x_T=np.float32(way.start) * eps)
    return decode(pipeline, np.where(known, latents, _end(walk, tick)))


def embeddings(pipeline: Pipeline, texts: list[str]) -> np.ndarray:
    """What the U-Net hears, (N, T, D); of each text what fits into T tokens."""
    with no_grad():
        return pipeline.text_encoder(pipeline.tokenizer(texts)).numpy()


def encode(pipeline: Pipeline, x0: np.ndarray, rng: Any) -> np.ndarray:
    """Latents of pictures, drawn from their posterior and scaled, (N, h, w, latent_channels)."""
    check_size(pipeline, x0.shape[1:3])
    with no_grad():
        posterior = pipeline.vae.encode(x0)
    return np.float32(pipeline.vae.config.scaling_factor) * posterior.sample(rng)


def decode(pipeline: Pipeline, latents: np.ndarray) -> np.ndarray:
    """Pictures of scaled latents, one after the other; those of more than WHOLE pixels in tiles."""
    vae, latents = pipeline.vae, latents / np.float32(pipeline.vae.config.scaling_factor)
    in_tiles = latents.shape[1] * latents.shape[2] * vae.factor**2 > WHOLE
    with no_grad():
        return np.concatenate(
            [vae.decode_in_tiles(z[None]) if in_tiles else vae.decode(z[None]).numpy() for z in latents]
        )


def native_size(pipeline: Pipeline) -> tuple[int, int]:
    """Height and width of the pictures that the U-Net was trained for; 64 x 64 latents if its folder does not say."""
    size = pipeline.unet.config.sample_size or 64
    height, width = size if isinstance(size, tuple) else (size, size)
    return height * pipeline.vae.factor, width * pipeline.vae.factor


def check_size(pipeline: Pipeline, size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width. Raises MinidiffError unless both can be halved as often as the autoencoder does."""
    height, width = size
    multiple = pipeline.vae.factor
    if not all(0 < n <= 65536 and n % multiple == 0 for n in (height, width)):
        raise MinidiffError(
            f"{height}x{width} pixels do not go: give multiples of {multiple} up to 65536, such as {8 * multiple}"
        )
    return height, width


def _check_one_each(prompts: list[str], x0: np.ndarray) -> None:
    if len(prompts) != len(x0):
        raise MinidiffError(f"{len(x0)} pictures and {len(prompts)} prompts: give a prompt for each picture")


def check_guidance(guidance: float) -> None:
    """Raises MinidiffError unless it is from 0 to 100."""
    if not 0 <= guidance <= 100:  # NaN is not
        raise MinidiffError(f"guidance must be a number from 0 to 100, not {guidance!r:.80}")


def _listening(
    pipeline: Pipeline, prompts: list[str], negative_prompt: str, guidance: float
) -> tuple[Callable[..., Any], np.ndarray]:
    """The model, under guidance, and what it is to hear."""
    check_guidance(guidance)
    model, cond = as_model(pipeline.unet, pipeline.schedule), embeddings(pipeline, prompts)
    if guidance == 1:
        return model, cond
    return guided(model, embeddings(pipeline, [negative_prompt]), guidance), cond


def _end(walk: Trajectory, tick: Tick) -> np.ndarray:
    x_t = np.empty(0)
    for _, x_t, _ in walk:  # noqa: B007  the last one counts
        tick()
    return x_t
