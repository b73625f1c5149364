"""The main job on the built-in set, and the pages that show it: into noise, training, and back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from minidiff.data.cats_dogs import cats_dogs
from minidiff.data.dataset import Dataset
from minidiff.data.pictures import gif, loss_plot, save, sheet, strip, to_float, to_uint8
from minidiff.diffusion.forward import q_sample
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.schedule import Schedule, cosine_schedule
from minidiff.models.config import default_config
from minidiff.models.unet import UNet
from minidiff.runs import state
from minidiff.runs.checkpoint import replace_file
from minidiff.runs.state import Run
from minidiff.runs.train import TrainConfig

TRAINING_STEPS = 1200
CHECKPOINT_EVERY = 400
SAMPLES = 64
STEPS = 50  # of reverse diffusion
BATCH = 64  # pictures drawn at a time
STATIONS = 10  # pictures on a strip


def open_demo(out: Path, threads: int, seed: int) -> tuple[Run, Dataset]:
    """The demo's run: the one that was stopped there, or a new one in place of a finished one."""
    folder = out / "run"
    if state.state_file(folder).exists():
        run = state.open_run(folder)
        if run.step < run.config.steps and run.config.seed == seed:
            return run, cats_dogs()
        shutil.rmtree(folder)
    dataset = cats_dogs()
    config = TrainConfig("cats_dogs", steps=TRAINING_STEPS, seed=seed, threads=threads)
    schedule = cosine_schedule(prediction_type="v_prediction")
    return state.new_run(folder, config, default_config(dataset.shape), schedule), dataset


def picture_shape(unet: UNet) -> tuple[int, int, int]:
    """(H, W, C) of the pictures that a network draws."""
    size = unet.config.sample_size or 32
    return (*size, unet.config.in_channels) if isinstance(size, tuple) else (size, size, unet.config.in_channels)


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


def write_pages(run: Run, dataset: Dataset, out: Path, tick: Callable[[], object]) -> None:
    """Write every picture of the demo and the page that shows them; tick() is called after every step back."""
    rng = np.random.default_rng(run.config.seed)
    cat = int(np.flatnonzero(dataset.labels == 0)[0])
    save(forward_strip(run.schedule, dataset.take(np.array([cat]))[0], rng), out / "forward.png")
    save(sheet(dataset.take(np.arange(SAMPLES))), out / "data.png")
    steps, losses = state.read_metrics(run.folder / "metrics.csv")
    loss_plot(steps, losses, out / "loss.png", "What the network still gets wrong")
    _draw_samples(run, out, rng, tick)
    page = PAGE.format(steps=len(steps), parameters=sum(p.data.size for p in run.unet.parameters()) / 1e6)
    replace_file(out / "index.html", lambda part: part.write_text(page, encoding="utf-8"))


def _draw_samples(run: Run, out: Path, rng, tick: Callable[[], object]) -> None:
    """samples.png, and the way of the first of them: reverse.png, reverse.gif."""
    walk, times = [], []
    x_t = np.empty(0)
    with run.optimizer.averaged():
        for t, x_t, _ in sample(run.unet, run.schedule, (SAMPLES, *picture_shape(run.unet)), rng, STEPS):
            walk.append(to_uint8(x_t[0]))
            times.append(t)
            tick()
    save(sheet(to_uint8(x_t)), out / "samples.png")
    gif([sheet(image[None], scale=8, gap=0) for image in walk], out / "reverse.gif")
    stations = np.linspace(0, STEPS - 1, STATIONS).round().astype(int)
    save(strip(np.stack([walk[i] for i in stations]), [f"t = {max(times[i], 0)}" for i in stations]), out / "reverse.png")


PAGE = """<!doctype html>
"""
