"""Resuming a run: its state decides, and options of the command line must agree with it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff import machine
from minidiff.data import BUILT_IN, Dataset
from minidiff.engine.optim import half_life_of
from minidiff.errors import MinidiffError
from minidiff.formats.run_networks import digests
from minidiff.training import recipes, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.parallel.agreement import check_inputs
from minidiff.training.run import Run
from minidiff.training.start import absolute_path, data_fingerprint, open_data
from minidiff.training.start_text import check_captions, open_autoencoder, open_text_encoder

MAY_CHANGE = ("steps", "skip_bad")


def resume(
    out: Path, data: str | None, given: dict[str, Any], threads: int | None, kind: type[Run] = Run
) -> tuple[Run, Dataset]:
    """The run of a folder at its last checkpoint, and its training set.

    data   path of the training set; None: the path in the run's configuration
    given  options of the command that trains -> values; steps and skip_bad may change, all others must be the run's
    kind   the class of the run; Run: any

    Raises MinidiffError for a run of another kind, an option that differs from the run's, and another dataset.
    """
    run = state.open_run(out, kind)
    _check_given(run, given)
    data = _data_path(run, data)
    own = machine.use_threads(threads, run.config.backend)
    threads = min(run.config.threads, own) if threads is None else threads
    threads = machine.use_threads(threads, run.config.backend)
    changes = {name: given[name] for name in MAY_CHANGE if name in given}
    config = replace(run.config, data=absolute_path(data), threads=threads, **changes)
    if config.steps < run.step:
        raise MinidiffError(f"{out}: is at step {run.step} already, beyond --steps {config.steps}; give more")
    dataset, fingerprint = _open_run_data(run, data, config)
    run = replace(run, config=replace(config, fingerprint=fingerprint))
    check_inputs(run.config)
    state.roll_back(run)
    return run, dataset


def _check_given(run: Run, given: dict[str, Any]) -> None:
    """Raises MinidiffError, with both values, for an option that differs from the run's."""
    out, given = run.folder, dict(given)
    further = given.pop("further_emas", run.config.further_emas)
    if (recipe := given.pop("recipe", None)) is not None:
        choices = recipes.find(recipe).choices
        if not isinstance(run, UNetRun):
            raise MinidiffError(f"{out}: {_difference('recipe', None, recipe)}")
        given = {name: value for name, value in choices.items() if name != "steps"} | given
    if "ema" in given:
        given["ema"] = (given["ema"], *further)
    for option in ("latent", "text_encoder"):
        if (folder := given.pop(option, None)) is not None:
            _check_part(run, option, folder)
    for name, value in given.items():
        if name not in MAY_CHANGE and value != (was := _started_with(run, name)):
            raise MinidiffError(f"{out}: {_difference(name, was, value)}")


def _started_with(run: Run, name: str) -> Any:
    """The value of an option when the run was started; None or False: it was not given."""
    if name == "text":
        return isinstance(run, TextRun)
    if name == "by_class":
        return bool(run.config.classes)
    if name == "objective":
        return run.objective
    if name in ("width", "depth"):
        return run.widths[0] if name == "width" else len(run.widths)
    if name == "ema":
        return (run.config.ema, *run.config.further_emas)
    return getattr(run.config, name)


def _check_part(run: Run, option: str, folder: Path) -> None:
    """Raises MinidiffError if the frozen part in that folder differs from the run's copy."""
    part = {"latent": "vae", "text_encoder": "text_encoder"}[option]
    if not isinstance(run, TextRun) or part not in run.frozen:
        raise MinidiffError(f"{run.folder}: {_difference(option, None, folder)}")
    vae, tokenizer, encoder = run.pipeline.vae, run.pipeline.tokenizer, run.pipeline.text_encoder
    if part == "vae":
        vae = open_autoencoder(folder, run.config.backend)
    else:
        tokenizer, encoder = open_text_encoder(folder, run.config.backend)
    found = digests(tokenizer, vae, encoder)
    if any(found[name] != digest for name, digest in run.frozen.items()):
        raise MinidiffError(f"{run.folder}: {_difference(option, run.folder / part, folder)}")


def _difference(name: str, was: Any, value: Any) -> str:
    """The error of an option that differs from the run's: its value at the start, and the remedy."""
    option = "--no-flip" if name == "flip" else f"--{name.replace('_', '-')}"
    if name == "flip":
        was = None  # --no-flip can only be given
    if name == "ema":
        option, was, value = "--ema-half-life", _half_lives(*was), _half_lives(*value)
    chosen = f"without {option}" if was is None or was is False else f"with {option} {was}, not {value}"
    return f"was started {chosen}; leave it out, or start a new run"


def _half_lives(decay: float, *further: float) -> str:
    """The averages of a configuration as --ema-half-life takes them: its ema and its further_emas."""
    return ",".join(f"{steps:g}" for steps in (half_life_of(decay), *further))


def _data_path(run: Run, data: str | None) -> str:
    """The path of the training set. Raises MinidiffError if it has moved and is not given, or is not the run's."""
    before, out = run.config.data, run.folder
    if data is None:
        if before not in BUILT_IN and not os.path.exists(before):
            raise MinidiffError(f"{out}: its dataset is no longer at {before}; give its path as DATA")
        return before
    # a dataset with a fingerprint may have moved; older runs have none, and built-in datasets go by name
    same = data not in BUILT_IN if run.config.fingerprint else absolute_path(data) == absolute_path(before)
    if not same:
        raise MinidiffError(f"{out}: was started with {before}, not {data}; give that, or start a new run")
    return data


def _open_run_data(run: Run, data: str, config: TrainConfig) -> tuple[Dataset, str]:
    """The training set and its fingerprint. Raises MinidiffError if it is not the run's."""
    left_out: list[MinidiffError] = []
    dataset = open_data(data, config.size, config.skip_bad, left_out)
    if dataset.shape != run.shape:
        raise MinidiffError(f"{data}: its images have shape {dataset.shape}, the run's {run.shape}; start a new run")
    fingerprint = data_fingerprint(data, dataset)
    # skipped images change the fingerprint, so it is not compared then
    if config.fingerprint not in ("", fingerprint) and not left_out:
        raise MinidiffError(f"{data}: is not the dataset of {run.folder}; give the one it was started with")
    if config.classes and dataset.classes != config.classes:
        raise MinidiffError(f"{data}: its classes are not the run's, {', '.join(config.classes)}; start a new run")
    if isinstance(run, TextRun):
        check_captions(data, dataset)
    return dataset, fingerprint
