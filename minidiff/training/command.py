"""The command that starts a run anew: the inverse of start.py, start_text.py and start_tuning.py, for reports."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.optim import half_life_of
from minidiff.errors import MinidiffError
from minidiff.formats.schedulers import schedule_to_config
from minidiff.models.config import ClassifierConfig
from minidiff.models.default_configs import default_text_unet
from minidiff.models.mlp import default_mlp
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.frozen_pipeline_run import FrozenPipelineRun
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.points_run import CHOICES, PointsRun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.kinds.unet_run import DenoiserRun, UNetRun
from minidiff.training.kinds.vae_run import VAERun, default_vae
from minidiff.training.prior import FOLDER
from minidiff.training.recipes import RECIPES, SCHEDULE, Recipe
from minidiff.training.run import Run
from minidiff.training.start import schedule_for
from minidiff.training.start_tuning import CHOICES as TUNING
from minidiff.training.start_tuning import CONSISTENCY, DREAMBOOTH_RATE, LORA, OWN_PRIOR

# Fields of TrainConfig that are options: with a value, and without.
VALUES = (
    "size", "pad_crop", "min_snr", "kl", "steps", "batch_size", "accumulate", "reduction", "optimizer", "lr", "warmup",
    "decay", "backend", "threads", "seed",
)  # fmt: skip
FLAGS = ("skip_bad", "learned_variance", "importance_sampling", "stratified")
ELSEWHERE = ("fingerprint", "classes", "flip", "ema", "further_emas")  # from the dataset, or from another option
# Fields that the options of minidiff tune choose, or its dataset.
OF_TUNING = (
    "rank", "word", "initial_word", "steps", "batch_size", "accumulate", "lr", "backend", "threads", "seed", "skip_bad",
    "fingerprint",
)  # fmt: skip
OF_DISTILL = ("steps", "accumulate", "lr", "backend", "threads", "seed")  # the options of minidiff distill


@dataclass(frozen=True)
class Start:
    """What a command without further options starts: network, schedule and the fields of TrainConfig that it sets.

    network  None: that of the pipeline which the command begins from, with its schedule
    command  its name, and what comes before the dataset
    fields   those of TrainConfig that its options or its dataset choose
    """

    options: list[str]
    network: Any
    schedule: Any = None
    choices: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ("train",)
    fields: tuple[str, ...] = (*VALUES, *FLAGS, *ELSEWHERE)


def command_of(run: Run, out: str = "RUN") -> list[str] | None:
    """The command that starts a run as this one was started, into the folder `out`.

    The folders of --latent, --text-encoder and --prior are the run's own copies. None if no command starts such a run:
    of a network or settings that a program chose, or from a pipeline that is no longer there.
    """
    for start in _starts(run):
        default = TrainConfig(run.config.data, **start.choices)
        chosen = {name: getattr(run.config, name) for name in start.fields}
        if _same(start, run) and replace(default, **chosen) == run.config:
            options = _options(run, default, start.fields)
            return ["minidiff", *start.command, run.config.data, "--out", out, *start.options, *options]
    return None


def _starts(run: Run) -> Iterator[Start]:
    """What commands can start of the run's kind, for its data, with its network's width and depth."""
    if run.config.consistency:
        yield from _distill_starts(run.config)
    elif isinstance(run, UNetRun):
        yield from filter(None, (_unet_start(run, name) for name in (None, *RECIPES)))
    elif isinstance(run, PointsRun):
        classes = len(run.config.classes) + 1 if run.config.classes else None
        network, sizes = _sized(run, lambda **sizes: default_mlp(run.shape, num_class_embeds=classes, **sizes))
        options = sizes + _by_class(run) + _objective(run, SCHEDULE)
        yield Start(options, network, schedule_for(run.objective, SCHEDULE), CHOICES | {"flip": False})
    elif isinstance(run, FrozenPipelineRun) or (isinstance(run, TextRun) and run.config.begun_from):
        yield from _tuning_starts(run)
    elif isinstance(run, TextRun):
        pipeline = run.pipeline
        context = pipeline.text_encoder.config.hidden_size
        network, sizes = _sized(run, lambda **sizes: default_text_unet(pipeline.unet.image_shape, context, **sizes))
        parts = {"--latent": "vae", "--text-encoder": "text_encoder"}
        copies = [word for option, part in parts.items() if part in run.frozen for word in (option, str(run.folder))]
        options = ["--text", *copies, *sizes, *_objective(run, SCHEDULE)]
        yield Start(options, network, schedule_for(run.objective, SCHEDULE))
    elif isinstance(run, VAERun):
        network, sizes = _sized(run, lambda **sizes: default_vae(run.shape, **sizes))
        yield Start(sizes, network, command=("train-vae",))
    elif isinstance(run, ClassifierRun):
        H, W, C = run.shape
        network = ClassifierConfig(C, H if H == W else (H, W), run.config.classes)
        yield Start([], network, command=("train-classifier",))


def _tuning_starts(run: TextRun) -> Iterator[Start]:
    """What `minidiff tune` can start of the run's kind, from its pipeline; nothing if that is no longer there."""
    config = run.config
    base = run.pipeline.folder.absolute() if isinstance(run, FrozenPipelineRun) else Path(config.begun_from)
    if not base.exists():
        return
    given = (run.folder / FOLDER).is_dir()  # images of a prior
    options = ["--prior", str(run.folder / FOLDER)] if given else []
    choices = TUNING | {"size": config.size, "flip": config.flip}  # of the pipeline's images, and of the dataset
    if isinstance(run, LoRARun):
        choices |= LORA | {"prior_weight": 1.0 if given else OWN_PRIOR, "own_prior": not given}
        if config.prior_weight is None:
            choices |= {"prior_weight": None, "own_prior": False}
            options += ["--prior-weight", "0"]
    elif isinstance(run, TextualInversionRun):
        choices |= {"lr": config.lr}  # by default from the embeddings' scale
        options += ["--method", "textual-inversion", "--lr", str(config.lr)]
    else:
        choices |= {"lr": DREAMBOOTH_RATE, "prior_weight": 1.0 if given else None, "begun_from": config.begun_from}
        options += ["--method", "dreambooth"]
    fields = (*OF_TUNING, "prior_weight") if choices.get("prior_weight") else OF_TUNING
    yield Start(options, None, None, choices, ("tune", str(base)), fields)


def _distill_starts(config: TrainConfig) -> Iterator[Start]:
    """What `minidiff distill` starts from the run's model; nothing if that is no longer there.

    Settings without an option are those of that model, and so is --batch-size by default: it is given always.
    """
    if config.begun_from and Path(config.begun_from).exists():
        chosen = {"data", *OF_DISTILL}
        kept = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in chosen}
        options = ["--batch-size", str(config.batch_size)]
        yield Start(options, None, None, kept | CONSISTENCY, ("distill", config.begun_from), OF_DISTILL)


def _same(start: Start, run: Any) -> bool:
    """Whether the run's network and schedule are those of the start."""
    if start.network is None:
        return True
    if isinstance(run, VAERun | ClassifierRun):
        return start.network == (run.vae if isinstance(run, VAERun) else run.classifier).config
    parts = run.pipeline if isinstance(run, TextRun) else run
    network = run.network if isinstance(run, DenoiserRun) else parts.unet
    return start.network == network.config and schedule_to_config(start.schedule) == schedule_to_config(parts.schedule)


def _unet_start(run: UNetRun, name: str | None) -> Start | None:
    """The start of a U-Net by a recipe, None: the default one. None if the recipe is not for such images."""
    recipe = RECIPES[name] if name else Recipe()
    embeds = len(run.config.classes) + 1 if run.config.classes else None
    try:
        if name:
            network, sizes = recipe.network(run.shape, embeds), []
        else:
            network, sizes = _sized(run, lambda **sizes: recipe.network(run.shape, embeds, **sizes))
    except MinidiffError:
        return None
    if run.config.learned_variance:
        network = replace(network, out_channels=2 * network.out_channels)
    options = (["--recipe", name] if name else sizes) + ([] if recipe.by_class else _by_class(run))
    schedule = schedule_for(run.objective, recipe.schedule)
    return Start(options + _objective(run, recipe.schedule), network, schedule, recipe.choices)


def _sized(run: Run, network: Callable[..., Any]) -> tuple[Any, list[str]]:
    """The default network of the run's width and depth, and the options that choose these."""
    width, depth = run.widths[0], len(run.widths)
    if network(width=width, depth=depth) == network():
        return network(), []
    for sizes in ({"width": width}, {"depth": depth}, {"width": width, "depth": depth}):
        if (sized := network(**sizes)) == network(width=width, depth=depth):
            break
    return sized, [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def _by_class(run: Run) -> list[str]:
    return ["--by-class"] if run.config.classes else []


def _objective(run: Run, schedule: AnySchedule) -> list[str]:
    return [] if run.objective == schedule.prediction_type else ["--objective", str(run.objective)]


def _options(run: Run, default: TrainConfig, fields: tuple[str, ...]) -> list[str]:
    """The options that change these fields of `default` into the run's; --threads is always given."""
    config, options = run.config, []
    for name in (name for name in fields if name not in (*FLAGS, *ELSEWHERE)):
        if (value := getattr(config, name)) != getattr(default, name) or name == "threads":
            options += [f"--{name.replace('_', '-')}", str(value)]
    options += [f"--{name.replace('_', '-')}" for name in FLAGS if getattr(config, name)]
    if default.flip and not config.flip:
        options.append("--no-flip")
    if (config.ema, config.further_emas) != (default.ema, default.further_emas):
        half_lives = [half_life_of(config.ema), *config.further_emas]
        options += ["--ema-half-life", ",".join(f"{steps:.12g}" for steps in half_lives)]
    return options
