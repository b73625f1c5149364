"""What a report shows of a run: settings, log, checkpoints, sheets, evaluations, and the trajectories of samples."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff.engine.optim import half_life_of
from minidiff.errors import MinidiffError
from minidiff.evaluation.run_images import sheets, trajectory
from minidiff.files import open_json
from minidiff.formats.folders import check_run
from minidiff.formats.run_state import KINDS, RunState, read_newest
from minidiff.terminal import shell_command
from minidiff.training.checkpoints import read_losses
from minidiff.training.command import command_of
from minidiff.training.log import read_lines
from minidiff.training.run import Run
from minidiff.training.state import build_run

# fields of the configuration that one kind of run uses
ONLY_OF = {"kl": "vae", "rank": "lora", "projections": "lora", "own_prior": "lora"}


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    """All that the page shows of the run in a folder, under `name`, as JSON has it.

    Raises MinidiffError for a folder without a run, and for one whose states are all damaged.
    """
    check_run(folder)
    run, state = read_newest(folder, _open)
    command = command_of(run)
    return {
        "name": name,
        "settings": settings(run, state),
        "log": "".join(read_lines(folder / "metrics.csv")),
        "checkpoints": [[step, repr(loss)] for step, loss in read_losses(folder).items()],
        "sheets": sheets(folder),
        "trajectory": trajectory(run),
        "evaluations": list(evaluations(folder)),
        "command": command and shell_command(command),
    }


def _open(state: RunState) -> tuple[Run, RunState]:
    """The run of a state, on the CPU whatever backend it was trained on, and the state."""
    run = build_run(replace(state, config={**state.config, "backend": "numba"}))
    return replace(run, config=replace(run.config, backend=str(state.config["backend"]))), state


def settings(run: Run, state: RunState) -> list[tuple[str, str]]:
    """Name and value of the run's settings, of the size of its network, and of the machine of its last checkpoint."""
    try:
        machine = json.loads(state.metadata["machine"])
    except (KeyError, ValueError):
        machine = {}  # of a run that began before states had it
    found = {
        "trains": KINDS[state.kind],
        "parameters": f"{run.optimizer.p.size:,}",
        "channels": ", ".join(map(str, run.widths)),
        "image size": "x".join(map(str, run.shape)),
        "prediction type": run.objective,
        "steps done": run.step,
        **vars(run.config),
        "ema": f"half-life {half_life_of(run.config.ema):.4g} steps",
        **(machine if isinstance(machine, dict) else {}),
    }
    for name in ONLY_OF:
        if ONLY_OF[name] != state.kind:
            del found[name]
    return [(name.replace("_", " "), _text(value)) for name, value in found.items() if value not in (None, "", ())]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def evaluations(folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of the evaluations in folders of the run, each a row of texts, a column for each set of images."""
    for path in sorted(folder.glob("*/figures.json")):
        try:
            figures = open_json(path).value["figures"]
            sides = {str(side): dict(_flat(values)) for side, values in figures.items()}
        except (MinidiffError, AttributeError, KeyError, TypeError):
            continue  # another program's
        names = dict.fromkeys(name for values in sides.values() for name in values)
        rows = [[name, *(values.get(name, "") for values in sides.values())] for name in names]
        yield {"name": path.parent.name, "columns": list(sides), "rows": rows}


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The numbers in nested dictionaries and lists, with their names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}, ")
        elif isinstance(value, list) and all(isinstance(number, int | float) for number in value):
            yield before + name, " ".join(f"{number:.5g}" for number in value)
        elif isinstance(value, int | float):
            yield before + name, f"{value:.5g}"
