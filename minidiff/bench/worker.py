"""A rival in a process of its own: it runs when it is asked to, and sleeps while the others run.

    python -m minidiff.bench.worker MODULE MODE THREADS FOLDER

MODULE has set_up(threads) and prepare(mode, op, inputs, settings), as rival.py. FOLDER holds inputs.npz and case.json;
the results of the first run are written to results.npz there. The first line on stdout says that all is prepared; each
line on stdin asks for a run, and each further line on stdout says that one is done.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.models.config import TextUNetConfig, UNetConfig


@contextmanager
def started(
    module: str, mode: str, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any], threads: int
) -> Iterator[Callable[[], dict[str, np.ndarray]]]:
    """run() of an operation in a new process, which ends with the context; run() returns the results of the first run.

    Raises MinidiffError, with the process's last line on stderr, if it ends early.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", **inputs)  # pyright: ignore[reportArgumentType]  of allow_pickle
        (folder / "case.json").write_text(json.dumps({"op": op, "settings": _as_json(settings)}))
        command = [sys.executable, "-m", __name__, module, mode, str(threads), name]
        with open(folder / "stderr.txt", "w") as stderr, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as child:  # fmt: skip
            try:
                _wait(child, folder)  # so that no two processes need the memory of preparing at once
                results = cache(lambda: _results(folder))  # read after the first run, which warms up and is not timed

                def run() -> dict[str, np.ndarray]:
                    _ask(child, folder)
                    return results()

                yield run
            finally:
                child.kill()


def _ask(child: subprocess.Popen[str], folder: Path) -> None:
    """For a run, and wait for its end."""
    assert child.stdin
    try:
        print(file=child.stdin, flush=True)
    except BrokenPipeError:
        pass  # it has ended, and so has its stdout
    _wait(child, folder)


def _results(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "results.npz", allow_pickle=False) as results:
        return dict(results)


def _wait(child: subprocess.Popen[str], folder: Path) -> None:
    """Until the next line. Raises MinidiffError if the process ends instead."""
    assert child.stdout
    if not child.stdout.readline():
        last = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise MinidiffError(f"a rival's process ended: {' '.join(last) or 'without a message'}")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a network's configuration as config.json has it."""
    return settings | ({"config": settings["config"].to_dict()} if "config" in settings else {})


def _from_json(settings: dict[str, Any]) -> dict[str, Any]:
    if "config" not in settings:
        return settings
    (kind,) = (kind for kind in (UNetConfig, TextUNetConfig) if kind.CLASS == settings["config"]["_class_name"])
    return settings | {"config": kind.of(settings["config"])}


def main(module: str, mode: str, threads: str, place: str) -> None:
    """Prepare the operation, then run it once for each line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not answer
    rival = importlib.import_module(module)
    rival.set_up(int(threads))
    folder = Path(place)
    case = json.loads((folder / "case.json").read_text())
    with np.load(folder / "inputs.npz", allow_pickle=False) as inputs:
        run = rival.prepare(mode, case["op"], dict(inputs), _from_json(case["settings"]))
    print(file=answers, flush=True)
    for _ in sys.stdin:
        results = run()
        if not (folder / "results.npz").exists():
            np.savez(folder / "results.npz", **results)  # pyright: ignore[reportArgumentType]  of allow_pickle
        print(file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
