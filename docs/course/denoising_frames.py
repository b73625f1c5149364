"""The frames of the widget `denoising`: two cats and two dogs, denoised in 25 steps by the trained model of the course.

    python docs/course/denoising_frames.py

writes docs/_static/widgets/denoising.png, in some seconds. Its columns are the steps, from noise; its rows, for each of
IMAGES, x_t and below it x0_hat. The steps are DDIM's without fresh noise, between timesteps even in the log-SNR.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import minidiff as md
import minidiff.learn
from minidiff.data.imaging import to_uint8

SPRITE = Path(__file__).parent.parent / "_static" / "widgets" / "denoising.png"
IMAGES = [(4, 0), (4, 1), (9, 0), (9, 1)]  # seed of the noise, label: 0 cat, 1 dog
LOG_SNR = np.linspace(-6, 6, 25)


def timesteps(schedule):
    """The timesteps with the log-SNRs nearest to LOG_SNR: (25,), falling."""
    log_snr = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))
    return np.abs(log_snr - LOG_SNR[:, None]).argmin(1)


def frames():
    """x_t and x0_hat at each timestep: (images, 2, 25, H, W, C) uint8."""
    pipeline = md.open_pipeline(Path(minidiff.learn.__file__).parent / "cats_dogs", backend="numpy")
    schedule, labels = pipeline.schedule, np.array([label for _, label in IMAGES])
    x_t = np.stack(
        [np.random.default_rng(seed).standard_normal(pipeline.image_shape, dtype=np.float32) for seed, _ in IMAGES]
    )
    states, ts = [], timesteps(schedule)
    for t, t_prev in zip(ts, [*ts[1:], -1], strict=True):
        with md.no_grad():
            prediction = pipeline.unet(x_t, np.full(len(x_t), t), cond=labels).numpy()
        x0_hat = md.ddim_step(schedule, prediction, x_t, t, -1, 0.0, 0.0)  # the step to the clean image
        states.append(np.stack([to_uint8(x_t), to_uint8(x0_hat)], 1))
        x_t = md.ddim_step(schedule, prediction, x_t, t, t_prev, 0.0, 0.0)
    return np.stack(states, 2)


def sprite(frames):
    """The frames in one image, uint8."""
    images, kinds, steps, H, W, C = frames.shape
    return frames.transpose(0, 1, 3, 2, 4, 5).reshape(images * kinds * H, steps * W, C)


if __name__ == "__main__":
    Image.fromarray(sprite(frames())).save(SPRITE, optimize=True)
