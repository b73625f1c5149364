"""How a run is resumed: what its folder remembers decides, and what is given on the command line must agree."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff import machine
from minidiff.data import BUILT_IN, Dataset
from minidiff.errors import MinidiffError
from minidiff.formats.run_networks import digests
from minidiff.training import recipes, state
from minidiff.training.config import TrainConfig
from minidiff.training.run import Run
from minidiff.training.start import known_by, open_data, place_of
from minidiff.training.start_text import autoencoder_of, check_captions, text_encoder_of
from minidiff.training.text_run import TextRun
from minidiff.training.unet_run import UNetRun

MAY_CHANGE = ("steps", "skip_bad")


def resume(
    out: Path, data: str | None, given: dict[str, Any], threads: int | None, kind: type[Run] = Run
) -> tuple[Run, Dataset]:
    """The run of a folder at its last checkpoint, and its training set.

    data   where the training set lies, None for where it lay before
    given  options of `train` or `train-vae` -> values; steps and skip_bad may change, all others must be the run's
    kind   of the run; Run: whichever it is

    Raises MinidiffError for a run of another kind, an option that differs from the run's, and another dataset.
    """
    run = state.open_run(out, kind)
    _check_given(run, given)
    data = _data_of(run, data)
    threads = min(run.config.threads, machine.cores()) if threads is None else threads
    threads = machine.use_threads(threads, run.config.backend)
    changes = {name: given[name] for name in MAY_CHANGE if name in given}
    config = replace(run.config, data=place_of(data), threads=threads, **changes)
    if config.steps < run.step:
        raise MinidiffError(f"{out}: is at step {run.step} already, beyond --steps {config.steps}; give more")
    dataset, pictures = _same_data(run, data, config)
    run = replace(run, config=replace(config, pictures=pictures))
    state.roll_back(run)
    return run, dataset


def _check_given(run: Run, given: dict[str, Any]) -> None:
    """Raises MinidiffError, with both values, for an option that is not as the run was started with."""
    out, given = run.folder, dict(given)
    if (recipe := given.pop("recipe", None)) is not None:
        choices = recipes.find(recipe).choices
        if not isinstance(run, UNetRun):
            raise MinidiffError(f"{out}: {_differs('recipe', None, recipe)}")
        given = {name: value for name, value in choices.items() if name != "steps"} | given
    for option in ("latent", "text_encoder"):
        if (folder := given.pop(option, None)) is not None:
            _check_part(run, option, folder)
    for name, value in given.items():
        if name not in MAY_CHANGE and value != (was := _was(run, name)):
            raise MinidiffError(f"{out}: {_differs(name, was, value)}")


def _was(run: Run, name: str) -> Any:
    """The value of an option that the run was started with; None or False: without it."""
    if name == "text":
        return isinstance(run, TextRun)
    if name == "by_class":
        return bool(run.config.classes)
    if name == "objective":
        return run.objective
    if name in ("width", "depth"):
        return run.widths[0] if name == "width" else len(run.widths)
    return getattr(run.config, name)


def _check_part(run: Run, option: str, folder: Path) -> None:
    """Raises MinidiffError if the part of that folder is not the one of which the run holds a copy."""
    part = {"latent": "vae", "text_encoder": "text_encoder"}[option]
    if not isinstance(run, TextRun) or part not in run.frozen:
        raise MinidiffError(f"{run.folder}: {_differs(option, None, folder)}")
    vae, tokenizer, encoder = run.pipeline.vae, run.pipeline.tokenizer, run.pipeline.text_encoder
    if part == "vae":
        vae = autoencoder_of(folder, run.config.backend)
    else:
        tokenizer, encoder = text_encoder_of(folder, run.config.backend)
    found = digests(tokenizer, vae, encoder)
    if any(found[name] != digest for name, digest in run.frozen.items()):
        raise MinidiffError(f"{run.folder}: {_differs(option, run.folder / part, folder)}")


def _differs(name: str, was: Any, value: Any) -> str:
    """How an option of the command line was chosen, not as now, and the remedy."""
    option = "--no-flip" if name == "flip" else f"--{name.replace('_', '-')}"
    if name == "flip":
        was = None  # --no-flip can only be given
    if name == "ema":
        option, was, value = "--ema-half-life", *(f"{math.log(0.5) / math.log(decay):g}" for decay in (was, value))
    chosen = f"without {option}" if was is None or was is False else f"with {option} {was}, not {value}"
    return f"was started {chosen}; leave it out, or start a new run"


def _data_of(run: Run, data: str | None) -> str:
    """Where the training set lies. Raises MinidiffError if it is to be told, or may not be the run's."""
    before, out = run.config.data, run.folder
    if data is None:
        if before not in BUILT_IN and not os.path.exists(before):
            raise MinidiffError(f"{out}: its data were at {before}, and are not there; give DATA, where they are now")
        return before
    # one that is known by its images may lie anywhere; older runs go by the path, as built-in sets do by their names
    same = data not in BUILT_IN if run.config.pictures else place_of(data) == place_of(before)
    if not same:
        raise MinidiffError(f"{out}: was started with {before}, not {data}; give that, or start a new run")
    return data


def _same_data(run: Run, data: str, config: TrainConfig) -> tuple[Dataset, str]:
    """The training set and its fingerprint. Raises MinidiffError if it is not the run's."""
    left_out: list[MinidiffError] = []
    dataset = open_data(data, config.size, config.skip_bad, left_out)
    if dataset.shape != run.shape:
        raise MinidiffError(f"{data}: its pictures are not the run's, {run.shape} before; start a new run")
    pictures = known_by(data, dataset)
    if config.pictures not in ("", pictures) and not left_out:  # what is left of a set is another one
        raise MinidiffError(f"{data}: is not the set that {run.folder} was started with; give that, or start a new run")
    if config.classes and dataset.classes != config.classes:
        raise MinidiffError(f"{data}: its classes are not the run's, {', '.join(config.classes)}; start a new run")
    if isinstance(run, TextRun):
        check_captions(data, dataset)
    return dataset, pictures
