"""The images and numbers of the widget `pipeline` of docs/course/12_stable_diffusion.md, from docs/models/emoji.

    python docs/course/pipeline_images.py

samples each of PROMPTS at each of SCALES from the same noise, and writes into docs/_static/widgets/pipeline/

    images-P.png    of prompt P: the estimates of x0 at each step (columns), decoded; for each scale three rows, of the
                    guided, the conditional and the unconditional prediction
    latents.png     in rows of prompts and scales: x_T, then x_t after each step, the 12 channels as 3 x 4 maps of 8 x 8
    attention.png   in rows of prompts and scales and columns of steps: cross-attention maps, 8 x 8, one below the other
                    for each word
    embeddings.png  the text embeddings (tokens, channels) of each prompt, then of the empty prompt
    data.js         token ids, sizes, timesteps, and at each step what the arithmetic on ELEMENT of the latents needs
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image

import minidiff as md
from minidiff.data.imaging import to_uint8
from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.sampling.prompts import embeddings
from minidiff.sampling.text_sheets import attention_maps, recorded_attention, token_spans
from minidiff.sampling.text_to_image import decode

HERE = Path(__file__).parent
MODEL, OUT = HERE.parent / "models/emoji", HERE.parent / "_static/widgets/pipeline"
PROMPTS = (
    "woman astronaut, light skin tone",
    "man farmer, medium skin tone",
    "woman singer, medium skin tone",
    "vampire, light skin tone",
    "green heart",
    "cat face",
)
SCALES = (1, 3, 7.5, 12)
STEPS, SEED = 10, 0
ELEMENT = (3, 4, 0)  # row, column and channel of the latents
RANGE = 4  # values of latents and embeddings from -RANGE to RANGE have different colours
DIVERGING = ("#31435f", "#5b6f8f", "#a9b5c6", "#f4efe6", "#dfa48f", "#b5482f", "#7d2a16")


class Sampled(NamedTuple):
    """A trajectory: states (STEPS + 1, h, w, C); predictions (STEPS, 3, h, w, C), guided, conditional, unconditional.

    images (STEPS, 3, H, W, 3) are the decoded estimates of x0 by each of them, attention is (STEPS, words, h, w).
    """

    states: np.ndarray
    predictions: np.ndarray
    images: np.ndarray
    attention: np.ndarray


def timesteps(pipeline):
    """The timestep of each step, then -1, which stands for the clean latents."""
    return [*noise_levels(pipeline.schedule, STEPS, pipeline.sampler).ts.tolist(), -1]


def noise(pipeline):
    """x_T (1, h, w, C), the same for all."""
    shape = pipeline.vae.latent_shape((1, *pipeline.image_shape))
    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)


def sampled(pipeline, prompt, scale):
    """The Sampled of a prompt and a guidance scale, by DDIM."""
    schedule, cond = pipeline.schedule, embeddings(pipeline, [prompt, ""])
    spans = token_spans(pipeline.tokenizer, prompt.split())
    x_t = noise(pipeline)
    states, predictions, images, attention = [x_t], [], [], []
    for t, t_prev in pairwise(timesteps(pipeline)):
        with md.no_grad(), recorded_attention(pipeline.unet) as weights:
            both = pipeline.unet(np.concatenate([x_t, x_t]), np.array([t, t]), cond=cond).numpy()
        p_cond, p_null = np.split(both, 2)
        guided = p_null + scale * (p_cond - p_null)
        predictions.append(np.concatenate([guided, p_cond, p_null]))
        images.append(to_uint8(decode(pipeline, x0_and_eps(schedule, predictions[-1], x_t.repeat(3, 0), t)[0])))
        attention.append(attention_maps(weights, spans, x_t.shape[1:3]))
        x_t = md.ddim_step(schedule, guided, x_t, t, t_prev, eta=0, z=0)
        states.append(x_t)
    return Sampled(np.concatenate(states), np.stack(predictions), np.stack(images), np.stack(attention))


def tiled(rows):
    """Arrays in rows and columns, (rows, columns, H, W, ...), as one (rows H, columns W, ...)."""
    R, C, H, W, *channels = rows.shape
    return rows.swapaxes(1, 2).reshape(R * H, C * W, *channels)


def channel_maps(latents):
    """(..., h, w, 12) as (..., 3 h, 4 w)."""
    *N, h, w, C = latents.shape
    return np.moveaxis(latents.reshape(*N, h, w, 3, C // 3), (-2, -1), (-4, -2)).reshape(*N, 3 * h, C // 3 * w)


def save_coloured(name, values, low, high, colours, levels):
    """An image (H, W) of values from low to high, in `levels` colours."""
    indices = np.rint((values.clip(low, high) - low) / (high - low) * (levels - 1)).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette((colours(np.linspace(0, 1, levels))[:, :3] * 255).round().astype(np.uint8).tobytes())
    image.save(OUT / name, optimize=True)


def save_images(name, images):
    """Images (rows, columns, H, W, 3) in 256 colours."""
    image = Image.fromarray(tiled(images)).quantize(256, kmeans=4, dither=Image.Dither.NONE)
    image.save(OUT / name, optimize=True)


def arithmetic(trajectory):
    """At ELEMENT: x_t, the conditional and the unconditional prediction of each step; the last row is the final x_0."""
    x = trajectory.states[:, *ELEMENT]
    _, p_cond, p_null = trajectory.predictions[:, :, *ELEMENT].T
    return [np.round(column.astype(float), 4).tolist() for column in (x, p_cond, p_null)]


def sizes(pipeline):
    """What the shapes of all arrays follow from."""
    text, unet, vae = pipeline.text_encoder.config, pipeline.unet.config, pipeline.vae.config
    return {
        "tokens": pipeline.tokenizer.length, "vocabulary": text.vocab_size, "text": text.hidden_size,
        "textLayers": text.num_hidden_layers, "image": pipeline.image_shape[0], "latent": vae.latent_channels,
        "unet": unet.block_out_channels, "vae": vae.block_out_channels, "scaling": vae.scaling_factor,
        "prediction": pipeline.schedule.prediction_type,
    }  # fmt: skip


def data(pipeline, trajectories):
    """The contents of data.js; trajectories[prompt][scale]."""
    names = {i: token for token, i in pipeline.tokenizer.vocab.items()}
    ts = timesteps(pipeline)
    prompts = [
        {
            "text": prompt,
            "words": [word.strip(",") for word in prompt.split()],
            "ids": (ids := pipeline.tokenizer.encode(prompt)),
            "tokens": [names[i].removesuffix("</w>") for i in ids],
            "attention": round(float(max(s.attention.max() for s in of_prompt)), 3),
            "arithmetic": [arithmetic(s) for s in of_prompt],
        }
        for prompt, of_prompt in zip(PROMPTS, trajectories, strict=True)
    ]
    tokenizer = pipeline.tokenizer
    special = [int(tokenizer.vocab[token]) for token in (tokenizer.special.bos, tokenizer.special.eos)]
    alpha_bar = [*pipeline.schedule.alphas_cumprod[ts[:-1]].tolist(), 1]
    return {
        "prompts": prompts, "scales": SCALES, "seed": SEED, "ts": ts, "alphaBar": alpha_bar, "element": ELEMENT,
        "special": special, "sizes": sizes(pipeline),
    }  # fmt: skip


def relative_attention(trajectories):
    """All maps (rows, STEPS, words h, w), of prompts and scales in rows, relative to the largest of each prompt."""
    words = max(s.attention.shape[1] for of_prompt in trajectories for s in of_prompt)
    maps = []
    for of_prompt in trajectories:
        largest = max(s.attention.max() for s in of_prompt)
        for s in of_prompt:
            padded = np.pad(s.attention / largest, [(0, 0), (0, words - s.attention.shape[1]), (0, 0), (0, 0)])
            maps.append(padded.reshape(STEPS, -1, padded.shape[-1]))
    return np.stack(maps)


def main():
    pipeline = md.open_pipeline(MODEL)
    trajectories = [[sampled(pipeline, prompt, scale) for scale in SCALES] for prompt in PROMPTS]
    OUT.mkdir(exist_ok=True)
    diverging = mpl.colors.LinearSegmentedColormap.from_list("", DIVERGING)
    for p, of_prompt in enumerate(trajectories):
        save_images(f"images-{p}.png", np.concatenate([s.images.swapaxes(0, 1) for s in of_prompt]))
    states = np.stack([s.states for of_prompt in trajectories for s in of_prompt])
    save_coloured("latents.png", tiled(channel_maps(states)), -RANGE, RANGE, diverging, 31)
    text = np.concatenate(embeddings(pipeline, [*PROMPTS, ""]))
    save_coloured("embeddings.png", text, -RANGE, RANGE, diverging, 31)
    save_coloured("attention.png", tiled(relative_attention(trajectories)), 0, 1, mpl.colormaps["inferno"], 63)
    numbers = json.dumps(data(pipeline, trajectories), separators=(",", ":"))
    (OUT / "data.js").write_text(
        f"// Written by docs/course/{Path(__file__).name}.\nminidiff.pipeline.data = {numbers};\n"
    )


if __name__ == "__main__":
    main()
