"""Options and arguments that several commands share."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from minidiff.cli.tensorboard import needs_tensorboard
from minidiff.errors import MinidiffError

T = TypeVar("T", str, list[str], None)


def not_empty(value: Any) -> Any:
    """The value of an option that takes a path. Raises BadParameter if it is empty: pathlib reads "" as "."."""
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


def with_precision(backend: str, precision: str) -> Any:
    """The backend of --backend and --precision. Raises MinidiffError if they do not go together."""
    if precision == "float32":
        return backend
    if backend != "numba":
        raise MinidiffError(f"--precision {precision} is for --backend numba: leave out one of them")
    return f"numba-{precision}"


PLACE: Any = dict(parser=_path, metavar="<path>")  # of an option for an output path

# Choices, as in the packages; a test compares them.
BackendName = Literal["numba", "numpy", "cupy", "cupy-tf32"]
PrecisionName = Literal["float32", "bf16"]  # bf16 is the backend numba-bf16
SamplerName = Literal[
    "ddpm", "ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc",
    "euler_maruyama", "consistency",
]  # fmt: skip
SpacingName = Literal["trailing", "leading", "linspace"]
NoiseSource = Literal["numpy", "torch"]
RecipeName = Literal["small-cpu", "small-gpu", "ddpm"]
PredictionType = Literal["epsilon", "sample", "v_prediction", "edm", "flow"]
DecayName = Literal["cosine", "none"]

Out = Annotated[Path, typer.Option(help="Output image.", **PLACE)]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads.  [default: all cores]")]
Backend = Annotated[BackendName, typer.Option(help="Compute backend.")]
Precision = Annotated[PrecisionName, typer.Option(help="Precision of the products; bf16 is faster on newer CPUs.")]
ModelFolder = Annotated[Path, typer.Argument(help="A run, a diffusers folder, or a Stable Diffusion file.")]
InputImage = Annotated[
    Path, typer.Argument(help="Input image; centre-cropped to the model's aspect ratio and resized.")
]
ClassName = Annotated[
    str | None, typer.Option("--class", callback=valid_text, help="Class name.  [default: all, class after class]")
]
RowClass = Annotated[
    str | None,
    typer.Option("--class", callback=valid_text, help="Class name, or all, class after class.  [default: the first]"),
]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 disables it.")]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance scale; 1 disables it.")
]  # None: 1, or with a prompt 7.5
Prompt = Annotated[
    str | None, typer.Option(callback=valid_text, help="Text to condition on, with weights such as (word:1.2).")
]
NegativePrompt = Annotated[str | None, typer.Option(callback=valid_text, help="Text to guide away from.")]
LoRAs = Annotated[
    list[str] | None,
    typer.Option(
        callback=valid_text, metavar="<path[:weight]>", help="A LoRA: folder or file, and its weight; may be repeated."
    ),
]
Embeddings = Annotated[
    list[Path] | None, typer.Option(help="A word of textual inversion: its folder or file; may be repeated.", **PLACE)
]
Steps = Annotated[int, typer.Option(help="Number of sampling steps.", min=1)]
NumImages = Annotated[int, typer.Option(help="Number of images.", min=1, max=1024)]
Karras = Annotated[bool, typer.Option("--karras", help="Use the sigmas of Karras et al. 2022.")]
Raw = Annotated[bool, typer.Option("--raw", help="Use the last step's weights instead of their EMA.")]
Best = Annotated[bool, typer.Option("--best", help="Use the checkpoint of lowest validation loss.")]

EMA = Annotated[float | None, typer.Option("--ema", help="Use the moving average (EMA) of this half-life, in steps.")]

# Of training commands; None: the default of the recipe, or the run's own value.
DATA = "cats_dogs, cifar10, emoji, line, two_clusters, two_moons, swiss_roll, or a path: IDX, CIFAR-10, a folder"
Data = Annotated[str | None, typer.Argument(help=f"{DATA}. Optional with --resume.")]
RunFolder = Annotated[Path, typer.Option("--out", help="The run's folder.", **PLACE)]
Size = Annotated[int | None, typer.Option(help="Crop and resize a folder's images to this size.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip images that cannot be read.")]
PadCrop = Annotated[int | None, typer.Option(help="Augment by random shifts of up to this many pixels.")]
NoFlip = Annotated[bool, typer.Option("--no-flip", help="Disable horizontal flips.")]
TotalSteps = Annotated[int | None, typer.Option("--steps", help="Total number of training steps.  [default: 2000]")]
Width = Annotated[int | None, typer.Option(help="Channels of the first resolution level.")]
Depth = Annotated[int | None, typer.Option(help="Number of resolution levels.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.  [default: 32]")]
Accumulate = Annotated[
    int | None,
    typer.Option(help="Parts of each batch, to save memory or for N processes.  [default: 1, or processes]"),
]
ReductionName = Literal["exact", "mpi"]
Reduction = Annotated[
    ReductionName | None,
    typer.Option(help="Sum of gradients over processes: in fixed order, or by MPI.  [default: exact]"),
]
OptimizerName = Literal["adamw", "muon"]
Optimizer = Annotated[
    OptimizerName | None,
    typer.Option(help="muon: for the hidden layers' weight matrices, with AdamW for the rest.  [default: adamw]"),
]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.  [default: 0.001]")]
Warmup = Annotated[int | None, typer.Option(help="Steps of linear learning rate warmup.  [default: 50]")]
Decay = Annotated[DecayName | None, typer.Option(help="Learning rate decay.  [default: cosine]")]
EMAHalfLife = Annotated[
    str | None,
    typer.Option(
        help="Half-life of the weights' moving average (EMA), in steps, or several.  [default: 138]",
        metavar="<float,...>",
    ),
]
TrainingBackend = Annotated[BackendName | None, typer.Option("--backend", help="Compute backend.  [default: numba]")]
TrainingSeed = Annotated[int | None, typer.Option("--seed", help="Random seed.  [default: 0]")]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints.", min=1, metavar="<int>")]
Keep = Annotated[int, typer.Option(help="Number of checkpoints to keep.", min=1, metavar="<int>")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", callback=needs_tensorboard, help="Write event files for TensorBoard, too."),
]
