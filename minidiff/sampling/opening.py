"""A folder opened for sampling: a run, a U-Net folder or a Stable Diffusion folder, each of its files once."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from minidiff.errors import MinidiffError
from minidiff.formats import averages
from minidiff.formats.folders import check_kind, check_run, find
from minidiff.formats.networks import load_classes, open_scheduler, sampler_of, schedule_of, unet_of
from minidiff.formats.pipeline import Pipeline, PointsPipeline, TextPipeline
from minidiff.formats.run_networks import read_chosen, read_networks
from minidiff.formats.run_state import RunState, read_newest
from minidiff.formats.single_file.reading import load_single_file
from minidiff.formats.stable_diffusion import check_fit, load_text_parts
from minidiff.models.unet import UNet

Weights = Literal["raw", "best"] | int
Kind = Literal["unet", "text", "points"]


def open_pipeline(
    folder: str | Path,
    backend: str = "numba",
    weights: Weights | None = None,
    sampler: str | None = None,
    as_diffusers: bool = False,
    kind: Kind | tuple[Kind, ...] = ("unet", "text", "points"),
    ema: float | None = None,
) -> Pipeline:
    """Open a folder for sampling: a TextPipeline if its U-Net is conditioned on prompts, a PointsPipeline of points.

    folder        a run, a folder of diffusers with unet/ and scheduler/, or Stable Diffusion 1.x or 2.x: its folder, or
                  a single-file checkpoint, a safetensors file
    weights       of a run: those of the last step ("raw"), or the moving average at its best checkpoint ("best") or at
                  the checkpoint of a step; None: those that the folder exports
    sampler       the name of another sampler, with the settings that it shares with the folder's own
    as_diffusers  see `Sampler`; the schedule too is then as the sampler's class in diffusers reads it
    kind          "text" if the folder must take prompts, "unet" if it must not, "points" if it must be a run on points;
                  several: one of these
    ema           of a run: the half-life in steps of the moving average, one that its states hold, or else one combined
                  of those that the kept checkpoints hold (`average` in formats/averages.py); None: the run's first
    Raises MinidiffError for a folder that is missing, of another kind (WrongKind) or damaged, for pickled weights, for
    an unsupported configuration, and for a U-Net whose images are neither grey nor RGB, or that cannot downsample them.
    """
    folder, wanted = Path(folder), (kind,) if isinstance(kind, str) else kind
    if weights is None and ema is None:
        parts, step = _exported(folder, wanted, backend)
    else:
        parts, step = _chosen(folder, wanted, backend, weights, ema)
    scheduler = parts.pop("scheduler", None) or open_scheduler(folder)
    chosen = replace(sampler_of(scheduler, sampler), as_diffusers=as_diffusers)
    settings: dict[str, Any] = dict(schedule=schedule_of(scheduler, chosen), sampler=chosen, folder=folder, step=step)
    if "tokenizer" in parts:
        pipeline = TextPipeline(**parts, **settings)
        check_fit(pipeline)
        return pipeline
    if "data" in parts:
        pipeline = PointsPipeline(**parts, **settings)
    else:
        _check_images(folder, parts["unet"])
        pipeline = Pipeline(**parts, **settings)
    return pipeline if pipeline.num_class_embeds is None else replace(pipeline, classes=load_classes(folder))


def chosen_weights(raw: bool, best: bool, step: int | None) -> Weights | None:
    """The weights that --raw, --best or --step choose; None without any. Raises MinidiffError if several are given."""
    given = {"--raw": raw or None, "--best": best or None, "--step": step}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise MinidiffError(f"{' and '.join(names)} choose different weights: give one of them")
    return "raw" if raw else "best" if best else step


def _exported(folder: Path, wanted: tuple[str, ...], backend: str) -> tuple[dict[str, Any], int | None]:
    """The parts of the pipeline that a folder or file holds, by name, and the step of its run.

    Of a file "scheduler" is one of them.
    """
    found = find(folder, *wanted)
    kind = found.kind or wanted[0]  # if it is unknown, the error says what the wanted kind lacks
    if kind == "points":  # the export does not name the dataset
        check_run(folder)
        return read_newest(folder, lambda state: (read_networks(state, "ema", backend), state.step), found.state)
    if kind == "text":
        return load_single_file(folder, backend) if folder.is_file() else load_text_parts(found, backend), found.step
    return {"unet": unet_of(found, backend)}, found.step


def _chosen(
    folder: Path, wanted: tuple[str, ...], backend: str, weights: Weights | None, ema: float | None
) -> tuple[dict[str, Any], int]:
    """The same with the weights of a run's states."""
    if weights == "raw" and ema is not None:
        raise MinidiffError("--raw and --ema choose different weights: give one of them")

    def read(state: RunState, chosen: averages.Weights) -> tuple[dict[str, Any], int]:
        check_kind(folder, state.kind, *wanted)
        return read_networks(state, chosen, backend), state.step

    return read_chosen(folder, weights, read, ema)


def _check_images(folder: Path, unet: UNet) -> None:
    """Raises MinidiffError unless the images are grey or RGB, and of a size that the U-Net can downsample."""
    height, width, channels = unet.image_shape
    downsamples = len(unet.config.block_out_channels) - 1
    if channels not in (1, 3):
        raise MinidiffError(f"{folder}: its images have {channels} channels; a sheet shows 1 or 3")
    if height % 2**downsamples or width % 2**downsamples:
        size = f"sample_size is {height}x{width}"
        raise MinidiffError(f"{folder}: {size}, and the network downsamples it by 2 {downsamples} times")
