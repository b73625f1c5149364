"""The command line: what minidiff does, from a picture into noise and back."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from minidiff.data import Dataset, open_dataset, pictures
from minidiff.diffusion.reverse import SAMPLERS, sample
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.errors import MinidiffError
from minidiff.models.config import default_config
from minidiff.runs import checkpoint, demo, machine, state
from minidiff.runs.fit import fit, stoppable
from minidiff.runs.state import Run
from minidiff.runs.train import StepStats, TrainConfig

app = typer.Typer(
    name="minidiff",
    help="Diffusion models from scratch: a picture into noise, and back.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)

Out = Annotated[Path, typer.Option(help="Where to write.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Threads of the kernels.  [default: all cores]")]
Backend = Annotated[str, typer.Option(help="numba, or numpy, the reference.")]


def main() -> None:
    """Run the command line. What a user can mend is one line on stderr and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("minidiff: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        wrong_option = getattr(error, "format_message", None)  # typer has it, under a private name
        if wrong_option is None and not isinstance(error, MinidiffError):
            raise
        message = f"{wrong_option()} See minidiff --help." if wrong_option else str(error)
        print(f"minidiff: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


@app.command("demo")
def demo_command(out: Out = Path("demo"), threads: Threads = None, seed: Seed = 0) -> None:
    """The main job, in a few minutes: learn to draw cats and dogs out of noise, and show how.

    Trains the noise predictor on the built-in set and writes a folder of pictures with an index.html.
    Stopped by Ctrl-C, it goes on where it was when called again.
    """
    started = time.monotonic()
    with state.only_one(out):
        run, dataset = demo.open_demo(out, machine.use_threads(threads, "numba"), seed)
        _train(run, dataset, demo.CHECKPOINT_EVERY, f"minidiff demo --out {out}")
        _with_bar("drawing", demo.STEPS, lambda tick: demo.write_pages(run, dataset, out, tick))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"Done in {minutes} min {seconds} s. Open {out / 'index.html'}")


@app.command()
def noise(
    image: Annotated[Path, typer.Argument(help="Any picture.")],
    out: Out = Path("strip.png"),
    seed: Seed = 0,
) -> None:
    """Forward diffusion: a picture drowning in noise, as a strip of ten steps."""
    x0 = demo.fitted(pictures.load(image), 256)
    pictures.save(demo.forward_strip(cosine_schedule(), x0, np.random.default_rng(seed)), out)
    console.print(f"Wrote {out}")


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="cats_dogs, cifar10, or a path: IDX, CIFAR-10 binary, a folder.")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    size: Annotated[int | None, typer.Option(help="Cut a folder's pictures to this side.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all, not more.  [default: 2000]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.  [default: 32]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: 0.001]")] = None,
    backend: Annotated[str | None, typer.Option(help="numba, or numpy, the reference.  [default: numba]")] = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(help="Decides weights, order and noise.  [default: 0]")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train a noise predictor; the run's folder opens in minidiff and in diffusers.

    Beside the weights it holds metrics.csv, loss.png and a sheet of samples for every checkpoint.
    """
    given = {"size": size, "steps": steps, "batch_size": batch_size, "lr": lr, "backend": backend, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    with state.only_one(out):
        run, dataset = (_resume if resume else _start)(out, data, given, threads)
        _train(run, dataset, checkpoint_every, f"minidiff train {data} --out {out} --resume")
    console.print(f"Done: step {run.step}. Samples: minidiff sample {out} --out sheet.png")


@app.command("sample")
def sample_command(
    run: Annotated[Path, typer.Argument(help="A run, or a diffusers folder with unet/ and scheduler/.")],
    out: Out = Path("sheet.png"),
    n: Annotated[int, typer.Option(help="How many pictures.", min=1, max=100_000)] = 64,
    steps: Annotated[int, typer.Option(help="Steps from noise to picture.")] = 50,
    sampler: Annotated[str, typer.Option(help=" or ".join(SAMPLERS) + ".")] = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    seed: Seed = 0,
    gif: Annotated[Path | None, typer.Option(help="Also write the first picture's walk as a GIF.")] = None,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Reverse diffusion: pictures out of noise, on a sheet."""
    machine.use_threads(threads, backend)
    unet, schedule = checkpoint.load_unet(run, backend), checkpoint.load_schedule(run)
    rng, images, frames = np.random.default_rng(seed), [], []

    def draw(tick) -> None:
        for first in range(0, n, demo.BATCH):
            shape = (min(demo.BATCH, n - first), *unet.picture_shape)
            x_t = np.empty(shape)
            for _, x_t, _ in sample(unet, schedule, shape, rng, steps, sampler, eta=eta):
                if gif and first == 0:
                    frames.append(pictures.sheet(pictures.to_uint8(x_t[:1]), scale=8, gap=0))
                tick()
            images.append(pictures.to_uint8(x_t))

    _with_bar("drawing", steps * -(-n // demo.BATCH), draw)
    pictures.save(pictures.sheet(np.concatenate(images)), out)
    if gif:
        pictures.gif(frames, gif)
    console.print(f"Wrote {out}" + (f" and {gif}" if gif else ""))


@app.command()
def info() -> None:
    """Versions, threads, vector width: what to add to a report."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in machine.describe().items():
        table.add_row(name, str(value))
    console.print(table)


def _start(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[Run, Dataset]:
    """A new run of the given choices, every other at its default."""
    config = TrainConfig(data, **given)
    dataset = _open(data, config.size)
    threads = machine.use_threads(threads, config.backend)
    config = replace(config, flip=dataset.mirrors, threads=threads)
    schedule = cosine_schedule(prediction_type="v_prediction")
    return state.new_run(out, config, default_config(dataset.shape), schedule), dataset


def _resume(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[Run, Dataset]:
    """The run as it was; only its total of steps may change, and the threads."""
    run = state.open_run(out)
    for name, value in {"data": data, **given}.items():
        if name != "steps" and value != getattr(run.config, name):
            was = getattr(run.config, name)
            raise MinidiffError(f"{out}: was started with {name} {was}, not {value}; leave it out, or start a new run")
    threads = machine.use_threads(threads or min(run.config.threads, machine.cores()), run.config.backend)
    config = replace(run.config, steps=given.get("steps", run.config.steps), threads=threads)
    return replace(run, config=config), _open(data, config.size)


def _open(data: str, size: int | None) -> Dataset:
    """The set, with a bar if it has to be downloaded."""
    with _bar() as bar:
        task = bar.add_task("opening", total=None, note="")
        dataset = open_dataset(data, size, progress=lambda done, total: bar.update(task, completed=done, total=total))
    height, width, channels = dataset.shape
    colour = "grey" if channels == 1 else "RGB"
    classes = "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes)} classes"
    console.print(f"{dataset.name}: {len(dataset)} pictures, {width}x{height} {colour}, {classes}")
    return dataset


def _train(run: Run, dataset: Dataset, checkpoint_every: int, go_on: str) -> None:
    """Train to the end with a bar; Ctrl-C saves, says how to go on, and leaves with 130."""
    parameters = sum(p.data.size for p in run.unet.parameters())
    console.print(f"U-Net: {parameters / 1e6:.1f} million parameters, {run.config.threads} threads")
    if run.config.backend == "numba" and not machine.compiled():
        console.print("Compiling the kernels for this processor, once: about a minute.")
    notice = "Stopping after this step; Ctrl-C again breaks off."
    with _bar() as bar, stoppable(lambda: bar.console.print(notice)) as stop:
        task = bar.add_task("training", total=run.config.steps, completed=run.step, note="")
        rate = Rate(run.config.batch_size)

        def on_step(stats: StepStats) -> None:
            bar.update(task, advance=1, note=rate.note(stats))

        def on_checkpoint(step: int) -> None:
            bar.console.print(f"step {step}: {rate.last}; saved, see {run.folder / 'samples'}")

        fit(run, dataset, checkpoint_every, on_step, on_checkpoint, stop)
    if run.step < run.config.steps:
        console.print(f"Saved at step {run.step}. To go on: {go_on}")
        sys.exit(130)


class Rate:
    """The running loss and the pictures a second, for the bar."""

    def __init__(self, batch_size: int):
        self.batch_size, self.loss, self.last = batch_size, None, ""
        self.begin, self.steps = 0.0, -1

    def note(self, stats: StepStats) -> str:
        """What to write beside the bar. The first step compiles, so the clock starts after it."""
        self.loss = stats.loss if self.loss is None else 0.95 * self.loss + 0.05 * stats.loss
        self.steps += 1
        if self.steps == 0:
            self.begin = time.monotonic()
        speed = self.steps * self.batch_size / max(time.monotonic() - self.begin, 1e-9)
        self.last = f"loss {self.loss:.4f}, {speed:.0f} images/s" if self.steps else f"loss {self.loss:.4f}"
        return self.last


def _bar() -> Progress:
    columns = (BarColumn(30), TextColumn("{task.completed:.0f}/{task.total}"), TextColumn("{task.fields[note]}"))
    return Progress(
        TextColumn("{task.description}"), *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip


def _with_bar(name: str, total: int, work) -> None:
    """Run work(tick), where every tick() moves the bar by one."""
    with _bar() as bar:
        task = bar.add_task(name, total=total, note="")
        work(lambda: bar.advance(task))
