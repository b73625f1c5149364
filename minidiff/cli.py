"""The command line: what minidiff does, from a picture into noise and back."""

import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from minidiff import cli_edit, cli_evaluate, cli_explain, cli_text, cli_train
from minidiff.bench import cases, gpu, measure, report
from minidiff.data import pictures
from minidiff.data.prompt_file import read_prompts
from minidiff.diffusion.reverse import sample
from minidiff.errors import MinidiffError
from minidiff.options import (
    PLACE,
    Asked,
    Backend,
    GuidanceScale,
    NegativePrompt,
    Net,
    Out,
    Seed,
    Threads,
    not_empty,
    valid_text,
)  # fmt: skip
from minidiff.runs import demo, drawing, machine, state
from minidiff.runs.files import check_new_folder, new_folder
from minidiff.runs.terminal import announce_compiling, bar_of, console, errors, outlived, printable, with_bar
from minidiff.runs.train import SCHEDULE

app = typer.Typer(
    name="minidiff",
    help="Diffusion models from scratch: a picture into noise, and back.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"minidiff {version('minidiff')}")
        raise typer.Exit()


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


@app.callback()
def _options(version: Version = False) -> None:  # of minidiff itself; the callback has done it
    pass


def main() -> None:
    """Run the command line. What a user can mend is one line on stderr and exit code 2."""
    sys.stdout, sys.stderr = outlived(sys.stdout), outlived(sys.stderr)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told of by name, not warned of
            code = app(sys.argv[1:] or ["--help"], prog_name="minidiff", standalone_mode=False) or 0
        if code == 130:  # typer's word for KeyboardInterrupt
            print("minidiff: stopped", file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        wrong_option = getattr(error, "format_message", None)  # typer has it, under a private name
        if wrong_option is None and not isinstance(error, MinidiffError | OSError | MemoryError):
            raise
        message = _of_usage(error) if wrong_option else _of_system(error)
        print(f"minidiff: {printable(message)}", file=sys.stderr)
        sys.exit(2)


def _of_usage(error: Any) -> str:
    """What typer says of a wrong option, and whose --help to look at, as far as it knows."""
    said, context = " ".join(error.format_message().split()), getattr(error, "ctx", None)
    command = context.command_path if context else "minidiff"
    return f"{said}{'' if said.endswith(('.', '?')) else '.'} See {command} --help."


def _of_system(error: BaseException) -> str:
    """What an error says; where the current folder is gone, which the system says without a name, that."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return "the current folder is no longer there: change to another one, and call minidiff again"
    return str(error) or "there is no memory for that; close other programs, or choose smaller numbers"


@app.command("demo")
def demo_command(out: Out = Path("demo"), threads: Threads = None, seed: Seed = 0) -> None:
    """The main job, in a few minutes: learn to draw cats and dogs out of noise, and show how.

    Trains the noise predictor on the built-in set and writes a folder of pictures with an index.html.
    Stopped by Ctrl-C, it resumes where it was when called again; a finished one samples its images again. Another
    --seed needs another --out.
    """
    started = time.monotonic()
    with state.only_one(out), state.only_one(out / "run"):  # which train may be given too
        run, dataset = demo.open_demo(out, machine.use_threads(threads, "numba"), seed)
        go_on = ["minidiff", "demo", "--out", str(out), "--seed", str(seed)]  # another seed is refused
        if run.step < run.config.steps:
            cli_train.train_with_bar(run, dataset, demo.CHECKPOINT_EVERY, go_on)
        else:
            console.print(f"{run.folder}: all {run.step} steps are done already; only the images are sampled again")
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
    pictures.check_place(out, image)
    x0 = demo.fitted(pictures.load(image), 256)
    pictures.save(demo.forward_strip(SCHEDULE, x0, np.random.default_rng(seed)), out)
    console.print(f"Wrote {out}")


app.command()(cli_train.train)
app.command("train-vae")(cli_train.train_vae)


@app.command("sample")
def sample_command(
    run: Net,
    out: Annotated[
        Path | None, typer.Option(help="A sheet.  [default: sheet.png; with --folder: none]", **PLACE)
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="A new folder for single PNG files.", **PLACE)] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(callback=valid_text, help="Text to sample images of; may be repeated.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    negative_prompt: NegativePrompt = None,
    height: Annotated[int | None, typer.Option(help="Of a text's picture.  [default: its own]")] = None,
    width: Annotated[int | None, typer.Option(help="Of a text's picture.  [default: its own]")] = None,
    n: Annotated[int | None, typer.Option(help="Images: 64, or 1 a prompt.", min=1, max=100_000)] = None,
    name: Asked = None,
    guidance: GuidanceScale = None,
    steps: Annotated[int | None, typer.Option(help="From noise to picture.  [default: 50; of ddpm, all]")] = None,
    sampler: Annotated[str | None, typer.Option(help="See above.  [default: the folder's own]")] = None,
    eta: Annotated[float, typer.Option(help="DDIM's fresh noise, 0 to 1.")] = 0.0,
    spacing: Annotated[str | None, typer.Option(help="Of the steps.  [default: the folder's own]")] = None,
    karras: Annotated[bool, typer.Option("--karras", help="Levels as Karras et al. have them.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The last step's weights, not their moving average.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint of lowest loss, not the last.")] = False,
    step: Annotated[int | None, typer.Option(help="The checkpoint of this step, if it is kept.")] = None,
    seed: Seed = 0,
    noise: Annotated[str, typer.Option(help="numpy; or torch: noise and steps of diffusers.")] = "numpy",
    npz: Annotated[Path | None, typer.Option(help="Also write all images to a NumPy file, as arr_0.", **PLACE)] = None,
    gif: Annotated[Path | None, typer.Option(help="Also write the first picture's walk as a GIF.", **PLACE)] = None,
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
    out = Path("sheet.png") if out is None and folder is None else out
    drawing.check_places(out, gif, npz, folder, *filter(None, [prompts]))
    choice, texts = drawing.chosen(raw, best, step), [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        cli_text.refuse(run, {"negative-prompt": negative_prompt, "height": height, "width": width})
    elif name or gif:
        raise MinidiffError("--class and --gif are for networks without a text: leave them out")
    settings, rng = (sampler, eta, spacing, karras, steps, noise), drawing.source(noise, seed)
    if not texts:
        guidance = 1.0 if guidance is None else guidance
        images, labels = _draw(run, settings, n or 64, name, guidance, rng, gif, backend, choice)
        sheet = partial(pictures.sheet, images, **drawing.rows_by_class(labels))
    else:
        asked = texts, negative_prompt or "", 7.5 if guidance is None else guidance
        images = cli_text.draw(run, settings, n or 1, asked, (height, width), rng, backend, choice)
        sheet = partial(cli_text.sheet, images, texts)
    if folder:
        with new_folder(folder) as whole:
            pictures.save_each(images, whole)
    if npz:
        drawing.write_npz(npz, images)
    if out:
        pictures.save(sheet(), out)
    console.print("Wrote " + " and ".join(str(path) for path in (out, folder, npz, gif) if path))


def _draw(
    run: Path,
    settings: tuple,
    n: int,
    name: str | None,
    guidance: float,
    rng: Any,
    gif: Path | None,
    backend: str,
    choice: drawing.Choice,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images (n, H, W, C) uint8 of a network that takes no prompt, and their labels (n,), if it knows any."""
    unet = drawing.drawable(run, backend, choice)
    schedule, way, steps = drawing.walk_of(run, *settings)
    labels = drawing.asked(run, unet, name, n)
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
            drawn.append(drawing.finished(x_t))

    with_bar("drawing", steps * len(drawing.batches(n, unet, labels)), draw)
    if gif:
        pictures.gif(frames, gif)
    return np.concatenate(drawn), labels


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
    json_to: Annotated[
        str | None, typer.Option("--json", help="Write all numbers to a file; - is stdout.", callback=not_empty)
    ] = None,
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
