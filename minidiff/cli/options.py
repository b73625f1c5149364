"""Options that several commands have, each said in one place."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from minidiff.errors import MinidiffError

T = TypeVar("T", str, list[str], None)


def not_empty(value: Any) -> Any:
    """What an option is given, unless that is empty: where a path is wanted, pathlib would take the current folder."""
    if value is not None and not os.fspath(value):
        raise typer.BadParameter("it is empty; give a path.")
    return value


def _path(value: str | Path) -> Path:
    return Path(not_empty(value))


def valid_text(option: typer.CallbackParam, value: T) -> T:
    """The value of an option that takes text, one or several. Raises MinidiffError if its bytes are not UTF-8."""
    for text in [value] if isinstance(value, str) else value or []:
        if re.search("[\ud800-\udfff]", text):  # Python's stand-ins for the bytes
            raise MinidiffError(f"{option.opts[0]} {text!r:.80}: is not valid UTF-8; type the text again")
    return value


PLACE: Any = dict(parser=_path, metavar="<path>")  # of an option that says where to write

Out = Annotated[Path, typer.Option(help="Where to write.", **PLACE)]
Seed = Annotated[int, typer.Option(help="Decides everything random.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Threads of the kernels.  [default: all cores]")]
Backend = Annotated[str, typer.Option(help="numba, numpy, cupy or cupy-tf32.")]
Net = Annotated[Path, typer.Argument(help="A run, or a folder of diffusers: unet/ and scheduler/.")]
Picture = Annotated[Path, typer.Argument(help="Any picture; its centre is taken.")]
Asked = Annotated[
    str | None, typer.Option("--class", callback=valid_text, help="What is asked for; or all, class by class.")
]
Guidance = Annotated[float, typer.Option(help="How much to insist on it; 1: not.")]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance scale; 1 disables it.")
]  # 1, or of a prompt 7.5
Prompt = Annotated[str | None, typer.Option(callback=valid_text, help="Text to condition on.")]
NegativePrompt = Annotated[str | None, typer.Option(callback=valid_text, help="Text to guide away from.")]
Steps = Annotated[int, typer.Option(help="From noise to picture.", min=1)]
Many = Annotated[int, typer.Option(help="How many pictures.", min=1, max=1024)]

# Of what trains; None: as the recipe or the run has it.
DATA = "cats_dogs, cifar10, emoji, or a path: IDX, CIFAR-10, a folder"
Data = Annotated[str | None, typer.Argument(help=f"{DATA}. May be left out with --resume.")]
RunFolder = Annotated[Path, typer.Option("--out", help="The run's folder.", **PLACE)]
Size = Annotated[int | None, typer.Option(help="Cut a folder's pictures to this side.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")]
PadCrop = Annotated[int | None, typer.Option(help="Shift pictures by up to so many pixels.")]
NoFlip = Annotated[bool, typer.Option("--no-flip", help="Do not mirror images left to right.")]
InAll = Annotated[int | None, typer.Option("--steps", help="Steps in all, not more.  [default: 2000]")]
Width = Annotated[int | None, typer.Option(help="Channels of the network's first level.")]
Depth = Annotated[int | None, typer.Option(help="Levels of the network, each half the size.")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures a step.  [default: 32]")]
Accumulate = Annotated[int | None, typer.Option(help="Parts of a batch, one at a time.  [default: 1]")]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.  [default: 0.001]")]
Warmup = Annotated[int | None, typer.Option(help="Steps in which it rises.  [default: 50]")]
Decay = Annotated[str | None, typer.Option(help="How it falls: cosine, none.  [default: cosine]")]
EMA = Annotated[float | None, typer.Option("--ema-half-life", help="Of the average, in steps.  [default: 138]")]
OfRun = Annotated[str | None, typer.Option("--backend", help="numba, numpy, cupy or cupy-tf32.  [default: numba]")]
SeedOfRun = Annotated[int | None, typer.Option("--seed", help="Decides weights, order and noise.  [default: 0]")]
Every = Annotated[int, typer.Option("--checkpoint-every", help="Steps between checkpoints.", min=1, metavar="<int>")]
Keep = Annotated[int, typer.Option(help="Checkpoints that stay.", min=1, metavar="<int>")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")]
