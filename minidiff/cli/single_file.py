"""The command that reads single-file checkpoints, and `export --single-file`, which writes them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from minidiff.cli.options import PLACE
from minidiff.formats.single_file.reading import SingleFile
from minidiff.formats.single_file.writing import export_single_file, import_single_file
from minidiff.terminal import console


def import_file(
    file: Annotated[Path, typer.Argument(help="A Stable Diffusion 1.x or 2.x checkpoint, a .safetensors file.")],
    out: Annotated[Path, typer.Option(help="New folder.", **PLACE)],
    config: Annotated[
        Path | None,
        typer.Option(help="Stable Diffusion folder whose configurations, tokenizer and scheduler are used."),
    ] = None,
    prediction: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the U-Net predicts.  [default: as the file's metadata or --config say, or epsilon]"),
    ] = None,
) -> None:
    """Write a single-file checkpoint (CompVis' keys) as a Stable Diffusion folder, which diffusers opens too.

    The weights are copied bit by bit. Without --config sizes are read from the weights, the tokenizer is CLIP's, and
    the scheduler Stable Diffusion's. Whether a model predicts eps or v is not in its weights: Stable Diffusion 2.x for
    768 pixels needs --prediction v_prediction. minidiff sample opens a file without importing it.
    """
    read = import_single_file(file, out, config, prediction)
    console.print(f"Wrote {out}: {_summary(read)}")


def export_file(folder: Path, out: Path, half: bool) -> None:
    """Write a Stable Diffusion folder's networks as one file."""
    complete = export_single_file(folder, out, half)
    note = "" if complete else f"; only with --config {folder} can minidiff import read it back"
    console.print(f"Wrote {out}{note}")


def _summary(read: SingleFile) -> str:
    """What was read, and the prediction type."""
    size = sum(stored.size for network in read.stored.values() for stored in network.values())
    averages = sum(name.startswith("model_ema.") for name in read.left_out)
    left_out = f"; left out {averages} moving averages (model_ema.)" if averages else ""
    prediction = read.scheduler.value.get("prediction_type", "epsilon")
    return f"{size:,} weights, in the layout of Stable Diffusion {read.version}; prediction type {prediction}{left_out}"
