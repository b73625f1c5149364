"""The commands that edit: a picture drawn anew, filled in, and on the way to another."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minidiff import cli_text
from minidiff.data import pictures
from minidiff.diffusion import editing
from minidiff.diffusion.reverse import Walk, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.models.unet import UNet
from minidiff.options import (
    Asked,
    Backend,
    Guidance,
    GuidanceScale,
    Many,
    NegativePrompt,
    Net,
    Out,
    Picture,
    Prompt,
    Seed,
    Steps,
    Threads,
)  # fmt: skip
from minidiff.runs import checkpoint, drawing, machine, text
from minidiff.runs.pipeline import Pipeline
from minidiff.runs.terminal import announce_compiling, bar_of, console


def redraw(
    run: Net,
    picture: Picture,
    out: Out = Path("sheet.png"),
    strength: Annotated[float, typer.Option(help="How much is drawn anew, 0 to 1.")] = 0.5,
    n: Many = 8,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    name: Asked = None,
    guidance: GuidanceScale = None,
    steps: Steps = 50,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Half-drown a picture in noise and draw it anew from there; the original comes first on the sheet.

    Give --prompt for a run of train --text or a folder of Stable Diffusion; the guidance scale is then 7.5, else 1.
    """
    pictures.check_place(out, picture)
    editing.check_strength(strength)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        asked = [prompt], negative_prompt or "", 7.5 if guidance is None else guidance
        parts, x0, sampler = _open_texts(run, picture, asked, name, backend, threads)

        def one(prompt: str, tick: text.Tick) -> np.ndarray:
            return text.image_to_image(parts, [prompt], x0, strength, *asked[1:], steps, rng, sampler, tick)

        _show_texts(out, x0, cli_text.one_after_the_other([prompt] * n, max(int(steps * strength), 1), one))
        return
    cli_text.refuse(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    x0 = drawing.framed(picture, unet.picture_shape).repeat(n, 0)
    _show(out, x0[:1], editing.redraw(model, schedule, x0, strength, rng, steps, cond=labels), round(strength * steps))


def fill(
    run: Net,
    picture: Picture,
    mask: Annotated[Path, typer.Argument(help="A picture that is white where something is to be drawn.")],
    out: Out = Path("sheet.png"),
    n: Many = 8,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    name: Asked = None,
    guidance: GuidanceScale = None,
    steps: Steps = 50,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Draw a part of a picture anew, so that it fits the rest; the original comes first on the sheet.

    Give --prompt for a run of train --text or a folder of Stable Diffusion; the guidance scale is then 7.5, else 1.
    """
    pictures.check_place(out, picture, mask)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        asked = [prompt], negative_prompt or "", 7.5 if guidance is None else guidance
        parts, x0, sampler = _open_texts(run, picture, asked, name, backend, threads)
        where = drawing.mask_of(mask, x0.shape[1:3], parts.vae.factor)

        def one(prompt: str, tick: text.Tick) -> np.ndarray:
            return text.inpaint(parts, [prompt], x0, where, *asked[1:], steps, rng, sampler, tick)

        _show_texts(out, x0, cli_text.one_after_the_other([prompt] * n, steps, one))
        return
    cli_text.refuse(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    x0 = drawing.framed(picture, unet.picture_shape).repeat(n, 0)
    model = editing.filling_in(model, schedule, x0, drawing.mask_of(mask, x0.shape[1:3]))
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
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 1, *unet.picture_shape), dtype=np.float32)
    x_T = np.concatenate([editing.slerp(a, b, share) for share in np.linspace(0, 1, n)])  # (n, H, W, C)
    _show(out, x_T[:0], sample(model, schedule, x_T.shape, rng, steps, cond=labels, x_T=x_T), steps, columns=n)


def _open(
    run: Path, n: int, name: str | None, guidance: float | None, backend: str, threads: int | None
) -> tuple[UNet, Callable[..., Any], AnySchedule, np.ndarray | None]:
    """The network, the same under guidance, its schedule, and the labels (n,) of its images, if it knows any."""
    machine.use_threads(threads, backend)
    unet = drawing.drawable(run, backend)
    labels = drawing.asked(run, unet, name, n)
    announce_compiling(backend)
    schedule = checkpoint.load_schedule(run)
    return unet, drawing.insisting(run, unet, schedule, 1.0 if guidance is None else guidance), schedule, labels


def _open_texts(
    run: Path, picture: Path, asked: cli_text.Asked, name: str | None, backend: str, threads: int | None
) -> tuple[Pipeline, np.ndarray, Sampler]:
    """All that samples of a prompt, the image (1, H, W, C) at its native size, and DDIM, which edits everywhere."""
    machine.use_threads(threads, backend)
    if name is not None:
        raise MinidiffError("--class is for networks without a text: leave it out")
    parts = drawing.open_texts(run, backend)
    x0 = drawing.framed(picture, (*text.native_size(parts), parts.vae.config.in_channels))
    cli_text.check(parts, asked, backend)
    return parts, x0, checkpoint.load_sampler(run, "ddim")


def _show_texts(out: Path, x0: np.ndarray, images: np.ndarray) -> None:
    """Write a sheet of images (N, H, W, C) uint8 behind the one that they were made of, x0 (1, H, W, C)."""
    pictures.save(pictures.sheet(np.concatenate([pictures.to_uint8(x0), images])), out)
    console.print(f"Wrote {out}")


def _show(out: Path, first: np.ndarray, walk: Walk, steps: int, columns: int | None = None) -> None:
    """Walk to the end with a bar, and write a sheet of what it leads to."""
    x_t = first
    with bar_of() as bar:
        task = bar.add_task("drawing", total=max(steps, 1), note="")
        for _, x_t, _ in walk:  # noqa: B007  the last one counts
            bar.advance(task)
    pictures.save(pictures.sheet(drawing.finished(np.concatenate([first, x_t])), columns), out)
    console.print(f"Wrote {out}")
