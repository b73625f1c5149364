"""The commands that edit: a picture drawn anew, filled in, and on the way to another."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minidiff.data import pictures
from minidiff.diffusion import editing
from minidiff.diffusion.reverse import Walk, sample
from minidiff.diffusion.schedule import AnySchedule
from minidiff.models.unet import UNet
from minidiff.options import Asked, Backend, Guidance, Many, Net, Out, Picture, Seed, Steps, Threads
from minidiff.runs import checkpoint, drawing, machine
from minidiff.runs.terminal import announce_compiling, bar_of, console


def redraw(
    run: Net,
    picture: Picture,
    out: Out = Path("sheet.png"),
    strength: Annotated[float, typer.Option(help="How much is drawn anew, 0 to 1.")] = 0.5,
    n: Many = 8,
    name: Asked = None,
    guidance: Guidance = 1.0,
    steps: Steps = 50,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Half-drown a picture in noise and draw it anew from there; the original comes first on the sheet."""
    pictures.check_place(out, picture)
    unet, model, schedule, n, labels = _open(run, n, name, guidance, backend, threads)
    x0, rng = drawing.framed(picture, unet).repeat(n, 0), np.random.default_rng(seed)
    _show(out, x0[:1], editing.redraw(model, schedule, x0, strength, rng, steps, cond=labels), round(strength * steps))


def fill(
    run: Net,
    picture: Picture,
    mask: Annotated[Path, typer.Argument(help="A picture that is white where something is to be drawn.")],
    out: Out = Path("sheet.png"),
    n: Many = 8,
    name: Asked = None,
    guidance: Guidance = 1.0,
    steps: Steps = 50,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Draw a part of a picture anew, so that it fits the rest; the original comes first on the sheet."""
    pictures.check_place(out, picture, mask)
    unet, model, schedule, n, labels = _open(run, n, name, guidance, backend, threads)
    x0, rng = drawing.framed(picture, unet).repeat(n, 0), np.random.default_rng(seed)
    model = editing.filling_in(model, schedule, x0, drawing.mask_of(mask, unet))
    _show(out, x0[:1], sample(model, schedule, x0.shape, rng, steps, cond=labels), steps)


def between(
    run: Net,
    out: Out = Path("sheet.png"),
    n: Many = 8,
    name: Asked = None,
    guidance: Guidance = 1.0,
    steps: Steps = 50,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """From one picture to another, by way of the noises between theirs; a row."""
    pictures.check_place(out)
    unet, model, schedule, n, labels = _open(run, n, name, guidance, backend, threads)
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 1, *unet.picture_shape), dtype=np.float32)
    x_T = np.concatenate([editing.slerp(a, b, share) for share in np.linspace(0, 1, n)])  # (n, H, W, C)
    _show(out, x_T[:0], sample(model, schedule, x_T.shape, rng, steps, cond=labels, x_T=x_T), steps, columns=n)


def _open(
    run: Path, n: int, name: str | None, guidance: float, backend: str, threads: int | None
) -> tuple[UNet, Callable[..., Any], AnySchedule, int, np.ndarray | None]:
    """The network, the same under guidance, its schedule, and how many pictures of which classes (n,)."""
    machine.use_threads(threads, backend)
    unet = drawing.drawable(run, backend)
    labels = drawing.asked(run, unet, name, n)
    n = n if labels is None else len(labels)
    announce_compiling(backend)
    schedule = checkpoint.load_schedule(run)
    return unet, drawing.insisting(run, unet, schedule, guidance), schedule, n, labels


def _show(out: Path, first: np.ndarray, walk: Walk, steps: int, columns: int | None = None) -> None:
    """Walk to the end with a bar, and write a sheet of what it leads to."""
    x_t = first
    with bar_of() as bar:
        task = bar.add_task("drawing", total=max(steps, 1), note="")
        for _, x_t, _ in walk:  # noqa: B007  the last one counts
            bar.advance(task)
    pictures.save(pictures.sheet(pictures.to_uint8(np.concatenate([first, x_t])), columns), out)
    console.print(f"Wrote {out}")
