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
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance scale; 1 disables it.")
]  # 1, or of a prompt 7.5
Prompt = Annotated[str | None, typer.Option(help="Text to condition on.")]
NegativePrompt = Annotated[str | None, typer.Option(help="Text to guide away from.")]
Steps = Annotated[int, typer.Option(help="From noise to picture.", min=1)]
Many = Annotated[int, typer.Option(help="How many pictures.", min=1, max=1024)]

# Of what trains; None: as the recipe or the run has it.
Data = Annotated[str, typer.Argument(help="cats_dogs, cifar10, emoji, or a path: IDX, CIFAR-10, a folder.")]
RunFolder = Annotated[Path, typer.Option("--out", help="The run's folder.")]
Size = Annotated[int | None, typer.Option(help="Cut a folder's pictures to this side.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")]
PadCrop = Annotated[int | None, typer.Option(help="Shift pictures by up to so many pixels.")]
InAll = Annotated[int | None, typer.Option("--steps", help="Steps in all, not more.  [default: 2000]")]
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
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
