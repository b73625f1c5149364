"""The demo: training on the built-in cats and dogs, and the page that shows it, from noise to samples."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from minidiff.data.cats_dogs import cats_dogs
from minidiff.data.dataset import Dataset
from minidiff.data.imaging import save_gif, save_image, save_loss_plot, sheet, strip, to_float, to_uint8
from minidiff.diffusion.forward import q_sample
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.reverse import Trajectory, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import Schedule
from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.formats.schedulers import schedule_to_config
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.log import read_log, read_quarter_losses
from minidiff.training.recipes import SCHEDULE

TRAINING_STEPS = 600
CHECKPOINT_EVERY = 300
SAMPLES = 64
STEPS = 25  # sampling steps
SAMPLER = Sampler("dpmpp_2m", karras=True)
DDIM_STEPS = 50  # of the trajectory: SAMPLER spends most of its steps where nothing is to be seen yet
TICKS = STEPS + DDIM_STEPS
STRIP_IMAGES = 10
GUIDANCE = 2.0  # classifier-free guidance scale
IMAGES = ("forward.png", "data.png", "loss.png", "samples.png", "classes.png", "reverse.gif", "reverse.png")
MAY_DIFFER = ("threads", "backend")  # between a run and the demo's configuration


def open_demo(out: Path, threads: int, seed: int) -> tuple[UNetRun, Dataset]:
    """The demo's run and dataset: the run in `out`, stopped or finished, or a new one.

    Raises MinidiffError if `out` holds another run, or a page or image that the demo did not write.
    """
    folder, dataset = out / "run", cats_dogs()
    config = TrainConfig(
        "cats_dogs",
        steps=TRAINING_STEPS,
        optimizer="muon",
        lr=3e-3,
        ema=0.99,
        flip=dataset.mirrors,
        seed=seed,
        threads=threads,
        classes=dataset.classes,
    )
    network = default_config(dataset.shape, num_class_embeds=len(dataset.classes) + 1)
    if not state.state_file(folder).exists():
        check_pages(out)
        return state.new_run(UNetRun, folder, config, network, SCHEDULE), dataset
    run = state.open_run(folder, UNetRun)
    check_own(run, config, network)
    check_pages(out, run)
    state.roll_back(run)
    return replace(run, config=replace(run.config, threads=threads)), dataset


def check_own(run: UNetRun, config: TrainConfig, network: UNetConfig) -> None:
    """Raises MinidiffError, with the first difference, unless a run has the demo's configuration."""
    found, own = asdict(run.config), asdict(config)
    different = next((name for name in own if found[name] != own[name] and name not in MAY_DIFFER), None)
    if different:
        what = f"its {different} is {found[different]!r}, not {own[different]!r}"
    elif run.unet.config != network:
        what = "its network has another configuration"
    elif schedule_to_config(run.schedule) != schedule_to_config(SCHEDULE):
        what = "its noise schedule has another configuration"
    else:
        return
    raise MinidiffError(f"{run.folder}: is not the run of this demo ({what}); choose another --out")


def check_pages(out: Path, run: UNetRun | None = None) -> None:
    """Raises MinidiffError if a file would be overwritten, unless the page is the run's: then all files are."""
    page = out / "index.html"
    if run and page.is_file() and page.read_bytes() == page_of(run).encode():
        return
    for path in (page, *(out / name for name in IMAGES), state.state_file(out)):
        if os.path.lexists(path):
            raise MinidiffError(f"{path}: was not written by this demo; move it, or choose another --out")


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, C) uint8, downsampled if necessary to fit into a square of that side."""
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def forward_strip(schedule: Schedule, image: np.ndarray, rng) -> Image.Image:
    """An image (H, W, C) uint8 at STRIP_IMAGES timesteps from 0 to the last, all with the same noise eps."""
    ts = np.linspace(0, len(schedule) - 1, STRIP_IMAGES).round().astype(int)
    x0 = to_float(image)[None].repeat(STRIP_IMAGES, 0)  # (STRIP_IMAGES, H, W, C)
    eps = rng.standard_normal(x0.shape[1:], dtype=np.float32)
    return strip(to_uint8(q_sample(schedule, x0, ts, np.broadcast_to(eps, x0.shape))), [f"t = {t}" for t in ts])


def write_pages(run: UNetRun, dataset: Dataset, out: Path, tick: Callable[[], object]) -> None:
    """Write the page and its images; tick() is called after every sampling step.

    Raises MinidiffError if that would overwrite a file that the demo did not write.
    """
    check_pages(out, run)
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        _write_images(run, dataset, Path(part), tick)
        replace_file(out / "index.html", lambda file: file.write_bytes(page_of(run).encode()))
        for name in IMAGES:  # after the page: check_pages takes them for the demo's if the page is
            os.replace(Path(part, name), out / name)


def page_of(run: UNetRun) -> str:
    """The HTML of the page."""
    parameters = sum(p.data.size for p in run.unet.parameters()) / 1e6
    return PAGE.format(steps=run.config.steps, parameters=parameters, guidance=GUIDANCE)


def _write_images(run: UNetRun, dataset: Dataset, out: Path, tick: Callable[[], object]) -> None:
    """Write all of IMAGES."""
    rng = np.random.default_rng(run.config.seed)
    cat = int(np.flatnonzero(dataset.labels == 0)[0])
    save_image(forward_strip(SCHEDULE, dataset.take(np.array([cat]))[0], rng), out / "forward.png")
    save_image(sheet(dataset.take(np.arange(SAMPLES))), out / "data.png")
    log = run.folder / "metrics.csv"
    save_loss_plot(*read_log(log), out / "loss.png", "Training loss", read_quarter_losses(log))
    _write_samples(run, out, rng, tick)


def _write_samples(run: UNetRun, out: Path, rng, tick: Callable[[], object]) -> None:
    """Write samples.png, classes.png (a row of each class), and the first one's trajectory."""
    labels = np.arange(SAMPLES) * 2 // SAMPLES  # cats, then dogs
    model = guided(run.model, len(run.config.classes), GUIDANCE)
    x_T = rng.standard_normal((SAMPLES, *run.unet.image_shape), dtype=np.float32)
    with run.optimizer.averaged():
        x_t = last_x_t(sample(model, run.schedule, x_T.shape, rng, STEPS, SAMPLER, labels, x_T), tick)
        _write_trajectory(
            sample(model, run.schedule, x_T[:1].shape, rng, DDIM_STEPS, "ddim", labels[:1], x_T[:1]), x_T[0], out, tick
        )
    save_image(sheet(to_uint8(x_t)), out / "samples.png")
    per_class = SAMPLES // 2
    row = min(per_class, 8)
    classes = np.concatenate([x_t[:row], x_t[per_class : per_class + row]])
    save_image(sheet(to_uint8(classes), columns=row), out / "classes.png")


def _write_trajectory(trajectory: Trajectory, x_T: np.ndarray, out: Path, tick: Callable[[], object]) -> None:
    """Write one trajectory, from the noise x_T (H, W, C): all steps to reverse.gif, STRIP_IMAGES to reverse.png."""
    images, times = [to_uint8(x_T)], [float(len(SCHEDULE) - 1)]
    for t, x_t, _ in trajectory:
        images.append(to_uint8(x_t[0]))
        times.append(t)
        tick()
    save_gif([sheet(image[None], scale=8, gap=0) for image in images], out / "reverse.gif")
    shown = np.linspace(0, len(images) - 1, STRIP_IMAGES).round().astype(int)
    captions = [f"t = {times[i]:.0f}" if times[i] >= 0 else "clean" for i in shown]
    save_image(strip(np.stack([images[i] for i in shown]), captions), out / "reverse.png")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minidiff: diffusion models on cats and dogs</title>
<style>
  body {{ max-width: 56rem; margin: 3rem auto; padding: 0 1rem; background: #f8f6f1; color: #46424a;
         font: 1.05rem/1.6 system-ui, sans-serif; }}
  h1, h2 {{ font-weight: 600; line-height: 1.25; }}
  h2 {{ margin-top: 3rem; }}
  img {{ display: block; max-width: 100%; margin: 1rem auto; border-radius: 8px; }}
  .trajectory {{ width: 256px; image-rendering: pixelated; }}
</style>
<h1>A diffusion model of cats and dogs</h1>
<h2>1. Training images</h2>
<p>Sixty-four of ten thousand drawn cats and dogs. The model is conditioned on the class label, which is dropped for
   one image in ten, so that it also learns the unconditional prediction.</p>
<img src="data.png" alt="sixty-four drawn cats and dogs">
<h2>2. Forward diffusion</h2>
<p>Noise is added to an image, more with every timestep t, until nothing of the cat is left.
   This needs no learning: it is one line of arithmetic, <code>q_sample</code>.</p>
<img src="forward.png" alt="a cat at ten noise levels">
<h2>3. Training</h2>
<p>A U-Net of {parameters:.1f} million parameters learns to separate image and noise in noisy images (v-prediction).
   The curve is the loss, a mean squared error, over {steps} steps.</p>
<img src="loss.png" alt="the loss falling over the steps">
<h2>4. Reverse diffusion</h2>
<p>Sampling starts from pure noise and removes the predicted noise step by step.
   The result is an animal that is not in the training set.</p>
<img class="trajectory" src="reverse.gif" alt="noise turning into an animal">
<img src="reverse.png" alt="the same trajectory at ten steps">
<h2>5. Class-conditional samples</h2>
<p>Each sample is conditioned on its class. Classifier-free guidance extrapolates from the unconditional to the
   conditional prediction, here with a scale of {guidance:g}.</p>
<img src="classes.png" alt="a row of cats and a row of dogs">
<h2>6. Sixty-four samples</h2>
<p>Every image began as noise of its own: thirty-two cats, thirty-two dogs.</p>
<img src="samples.png" alt="sixty-four samples">
</html>
"""
