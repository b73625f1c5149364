"""The command line application, with the commands noise, export, info and bench."""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from minidiff import faults, machine, ranks
from minidiff.bench import cases, gpu, measure, memory, profile, report, rivals
from minidiff.cli import demo_pages
from minidiff.cli.demo import demo
from minidiff.cli.distill import distill
from minidiff.cli.evaluate import evaluate
from minidiff.cli.learn import learn
from minidiff.cli.options import Best, Out, Raw, Seed, Threads, not_empty
from minidiff.cli.run_report import report_command
from minidiff.cli.sampling.edit import between, fill, invert, redraw
from minidiff.cli.sampling.explain import explain
from minidiff.cli.sampling.like import Repeating
from minidiff.cli.sampling.sample import sample_command
from minidiff.cli.single_file import export_file, import_file
from minidiff.cli.train import train, train_classifier, train_vae
from minidiff.cli.tune import tune
from minidiff.data import imaging
from minidiff.errors import MinidiffError
from minidiff.files import check_new_folder, new_folder
from minidiff.formats.folders import FOUND, describe, find
from minidiff.formats.lora_files import LORA_WEIGHTS, load_lora, save_lora
from minidiff.formats.weights import to_float16
from minidiff.progress import progress_shown
from minidiff.terminal import (
    console,
    ignore_closed,
    printable,
    progress_bar,
    reports_shown,
    shown_progress,
    stderr_console,
)
from minidiff.training import state
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.parallel.agreement import check_programs
from minidiff.training.recipes import SCHEDULE

app = typer.Typer(
    name="minidiff",
    help="Train and sample diffusion models, written from scratch in Python.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 130},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"minidiff {version('minidiff')}")
        raise typer.Exit()


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


# The commands that run as several processes.
MANY_RANKS = ("train", "train-vae", "train-classifier", "tune", "distill", "sample", "evaluate")


@app.callback()
def _options(context: typer.Context, version: Version = False) -> None:  # --version itself is handled by its callback
    if ranks.size() > 1 and context.invoked_subcommand not in MANY_RANKS:
        raise MinidiffError(f"minidiff {context.invoked_subcommand} runs as one process: start it without mpiexec")


def main() -> None:
    """Run the command line. An error of usage, data or system is one line on stderr, with exit code 2."""
    sys.stdout, sys.stderr = ignore_closed(sys.stdout), ignore_closed(sys.stderr)
    with faults.ending_all():
        try:
            _start_ranks()
            with np.errstate(over="ignore", invalid="ignore"), reports_shown():  # non-finite values raise MinidiffError
                code = app(sys.argv[1:] or ["--help"], prog_name="minidiff", standalone_mode=False) or 0
            if code == 0:
                faults.finish()
            if code == 130 and ranks.rank() == 0:  # typer's exit code for KeyboardInterrupt
                print("minidiff: stopped", file=sys.stderr)
            sys.exit(code)
        except Exception as error:
            usage_error = hasattr(error, "format_message")  # its class is private in typer
            if not usage_error and not isinstance(error, MinidiffError | OSError | MemoryError):
                raise
            message = _usage_message(error) if usage_error else _system_message(error)
            faults.report(printable(message))
            sys.exit(2)


def _start_ranks() -> None:
    """Of several ranks only the first prints; all watch each other, and are the same program."""
    faults.start_watching()
    if ranks.rank() > 0:
        console.quiet = stderr_console.quiet = True
    check_programs()


def _usage_message(error: Any) -> str:
    """Typer's message of a usage error, in one line, and the command whose --help to read."""
    message = " ".join(error.format_message().split()).replace(": Value error, ", ": ")  # typer's, before choices
    if not message.endswith((".", "?")):
        message += "."
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "minidiff"
    return f"{message} See {command} --help."


def _system_message(error: BaseException) -> str:
    """The message of an error; our own for a removed current folder and for MemoryError, which have none."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return "the current folder is no longer there: change to another one, and call minidiff again"
    return str(error) or "there is no memory for that; close other programs, or choose smaller numbers"


app.command()(demo)
app.command()(learn)


@app.command()
def noise(
    image: Annotated[Path, typer.Argument(help="Input image.")],
    out: Out = Path("strip.png"),
    seed: Seed = 0,
) -> None:
    """Add noise to an image (forward diffusion); writes a strip of ten timesteps."""
    imaging.check_image_output(out, image)
    x0 = demo_pages.fitted(imaging.load_image(image), 256)
    imaging.save_image(demo_pages.forward_strip(SCHEDULE, x0, np.random.default_rng(seed)), out)
    console.print(f"Wrote {out}")


app.command()(train)
app.command("train-vae")(train_vae)
app.command("train-classifier")(train_classifier)
app.command()(tune)
app.command()(distill)
app.command("sample", cls=Repeating)(sample_command)
for command in (explain, redraw, fill, invert, between, evaluate):
    app.command()(command)
app.command("report")(report_command)


app.command("import")(import_file)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run's folder; with --single-file also a Stable Diffusion folder.")],
    out: Annotated[Path, typer.Argument(help="New folder; with --single-file a file.")],
    raw: Raw = False,
    best: Best = False,
    half: Annotated[bool, typer.Option("--half", help="Write the weights as float16; a LoRA's always are.")] = False,
    kohya: Annotated[bool, typer.Option("--kohya", help="Of a LoRA: write kohya's keys, for web interfaces.")] = False,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Of a Stable Diffusion folder or a run with a prompt: one file."),
    ] = False,
) -> None:
    """Export a run's network to a folder that diffusers opens, or with --single-file to one file with CompVis' keys.

    Unconditional: DDPMPipeline.from_pretrained(OUT). Class-conditional: UNet2DModel.from_pretrained(OUT,
    subfolder="unet"). Text-conditional: StableDiffusionPipeline.from_pretrained(OUT), if its vae is there.
    Autoencoder: AutoencoderKL.from_pretrained(OUT, subfolder="vae"). LoRA: pipeline.load_lora_weights(OUT).
    Textual inversion: pipeline.load_textual_inversion(OUT). A classifier is for this package alone.
    """
    if single_file:
        if raw or best or kohya:
            raise MinidiffError("--single-file writes what the folder holds: export other weights to a folder first")
        export_file(run, out, half)
        return
    check_new_folder(out)
    if find(run, *FOUND).kind == "points":
        raise MinidiffError(f"{describe(run, 'points')}; give a run on images, diffusers has no such network")
    opened = state.open_best(run) if best else state.open_run(run)
    if kohya and not isinstance(opened, LoRARun):
        raise MinidiffError(f"{run}: is no run of minidiff tune; leave --kohya out")
    with new_folder(out) as folder:
        state.export(opened, folder, raw)
        if kohya and isinstance(opened, LoRARun):
            save_lora(folder / LORA_WEIGHTS, load_lora(folder, opened.pipeline), kohya=True, half=True)
        if half:
            to_float16(folder)
    console.print(f"Wrote {out}, of step {opened.step}")


@app.command()
def info() -> None:
    """Print versions, threads and vector width, for bug reports."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in machine.describe().items():
        table.add_row(name, str(value))
    console.print(table)


@app.command("bench")
def bench_command(
    names: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(cases.FAMILIES)}.")] = None,
    against: Annotated[
        Literal["torch", "tensorflow", "openvino", "numpy"] | None,
        typer.Option(help="The only rival; numpy is our reference.  [default: torch, and others that are installed]"),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.  [default: mostly 64]", min=1, max=65536)] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Timed rounds.  [default: at least 5, for about a second]", min=1)
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also measure torch.compile, which takes minutes.")
    ] = False,
    json_to: Annotated[
        str | None, typer.Option("--json", help="Write all results to this file; - is stdout.", callback=not_empty)
    ] = None,
    profiled: Annotated[
        bool, typer.Option("--profile", help="No rival: the time of every operation of ours, by its shapes.")
    ] = False,
    of_memory: Annotated[
        bool, typer.Option("--memory", help="No times: the peak memory of the training steps, ours and PyTorch's.")
    ] = False,
    backend: Annotated[Literal["numba", "cupy", "cupy-tf32"], typer.Option(help="Compute backend.")] = "numba",
    threads: Threads = None,
) -> None:
    """Measure speed and accuracy of kernels, network and training step against PyTorch's, on the same cores.

    Networks and training steps are compared with TensorFlow's and OpenVINO's too where these are installed
    (pip install 'minidiff[bench]'). All sides run in turn; times are in milliseconds, of the fastest round. Takes about
    five minutes; Ctrl-C prints what has been measured. stable, Stable Diffusion's U-Net at full size, runs only if it
    is named: it needs 20 GB of memory, with OpenVINO 24.
    """
    if profiled or of_memory:
        if against or compiled or json_to or backend != "numba" or (profiled and of_memory):
            raise MinidiffError(
                f"--{'profile prints our times' if profiled else 'memory is of training steps'} on the CPU: "
                "leave out --against, --compile, --json, --backend, and one of --profile and --memory"
            )
    if of_memory:
        return console.print(memory.table(cases.choose(names or ["step"], batch=batch), threads))
    if profiled:
        return _print_profiles(cases.choose(names or [], batch=batch), rounds, threads)
    chosen = cases.choose(names or [], "numpy" if against == "numpy" else "torch", batch)
    report.check_place(json_to)
    rows = []
    if backend == "numba":
        rival = rivals.open_rival([against] if against else ["torch", *rivals.installed()], threads)
        chosen = [case for case in chosen if rival.modes(case.op, compiled)]
        with progress_shown(partial(shown_progress, on=stderr_console)):
            measure.compile_for(cases.choose(names or [], batch=1))
        measured = partial(measure.measure, rival=rival, compiled=compiled, rounds=rounds)
        peaks = measure.peaks()
    else:
        rival = gpu.open_rival(backend)
        measured = partial(gpu.measure, rival=rival, backend=backend, compiled=compiled, rounds=rounds)
        peaks = gpu.peaks(backend)
    facts = {**rival.facts, **report.surroundings()}
    try:
        with progress_bar(transient=True, on=stderr_console if json_to == "-" else console) as bar:
            bar.console.print(report.head(facts, peaks))
            for row in report.follow(chosen, measured, peaks, bar):
                rows.append(row)
    finally:
        report.write(json_to, report.as_dict(rows, facts, peaks, finished=len(rows) == len(chosen)))


def _print_profiles(chosen: list[cases.Case], rounds: int | None, threads: int | None) -> None:
    machine.use_threads(threads, "numba")
    peaks = measure.peaks()
    console.print(report.head(machine.describe() | report.surroundings(), peaks))
    for case in chosen:
        console.print("", profile.table(case, *profile.profile(case, rounds), peaks), sep="\n")
