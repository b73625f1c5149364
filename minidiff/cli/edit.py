"""The commands that edit: a picture drawn anew, filled in, and on the way to another."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minidiff import machine
from minidiff.cli.options import (
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
from minidiff.cli.text import Asked as PromptAsked
from minidiff.cli.text import check, one_after_the_other, refuse
from minidiff.data import imaging
from minidiff.diffusion import editing
from minidiff.diffusion.reverse import Trajectory, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.models.unet import UNet
from minidiff.sampling import inputs, outputs, setup, text_to_image
from minidiff.terminal import announce_compiling, console, progress_bar


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
    imaging.check_image_output(out, picture)
    editing.check_strength(strength)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        asked = [prompt], negative_prompt or "", 7.5 if guidance is None else guidance
        parts, x0, sampler = _open_texts(run, picture, asked, name, backend, threads)

        def one(prompt: str, tick: text_to_image.Tick) -> np.ndarray:
            return text_to_image.image_to_image(parts, [prompt], x0, strength, *asked[1:], steps, rng, sampler, tick)

        _show_texts(out, x0, one_after_the_other([prompt] * n, max(int(steps * strength), 1), one))
        return
    refuse(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    x0 = inputs.load_network_input(picture, unet.image_shape).repeat(n, 0)
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
    imaging.check_image_output(out, picture, mask)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        asked = [prompt], negative_prompt or "", 7.5 if guidance is None else guidance
        parts, x0, sampler = _open_texts(run, picture, asked, name, backend, threads)
        where = inputs.load_mask(mask, x0.shape[1:3], parts.vae.factor)

        def one(prompt: str, tick: text_to_image.Tick) -> np.ndarray:
            return text_to_image.inpaint(parts, [prompt], x0, where, *asked[1:], steps, rng, sampler, tick)

        _show_texts(out, x0, one_after_the_other([prompt] * n, steps, one))
        return
    refuse(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    x0 = inputs.load_network_input(picture, unet.image_shape).repeat(n, 0)
    model = editing.inpainting(model, schedule, x0, inputs.load_mask(mask, x0.shape[1:3]))
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
    imaging.check_image_output(out)
    unet, model, schedule, labels = _open(run, n, name, guidance, backend, threads)
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 1, *unet.image_shape), dtype=np.float32)
    x_T = np.concatenate([editing.slerp(a, b, share) for share in np.linspace(0, 1, n)])  # (n, H, W, C)
    _show(out, x_T[:0], sample(model, schedule, x_T.shape, rng, steps, cond=labels, x_T=x_T), steps, columns=n)


def _open(
    run: Path, n: int, name: str | None, guidance: float | None, backend: str, threads: int | None
) -> tuple[UNet, Callable[..., Any], AnySchedule, np.ndarray | None]:
    """The network, the same under guidance, its schedule, and the labels (n,) of its images, if it knows any."""
    machine.use_threads(threads, backend)
    unet = setup.load_image_unet(run, backend)
    labels = inputs.class_labels(run, unet, name, n)
    announce_compiling(backend)
    schedule = networks.load_schedule(run)
    return unet, setup.guided_model(run, unet, schedule, 1.0 if guidance is None else guidance), schedule, labels


def _open_texts(
    run: Path, picture: Path, asked: PromptAsked, name: str | None, backend: str, threads: int | None
) -> tuple[Pipeline, np.ndarray, Sampler]:
    """All that samples of a prompt, the image (1, H, W, C) at its native size, and DDIM, which edits everywhere."""
    machine.use_threads(threads, backend)
    if name is not None:
        raise MinidiffError("--class is for networks without a text: leave it out")
    parts = setup.open_texts(run, backend)
    x0 = inputs.load_network_input(picture, (*text_to_image.native_size(parts), parts.vae.config.in_channels))
    check(parts, asked, backend)
    return parts, x0, networks.load_sampler(run, "ddim")


def _show_texts(out: Path, x0: np.ndarray, images: np.ndarray) -> None:
    """Write a sheet of images (N, H, W, C) uint8 behind the one that they were made of, x0 (1, H, W, C)."""
    imaging.save_image(imaging.sheet(np.concatenate([imaging.to_uint8(x0), images])), out)
    console.print(f"Wrote {out}")


def _show(out: Path, first: np.ndarray, walk: Trajectory, steps: int, columns: int | None = None) -> None:
    """Walk to the end with a bar, and write a sheet of what it leads to."""
    x_t = first
    with progress_bar() as bar:
        task = bar.add_task("drawing", total=max(steps, 1), note="")
        for _, x_t, _ in walk:  # noqa: B007  the last one counts
            bar.advance(task)
    imaging.save_image(imaging.sheet(outputs.finished(np.concatenate([first, x_t])), columns), out)
    console.print(f"Wrote {out}")
