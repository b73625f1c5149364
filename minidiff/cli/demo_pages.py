"""The main job on the built-in set, and the pages that show it: into noise, training, and back."""

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
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.schedule import Schedule
from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.formats.schedulers import schedule_to_config
from minidiff.models.config import UNetConfig, default_config
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.log import read_log
from minidiff.training.recipes import SCHEDULE
from minidiff.training.unet_run import UNetRun

TRAINING_STEPS = 1400
CHECKPOINT_EVERY = 350
SAMPLES = 64
STEPS = 50  # of reverse diffusion
STATIONS = 10  # pictures on a strip
GUIDANCE = 2.0  # how much the last pictures insist on their class
IMAGES = ("forward.png", "data.png", "loss.png", "samples.png", "asked.png", "reverse.gif", "reverse.png")
OF_A_MACHINE = ("threads", "backend")  # what a run may be resumed with otherwise


def open_demo(out: Path, threads: int, seed: int) -> tuple[UNetRun, Dataset]:
    """The demo's run: the one that lies there, stopped or finished, or a new one.

    Raises MinidiffError if another run lies there, or a page or an image that the demo did not write.
    """
    folder, dataset = out / "run", cats_dogs()
    config = TrainConfig(
        "cats_dogs",
        steps=TRAINING_STEPS,
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
    """Raises MinidiffError, with the first difference, unless a run has the configuration that the demo's has."""
    found, own = asdict(run.config), asdict(config)
    different = next((name for name in own if found[name] != own[name] and name not in OF_A_MACHINE), None)
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
    """Raises MinidiffError for what would be overwritten, unless the page is the run's: then all is the demo's."""
    page = out / "index.html"
    if run and page.is_file() and page.read_bytes() == page_of(run).encode():
        return
    for path in (page, *(out / name for name in IMAGES), state.state_file(out)):
        if os.path.lexists(path):
            raise MinidiffError(f"{path}: was not written by this demo; move it, or choose another --out")


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, C) uint8 made smaller, if it must be, to fit a square of that side."""
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def forward_strip(schedule: Schedule, image: np.ndarray, rng) -> Image.Image:
    """One picture (H, W, C) uint8 at STATIONS times from 0 to the end, with the same noise eps throughout."""
    ts = np.linspace(0, len(schedule) - 1, STATIONS).round().astype(int)
    x0 = to_float(image)[None].repeat(STATIONS, 0)  # (STATIONS, H, W, C)
    eps = rng.standard_normal(x0.shape[1:], dtype=np.float32)
    return strip(to_uint8(q_sample(schedule, x0, ts, np.broadcast_to(eps, x0.shape))), [f"t = {t}" for t in ts])


def write_pages(run: UNetRun, dataset: Dataset, out: Path, tick: Callable[[], object]) -> None:
    """Write the page and, in its folder, the images that it shows; tick() is called after every sampling step.

    Raises MinidiffError if that would overwrite a file that the demo did not write.
    """
    check_pages(out, run)
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        _draw_images(run, dataset, Path(part), tick)
        replace_file(out / "index.html", lambda file: file.write_bytes(page_of(run).encode()))
        for name in IMAGES:  # after the page, by which the demo knows them
            os.replace(Path(part, name), out / name)


def page_of(run: UNetRun) -> str:
    """The page that shows the demo's images."""
    return PAGE.format(steps=run.config.steps, parameters=sum(p.data.size for p in run.unet.parameters()) / 1e6)


def _draw_images(run: UNetRun, dataset: Dataset, out: Path, tick: Callable[[], object]) -> None:
    """All of IMAGES."""
    rng = np.random.default_rng(run.config.seed)
    cat = int(np.flatnonzero(dataset.labels == 0)[0])
    save_image(forward_strip(SCHEDULE, dataset.take(np.array([cat]))[0], rng), out / "forward.png")
    save_image(sheet(dataset.take(np.arange(SAMPLES))), out / "data.png")
    steps, losses = read_log(run.folder / "metrics.csv")
    save_loss_plot(steps, losses, out / "loss.png", "What the network still gets wrong")
    _draw_samples(run, out, rng, tick)


def _draw_samples(run: UNetRun, out: Path, rng, tick: Callable[[], object]) -> None:
    """samples.png, cats above dogs; asked.png, a row of each; the way of the first: reverse.png, reverse.gif."""
    labels = np.arange(SAMPLES) * 2 // SAMPLES
    model = guided(run.model, len(run.config.classes), GUIDANCE)
    x_T = rng.standard_normal((SAMPLES, *run.unet.image_shape), dtype=np.float32)
    x_t, walk, times = x_T, [to_uint8(x_T[0])], [float(len(SCHEDULE) - 1)]
    with run.optimizer.averaged():
        for t, x_t, _ in sample(model, run.schedule, x_T.shape, rng, STEPS, cond=labels, x_T=x_T):
            walk.append(to_uint8(x_t[0]))
            times.append(t)
            tick()
    save_image(sheet(to_uint8(x_t)), out / "samples.png")
    half, row = SAMPLES // 2, min(SAMPLES // 2, 8)
    save_image(sheet(to_uint8(np.concatenate([x_t[:row], x_t[half : half + row]])), columns=row), out / "asked.png")
    save_gif([sheet(image[None], scale=8, gap=0) for image in walk], out / "reverse.gif")
    stations = np.linspace(0, STEPS, STATIONS).round().astype(int)
    captions = [f"t = {times[i]:.0f}" if times[i] >= 0 else "clean" for i in stations]
    save_image(strip(np.stack([walk[i] for i in stations]), captions), out / "reverse.png")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minidiff: a picture into noise, and back</title>
<style>
  body {{ max-width: 56rem; margin: 3rem auto; padding: 0 1rem; background: #f8f6f1; color: #46424a;
         font: 1.05rem/1.6 system-ui, sans-serif; }}
  h1, h2 {{ font-weight: 600; line-height: 1.25; }}
  h2 {{ margin-top: 3rem; }}
  img {{ display: block; max-width: 100%; margin: 1rem auto; border-radius: 8px; }}
  .walk {{ width: 256px; image-rendering: pixelated; }}
</style>
<h1>A picture into noise, and back</h1>
<h2>1. The pictures</h2>
<p>Sixty-four of ten thousand drawn cats and dogs. With each the network is told which of
   the two it is, but for one in ten.</p>
<img src="data.png" alt="sixty-four drawn cats and dogs">
<h2>2. Forward diffusion</h2>
<p>Noise is mixed into a picture, more with every step t, until nothing of the cat is left.
   This needs no learning: it is one line of arithmetic, <code>q_sample</code>.</p>
<img src="forward.png" alt="a cat drowning in noise">
<h2>3. Training</h2>
<p>A U-Net of {parameters:.1f} million parameters is shown noisy pictures and told to say what is noise in them.
   In {steps} steps it learns to; the curve is its mean squared error.</p>
<img src="loss.png" alt="the loss falling over the steps">
<h2>4. Reverse diffusion</h2>
<p>Now it starts from pure noise, and what it takes for noise is taken away, a little at a time.
   An animal appears that was never in the set.</p>
<img class="walk" src="reverse.gif" alt="noise turning into an animal">
<img src="reverse.png" alt="the same walk at ten steps">
<h2>5. Cat or dog, on demand</h2>
<p>Asked for a cat, or for a dog, it takes away what is no cat, or no dog. Asked without, it tells what the word
   adds, and a little more of that is what makes these: classifier-free guidance.</p>
<img src="asked.png" alt="a row of cats and a row of dogs, asked for by name">
<h2>6. Sixty-four of them</h2>
<p>Every picture on this sheet began as noise of its own: thirty-two cats, thirty-two dogs.</p>
<img src="samples.png" alt="sixty-four samples">
</html>
"""
