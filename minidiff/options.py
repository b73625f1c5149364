"""Options that several commands have, each said in one place."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Where to write.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Threads of the kernels.  [default: all cores]")]
Backend = Annotated[str, typer.Option(help="numba, numpy, cupy or cupy-tf32.")]
Net = Annotated[Path, typer.Argument(help="A run, or a folder of diffusers: unet/ and scheduler/.")]
Picture = Annotated[Path, typer.Argument(help="Any picture; its centre is taken.")]
Asked = Annotated[str | None, typer.Option("--class", help="What is asked for; or all, class by class.")]
Guidance = Annotated[float, typer.Option(help="How much to insist on it; 1: not.")]
Steps = Annotated[int, typer.Option(help="From noise to picture.", min=1)]
Many = Annotated[int, typer.Option(help="How many pictures.", min=1, max=1024)]
