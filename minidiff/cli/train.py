"""The commands that train: a diffusion model, an autoencoder for latent diffusion, a classifier for guidance."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from minidiff import ranks
from minidiff.cli import options
from minidiff.cli.training_bar import CHECKPOINT_EVERY, KEEP, train_with_bar
from minidiff.data import POINTS, Dataset
from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffError
from minidiff.formats.averages import RANGE, in_range
from minidiff.formats.run_lock import lock_run
from minidiff.terminal import console, shell_command
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.kinds.vae_run import VAERun
from minidiff.training.resume import resume as resumed
from minidiff.training.run import Run
from minidiff.training.start import start_classifier, start_points, start_run, start_vae, validation_set
from minidiff.training.start_text import start_text


def train(
    out: options.RunFolder,
    data: options.Data = None,
    recipe: Annotated[options.RecipeName | None, typer.Option(help="Network and hyperparameters; see above.")] = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
    no_flip: options.NoFlip = False,
    by_class: Annotated[bool, typer.Option("--by-class", help="Condition the model on class labels.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Condition the model on captions.")] = False,
    latent: Annotated[
        Path | None, typer.Option(help="Latent diffusion: the run of train-vae whose latents are modelled.")
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder with a CLIP text encoder to use, frozen, in place of a new one.")
    ] = None,
    objective: Annotated[
        options.PredictionType | None,
        typer.Option(
            help="Prediction type: epsilon, sample, v_prediction, edm or flow.  [default: v_prediction]",
            metavar="<type>",
        ),
    ] = None,
    min_snr: Annotated[float | None, typer.Option(help="Gamma of the min-SNR loss weighting, such as 5.")] = None,
    learned_variance: Annotated[
        bool, typer.Option("--learned-variance", help="Predict the reverse variance too, in twice as many channels.")
    ] = False,
    importance_sampling: Annotated[
        bool, typer.Option("--importance-sampling", help="Draw timesteps by the size of their losses.")
    ] = False,
    stratified: Annotated[
        bool, typer.Option("--stratified", help="Draw each batch's timesteps evenly spread over their distribution.")
    ] = False,
    width: options.Width = None,
    depth: options.Depth = None,
    steps: options.TotalSteps = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    reduction: options.Reduction = None,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    warmup: options.Warmup = None,
    decay: options.Decay = None,
    ema_half_life: options.EMAHalfLife = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    tensorboard: options.TensorBoard = False,
    resume: options.Resume = False,
) -> None:
    """Train a diffusion model.

    --out holds the weights in diffusers' format, metrics.csv, loss.png, and for every checkpoint a grid of samples and
    a validation loss (checkpoints.csv).

    A recipe sets the network, the schedule and the hyperparameters in place of the defaults below. Other options
    override hyperparameters and prediction type; --width, --depth and --text do not go with a recipe. small-cpu:
    class-conditional, 79 minutes for CIFAR-10 on two cores; small-gpu: class-conditional, 9 million parameters;
    ddpm: as in Ho et al. 2020.

    Prediction types: epsilon (noise), sample (x0), v_prediction, edm (preconditioning and loss weights of Karras et
    al. 2022) and flow (velocity of flow matching). --learned-variance and --importance-sampling (Nichol & Dhariwal
    2021) are for epsilon.

    With --text the run also trains a tokenizer and a text encoder, unless --text-encoder gives one. The diffusion
    is over pixels, or with --latent over the latents of an autoencoder; diffusers' StableDiffusionPipeline opens
    the latter.

    line (1-D), two_clusters, two_moons and swiss_roll are datasets of points: the network is an MLP, --width its hidden
    channels (128), --depth its hidden layers (4), and the samples are figures. The other defaults:
    --steps 1500, --batch-size 256, --lr 0.004, --warmup 100, --threads 1, --backend numpy. Options for
    images are refused.
    """
    given = given_options(
        recipe=recipe, size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, flip=False if no_flip else None,
        objective=objective, min_snr=min_snr, learned_variance=learned_variance or None,
        importance_sampling=importance_sampling or None, stratified=stratified or None, width=width, depth=depth,
        steps=steps, batch_size=batch_size, accumulate=accumulate, reduction=reduction, optimizer=optimizer, lr=lr,
        warmup=warmup, decay=decay, **_emas(ema_half_life), backend=backend, seed=seed,
    )  # fmt: skip
    of_kind = given_options(by_class=by_class or None, text=text or None, latent=latent, text_encoder=text_encoder)
    if not resume:
        _check_text_options(text, by_class, recipe, latent, text_encoder)
        _check_no_ddpm_options(text, given)
    with lock_run(out):
        if resume:
            run, dataset = resumed(out, data, given | of_kind, threads)
        elif text:
            run, dataset = start_text(out, required_data(out, data), given, latent, text_encoder, threads)
        elif data in POINTS:
            run, dataset = start_points(out, data, given, by_class, threads)
        else:
            run, dataset = start_run(out, required_data(out, data), given, by_class, threads)
        train_to_end(run, dataset, checkpoint_every, keep, tensorboard)


def train_vae(
    out: options.RunFolder,
    data: options.Data = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
    no_flip: options.NoFlip = False,
    kl: Annotated[float | None, typer.Option(help="Weight of the KL term in the loss.  [default: 0.0001]")] = None,
    width: options.Width = None,
    depth: options.Depth = None,
    steps: options.TotalSteps = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    reduction: options.Reduction = None,
    lr: options.LearningRate = None,
    warmup: options.Warmup = None,
    decay: options.Decay = None,
    ema_half_life: options.EMAHalfLife = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    tensorboard: options.TensorBoard = False,
    resume: options.Resume = False,
) -> None:
    """Train a variational autoencoder (VAE) for latent diffusion.

    By default the latents have a quarter of the image's height and width, or half where one of them is no multiple
    of 4; each level of --depth beyond the first downsamples by 2.

    The loss is the mean squared error of the reconstruction plus --kl times the KL divergence of the latents from
    N(0, I), both as means over their elements. --out holds vae/, which diffusers' AutoencoderKL opens, metrics.csv,
    loss.png, and for every checkpoint a grid of images beside their reconstructions and a validation loss
    (checkpoints.csv).
    """
    given = given_options(
        size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, flip=False if no_flip else None, kl=kl, width=width,
        depth=depth, steps=steps, batch_size=batch_size, accumulate=accumulate, reduction=reduction, lr=lr,
        warmup=warmup, decay=decay, **_emas(ema_half_life), backend=backend, seed=seed,
    )  # fmt: skip
    with lock_run(out):
        if resume:
            run, dataset = resumed(out, data, given, threads, VAERun)
        else:
            run, dataset = start_vae(out, required_data(out, data), given, threads)
        train_to_end(run, dataset, checkpoint_every, keep, tensorboard)


def train_classifier(
    out: options.RunFolder,
    data: options.Data = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    no_flip: options.NoFlip = False,
    steps: options.TotalSteps = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    tensorboard: options.TensorBoard = False,
    resume: options.Resume = False,
) -> None:
    """Train a classifier of noisy images, for classifier guidance: minidiff sample --classifier.

    It learns the classes of DATA at every noise level, and guides unconditional models of images of the same size,
    whatever their schedule and prediction type. --out holds classifier/, metrics.csv, loss.png, and for every
    checkpoint a grid of noisy images with their most probable classes, and a validation loss (checkpoints.csv).
    """
    given = given_options(
        size=size, skip_bad=skip_bad or None, flip=False if no_flip else None, steps=steps, batch_size=batch_size,
        lr=lr, backend=backend, seed=seed,
    )  # fmt: skip
    with lock_run(out):
        if resume:
            run, dataset = resumed(out, data, given, threads, ClassifierRun)
        else:
            run, dataset = start_classifier(out, required_data(out, data), given, threads)
        train_to_end(run, dataset, checkpoint_every, keep, tensorboard)


def given_options(**choices: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in choices.items() if value is not None}


def required_data(out: Path, data: str | None) -> str:
    """DATA, which a new run needs. Raises MinidiffError if it was not given."""
    if data is None:
        raise MinidiffError(f"DATA is missing: give {options.DATA}; or --resume, to resume the run in {out}")
    return data


def _check_text_options(text: bool, by_class: bool, recipe: Any, latent: Any, text_encoder: Any) -> None:
    """Raises MinidiffError for combinations of options that --text excludes or requires."""
    if text and (by_class or recipe):
        raise MinidiffError(f"{'--by-class' if by_class else '--recipe'} does not go with --text: leave it out")
    for option, value in (("--latent", latent), ("--text-encoder", text_encoder)):
        if value is not None and not text:
            raise MinidiffError(f"{option} needs --text: add it, or leave {option} out")


def _check_no_ddpm_options(text: bool, given: dict[str, Any]) -> None:
    """Raises MinidiffError for an option of improved DDPM in `given`, which --text excludes."""
    for name in ("learned_variance", "importance_sampling"):
        if text and name in given:
            raise MinidiffError(f"--{name.replace('_', '-')} does not go with --text: leave it out")


def train_to_end(run: Run, dataset: Dataset, checkpoint_every: int, keep: int, tensorboard: bool = False) -> None:
    """Train up to the run's total of steps, if any are left; print the command that samples the result."""
    if run.step == run.config.steps:
        console.print(f"{run.folder}: all {run.step} steps are done already; to continue, give a larger --steps")
        return
    launcher = ["mpiexec", "-n", str(ranks.size())] if ranks.size() > 1 else []
    resume_command = [*launcher, "minidiff", "train", "--out", str(run.folder), "--resume"]
    if checkpoint_every != CHECKPOINT_EVERY:
        resume_command += ["--checkpoint-every", str(checkpoint_every)]
    if keep != KEEP:
        resume_command += ["--keep", str(keep)]
    if tensorboard:
        resume_command.append("--tensorboard")
    train_with_bar(run, dataset, checkpoint_every, resume_command, keep, validation_set(run, dataset), tensorboard)
    console.print(f"Done: step {run.step}. {_result(run, dataset)}")


def _result(run: Run, dataset: Dataset) -> str:
    """The command that samples a run, or the folder of an autoencoder or classifier."""
    if isinstance(run, VAERun):
        return f"The autoencoder: {run.folder / 'vae'}"
    if isinstance(run, ClassifierRun):
        return f"The classifier: {run.folder / 'classifier'}"
    if isinstance(run, LoRARun):
        model = ["minidiff", "sample", str(run.pipeline.folder), "--lora", str(run.folder)]
        return f"To sample: {shell_command([*model, '--prompt', dataset.captions[0]])}"
    if isinstance(run, TextualInversionRun):
        model = ["minidiff", "sample", str(run.pipeline.folder), "--embedding", str(run.folder)]
        return f"To sample: {shell_command([*model, '--prompt', dataset.captions[0]])}"
    prompt = ["--prompt", dataset.captions[0]] if isinstance(run, TextRun) else []
    return f"To sample: {shell_command(['minidiff', 'sample', str(run.folder), *prompt])}"


def _emas(half_lives: str | None) -> dict[str, Any]:
    """The moving averages of --ema-half-life as fields of TrainConfig.

    Raises MinidiffError for what is not a list of numbers in range.
    """
    if half_lives is None:
        return {}
    try:
        first, *others = (float(steps) for steps in half_lives.split(","))
    except ValueError:
        first, *others = (math.nan,)
    if not all(map(in_range, (first, *others))):
        raise MinidiffError(f"--ema-half-life {half_lives:.80}: give {RANGE}, or several with commas")
    return {"ema": half_life(first), "further_emas": tuple(others)}
