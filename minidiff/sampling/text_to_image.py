"""Text to image, image to image and inpainting with a Stable Diffusion pipeline.

The sampling loop is that of every other model, on latents, conditioned on the text encoder's output, with
classifier-free guidance. Images are float32 (N, H, W, 3), nominally in [-1, 1], one a prompt. rng as for `sample`:
`torch_generator(seed)` draws the noise of torch.Generator().manual_seed(seed), and with a sampler that is as_diffusers
the images are diffusers'. tick() is called after every sampling step.
"""

import numpy as np

from minidiff.diffusion.editing import blended, check_strength, redraw
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.model import Model, as_model
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import Tick, Watch, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Trajectory
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.folders import GIVE, describe
from minidiff.formats.pipeline import Pipeline, PointsPipeline, TextPipeline
from minidiff.sampling.prompts import embeddings, num_chunks

MAX_UNTILED_PIXELS = 1024 * 1024  # larger images are decoded in tiles


def text_to_image(
    pipeline: Pipeline,
    prompts: list[str],
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Rng | None = None,
    size: tuple[int, int] | None = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
    watch: Watch = lambda x0_hat: None,
) -> np.ndarray:
    """Sample an image of each prompt from noise.

    prompts          texts, in which words may have weights, such as (word:1.2): sampling/prompts.py
    negative_prompt  text of guidance's unconditional prediction
    guidance         classifier-free guidance scale, 0 to 100; 1 disables it
    rng              draws the noise; None: default_rng()
    size             height and width in pixels; None: those of pipeline.image_shape
    sampler          None: the folder's own
    watch            is called with x0_hat, scaled latents (N, h, w, C), after every sampling step
    Raises MinidiffError for a size, steps or guidance scale that is not supported, and for a pipeline that takes no
    prompts.
    """
    pipeline = with_prompts(pipeline)
    trajectory = text_trajectory(pipeline, prompts, negative_prompt, guidance, steps, rng, size, sampler)
    return decode(pipeline, last_x_t(trajectory, tick, watch))


def text_trajectory(
    pipeline: TextPipeline,
    prompts: list[str],
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Rng | None = None,
    size: tuple[int, int] | None = None,
    sampler: Sampler | None = None,
) -> Trajectory:
    """The sampling loop of `text_to_image`, as `sample`: (t, x_t, x0_hat) after each step, scaled latents."""
    rng = np.random.default_rng() if rng is None else rng
    shape = latent_shape(pipeline, len(prompts), size or pipeline.image_shape[:2])
    model, cond = _guided_model(pipeline, prompts, negative_prompt, guidance)
    return sample(model, pipeline.schedule, shape, rng, steps, sampler or pipeline.sampler, cond)


def image_to_image(
    pipeline: Pipeline,
    prompts: list[str],
    x0: np.ndarray,
    strength: float = 0.8,
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Rng | None = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
) -> np.ndarray:
    """Add noise to the latents of images x0 and denoise them, conditioned on the prompts: SDEdit (Meng et al. 2022).

    strength is the fraction of the sampling steps that are taken (`steps_taken`), 0 to 1: it sets the noise level, and
    at 0 x0 is only encoded and decoded. The rest as of `text_to_image`.
    """
    check_strength(strength)
    pipeline = with_prompts(pipeline)
    rng, sampler = np.random.default_rng() if rng is None else rng, sampler or pipeline.sampler
    noise_levels(pipeline.schedule, steps, sampler)  # raises for steps that are not supported
    _check_one_each(prompts, x0)
    latents = encode(pipeline, x0, rng)
    model, cond = _guided_model(pipeline, prompts, negative_prompt, guidance)
    trajectory = redraw(model, pipeline.schedule, latents, strength, rng, steps, sampler, cond)
    return decode(pipeline, last_x_t(trajectory, tick))


def inpaint(
    pipeline: Pipeline,
    prompts: list[str],
    x0: np.ndarray,
    mask: np.ndarray,
    negative_prompt: str = "",
    guidance: float = 7.5,
    steps: int = 50,
    rng: Rng | None = None,
    sampler: Sampler | None = None,
    tick: Tick = lambda: None,
) -> np.ndarray:
    """Sample the latents where the mask is True from noise, conditioned on the prompts; the others stay those of x0.

    Blended latent diffusion (Avrahami et al. 2023): at every step the model's input has x0's latents, with noise,
    where the mask is False. mask is bool (H, W, 1); each latent takes the first pixel of its block. The rest as of
    `text_to_image`. Raises MinidiffError for noise levels between whole timesteps, as euler's and heun's may be and
    dpmpp_sde's are.
    """
    pipeline = with_prompts(pipeline)
    rng, sampler = np.random.default_rng() if rng is None else rng, sampler or pipeline.sampler
    levels = noise_levels(pipeline.schedule, steps, sampler)
    if levels.ts.dtype.kind != "i" or sampler.name == "dpmpp_sde":
        raise MinidiffError(
            f"{sampler.name} with {sampler.spacing} spacing has noise levels between whole timesteps: use ddim"
        )
    _check_one_each(prompts, x0)
    if mask.shape != (*x0.shape[1:3], 1):
        raise MinidiffError(f"the mask has shape {mask.shape}, the images have {x0.shape}: give (H, W, 1)")
    latents = encode(pipeline, x0, rng)
    eps = rng.standard_normal(latents.shape, dtype=np.float32)
    known = ~mask[:: pipeline.vae.factor, :: pipeline.vae.factor]  # (h, w, 1)
    model, cond = _guided_model(pipeline, prompts, negative_prompt, guidance)
    model = blended(model, pipeline.schedule, latents, ~known, eps, levels.ts[0])
    x_T = np.float32(levels.start) * eps
    trajectory = sample(model, pipeline.schedule, latents.shape, rng, steps, sampler, cond, x_T=x_T)
    return decode(pipeline, np.where(known, latents, last_x_t(trajectory, tick)))


def with_prompts(pipeline: Pipeline) -> TextPipeline:
    """The same pipeline. Raises MinidiffError for one that takes no prompts."""
    if not isinstance(pipeline, TextPipeline):
        kind = "points" if isinstance(pipeline, PointsPipeline) else "unet"
        raise MinidiffError(f"{describe(pipeline.folder, kind)}; {GIVE['text']}")
    return pipeline


def encode(pipeline: TextPipeline, x0: np.ndarray, rng: Rng) -> np.ndarray:
    """Scaled latents (N, h, w, latent_channels) of images, sampled from the VAE's posterior."""
    check_size(pipeline, x0.shape[1:3])
    with no_grad():
        posterior = pipeline.vae.encode(x0)
    return np.float32(pipeline.vae.config.scaling_factor) * posterior.sample(rng)


def decode(pipeline: TextPipeline, latents: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) of scaled latents, decoded one by one; in tiles above MAX_UNTILED_PIXELS."""
    vae, latents = pipeline.vae, latents / np.float32(pipeline.vae.config.scaling_factor)
    in_tiles = latents.shape[1] * latents.shape[2] * vae.factor**2 > MAX_UNTILED_PIXELS
    with no_grad():
        return np.concatenate(
            [vae.decode_in_tiles(z[None]) if in_tiles else vae.decode(z[None]).numpy() for z in latents]
        )


def latent_shape(pipeline: TextPipeline, n: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape (n, h, w, latent_channels) of the latents of n images of that height and width, which are checked."""
    height, width = check_size(pipeline, size)
    return n, height // pipeline.vae.factor, width // pipeline.vae.factor, pipeline.vae.config.latent_channels


def check_size(pipeline: TextPipeline, size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width. Raises MinidiffError unless both are multiples of the autoencoder's downsampling factor."""
    height, width = size
    multiple = pipeline.vae.factor
    if not all(0 < n <= 65536 and n % multiple == 0 for n in (height, width)):
        raise MinidiffError(
            f"{height}x{width} pixels: give multiples of {multiple} up to 65536, such as {8 * multiple}"
        )
    return height, width


def _check_one_each(prompts: list[str], x0: np.ndarray) -> None:
    if len(prompts) != len(x0):
        raise MinidiffError(f"{len(x0)} images and {len(prompts)} prompts: give a prompt for each image")


def check_guidance(guidance: float) -> None:
    """Raises MinidiffError unless it is from 0 to 100."""
    if not 0 <= guidance <= 100:  # NaN is not
        raise MinidiffError(f"guidance must be a number from 0 to 100, not {guidance!r:.80}")


def _guided_model(
    pipeline: TextPipeline, prompts: list[str], negative_prompt: str, guidance: float
) -> tuple[Model, np.ndarray]:
    """The model with classifier-free guidance, and its conditioning (N, K T, D), as long for all prompts."""
    check_guidance(guidance)
    model, free = as_model(pipeline.unet, pipeline.schedule), guidance != 1
    rows = num_chunks(pipeline.tokenizer, [*prompts, *([negative_prompt] if free else [])])
    cond = embeddings(pipeline, prompts, rows)
    return (guided(model, embeddings(pipeline, [negative_prompt], rows), guidance) if free else model), cond
