"""The command line: what minidiff does, from a picture into noise and back."""

import io
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from minidiff import cli_edit, cli_evaluate, cli_explain, cli_text, cli_train
from minidiff.bench import cases, gpu, measure, report
from minidiff.data import pictures
from minidiff.diffusion.reverse import sample
from minidiff.errors import MinidiffError
from minidiff.options import Asked, Backend, Net, Out, Seed, Threads
from minidiff.runs import demo, drawing, machine, state
from minidiff.runs.files import check_new_folder, new_folder
from minidiff.runs.terminal import announce_compiling, bar_of, console, errors, with_bar
from minidiff.runs.train import SCHEDULE

app = typer.Typer(
    name="minidiff",
    help="Diffusion models from scratch: a picture into noise, and back.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line. What a user can mend is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what no encoding does
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="minidiff", standalone_mode=False) or 0
        if code == 130:  # typer's word for KeyboardInterrupt
            print("minidiff: stopped", file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        wrong_option = getattr(error, "format_message", None)  # typer has it, under a private name
        if wrong_option is None and not isinstance(error, MinidiffError | OSError | MemoryError):
            raise
        message = _of_usage(error) if wrong_option else str(error)
        print(f"minidiff: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def _of_usage(error: Any) -> str:
    """What typer says of a wrong option, and whose --help to look at, as far as it knows."""
    said, context = error.format_message(), getattr(error, "ctx", None)
    command = context.command_path if context else "minidiff"
    return f"{said}{'' if said.endswith(('.', '?')) else '.'} See {command} --help."


@app.command("demo")
def demo_command(out: Out = Path("demo"), threads: Threads = None, seed: Seed = 0) -> None:
    """The main job, in a few minutes: learn to draw cats and dogs out of noise, and show how.

    Trains the noise predictor on the built-in set and writes a folder of pictures with an index.html.
    Stopped by Ctrl-C, it goes on where it was when called again.
    """
    started = time.monotonic()
    with state.only_one(out):
        run, dataset = demo.open_demo(out, machine.use_threads(threads, "numba"), seed)
        go_on = ["minidiff", "demo", "--out", str(out), "--seed", str(seed)]  # of another seed it would begin anew
        cli_train.train_with_bar(run, dataset, demo.CHECKPOINT_EVERY, go_on)
        with_bar("drawing", demo.STEPS, lambda tick: demo.write_pages(run, dataset, out, tick))
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
    pictures.save(demo.forward_strip(SCHEDULE, x0, np.random.default_rng(seed)), out)
    console.print(f"Wrote {out}")


app.command()(cli_train.train)
app.command("train-vae")(cli_train.train_vae)


@app.command("sample")
def sample_command(
    run: Net,
    out: Out = Path("sheet.png"),
    prompt: Annotated[str | None, typer.Option(help="What to draw, if RUN hears a text.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    height: Annotated[int | None, typer.Option(help="Of a text's picture.  [default: its own]")] = None,
    width: Annotated[int | None, typer.Option(help="Of a text's picture.  [default: its own]")] = None,
    n: Annotated[int | None, typer.Option(help="How many: 64, or 1 of a text.", min=1, max=100_000)] = None,
    name: Asked = None,
    guidance: Annotated[float | None, typer.Option(help="How much to insist.  [default: 1; a text, 7.5]")] = None,
    steps: Annotated[int | None, typer.Option(help="From noise to picture.  [default: 50; of ddpm, all]")] = None,
    sampler: Annotated[str | None, typer.Option(help="See above.  [default: the folder's own]")] = None,
    eta: Annotated[float, typer.Option(help="DDIM's fresh noise, 0 to 1.")] = 0.0,
    spacing: Annotated[str | None, typer.Option(help="Of the steps.  [default: the folder's own]")] = None,
    karras: Annotated[bool, typer.Option("--karras", help="Levels as Karras et al. have them.")] = False,
    seed: Seed = 0,
    noise: Annotated[str, typer.Option(help="numpy; or torch: noise and steps of diffusers.")] = "numpy",
    npz: Annotated[Path | None, typer.Option(help="Also write all pictures to a NumPy file, as arr_0.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Also write the first picture's walk as a GIF.")] = None,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Reverse diffusion: pictures out of noise, on a sheet; or what a text says, by a run of train --text
    or a folder of Stable Diffusion.

    Samplers: ddpm, ddim, pndm, euler, euler_ancestral, heun, dpmpp_2m. Spacings: trailing, leading, linspace.
    With --noise torch the images are those that the folder's own scheduler samples in diffusers 0.42.1, at any number
    of steps, from the noise of torch.Generator().manual_seed(SEED): to rounding, and but for the cases in
    docs/samplers.md.
    """
    machine.use_threads(threads, backend)
    drawing.check_places(out, gif, npz)
    if prompt is None:
        cli_text.refuse(run, {"negative-prompt": negative_prompt, "height": height, "width": width})
    elif name or gif:
        raise MinidiffError("--class and --gif are for networks without a text: leave them out")
    settings, columns = (sampler, eta, spacing, karras, steps, noise), None
    if prompt is None:
        guidance = 1.0 if guidance is None else guidance
        images, columns = _draw(run, settings, n or 64, name, guidance, drawing.source(noise, seed), gif, backend)
    else:
        asked = prompt, negative_prompt or "", 7.5 if guidance is None else guidance
        images = cli_text.draw(run, settings, n or 1, asked, (height, width), drawing.source(noise, seed), backend)
    if npz:
        drawing.write_npz(npz, images)
    one_picture = prompt is not None and len(images) == 1  # which is no sheet
    pictures.save(pictures.sheet(images, columns, gap=0 if one_picture else 4), out)
    console.print("Wrote " + " and ".join(str(path) for path in (out, npz, gif) if path))


def _draw(
    run: Path, settings: tuple, n: int, name: str | None, guidance: float, rng, gif: Path | None, backend: str
) -> tuple[np.ndarray, int | None]:
    """Pictures (n, H, W, C) uint8 of a network that hears no text, and in how many columns they are shown."""
    unet = drawing.drawable(run, backend)
    schedule, way, steps = drawing.walk_of(run, *settings)
    labels = drawing.asked(run, unet, name, n)
    n = n if labels is None else len(labels)
    model = drawing.insisting(run, unet, schedule, guidance)
    drawn, frames = [], []
    announce_compiling(backend)

    def draw(tick) -> None:
        for shape, cond in drawing.batches(n, unet, labels):
            x_t = np.empty(shape)
            for _, x_t, _ in sample(model, schedule, shape, rng, steps, way, cond):
                if gif and not drawn:
                    frames.append(pictures.sheet(pictures.to_uint8(x_t[:1]), scale=8, gap=0))
                tick()
            drawn.append(pictures.to_uint8(x_t))

    with_bar("drawing", steps * len(drawing.batches(n, unet, labels)), draw)
    if gif:
        pictures.gif(frames, gif)
    columns = None if labels is None or labels[0] == labels[-1] else min(n // len(set(labels.tolist())), 16)
    return np.concatenate(drawn), columns


for command in (cli_explain.explain, cli_edit.redraw, cli_edit.fill, cli_edit.between, cli_evaluate.evaluate):
    app.command()(command)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    raw: Annotated[bool, typer.Option("--raw", help="The last step's weights, not their moving average.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Of the checkpoint of lowest loss, not the last.")] = False,
) -> None:
    """Write a run's network as a folder of its own, which diffusers opens.

    DDPMPipeline.from_pretrained(OUT), or, of a run by class, UNet2DModel.from_pretrained(OUT, subfolder="unet"); of
    texts, StableDiffusionPipeline; of an autoencoder, AutoencoderKL.from_pretrained(OUT, subfolder="vae").
    """
    check_new_folder(out)
    opened = state.open_best(run) if best else state.open_run(run)
    with new_folder(out) as folder:
        state.export(opened, folder, raw)
    console.print(f"Wrote {out}, of step {opened.step}")


@app.command()
def info() -> None:
    """Versions, threads, vector width: what to add to a report."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in machine.describe().items():
        table.add_row(name, str(value))
    console.print(table)


@app.command("bench")
def bench_command(
    names: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(cases.FAMILIES)}.")] = None,
    against: Annotated[str, typer.Option(help="torch, or numpy, our own reference.")] = "torch",
    batch: Annotated[int | None, typer.Option(help="Pictures at a time.  [default: 64]", min=1, max=65536)] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each.  [default: 5, or a second]", min=1)] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also torch.compile, which takes minutes.")] = False,
    json_to: Annotated[str | None, typer.Option("--json", help="Write all numbers to a file; - is stdout.")] = None,
    backend: Annotated[str, typer.Option(help="numba, cupy or cupy-tf32.")] = "numba",
    threads: Threads = None,
) -> None:
    """How fast and how exact: kernels, network and training step beside PyTorch's, in turn, on the same cores.

    Takes about five minutes; Ctrl-C shows what is measured by then. Times are in milliseconds, of the best round.
    stable, Stable Diffusion's U-Net in its real size, runs only if it is named: it needs 20 GB of memory.
    """
    chosen = cases.choose(names or [], against, batch)
    report.check_place(json_to)
    rows = []
    if backend == "numba":
        compiled_before, rival = machine.compiled(), measure.open_rival(against, threads)
        if not compiled_before:
            errors.print("Compiling the kernels for this processor, once: about a minute.")
        measured, peaks = partial(measure.measure, rival=rival, compiled=compiled, rounds=rounds), measure.peaks()
    else:
        rival = gpu.open_rival(backend)
        measured = partial(gpu.measure, rival=rival, backend=backend, compiled=compiled, rounds=rounds)
        peaks = gpu.peaks(backend)
    facts = {**rival.facts, **report.surroundings()}
    try:
        with bar_of(transient=True, on=errors if json_to == "-" else console) as bar:
            bar.console.print(report.head(facts, peaks))
            for row in report.follow(chosen, measured, peaks, bar):
                rows.append(row)
    finally:
        report.write(json_to, report.as_dict(rows, facts, peaks, finished=len(rows) == len(chosen)))
