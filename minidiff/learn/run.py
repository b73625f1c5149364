"""A reader's file, run and checked in a process of its own (worker.py), so that it can neither hang nor crash."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.learn.worker import TIME_LIMIT

WORKER = ("-u", "-P", "-m", "minidiff.learn.worker")  # -P: modules in the current folder hide no others
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Checked:
    """The verdict on a file, with the hint if it is wrong, and the PNG file of its image if there is one."""

    right: bool
    hint: str
    image: bytes | None


def run_check(number: int, path: Path) -> Checked:
    """Check the answer to an exercise in the file at `path`. What it prints appears as it does so.

    Raises MinidiffError, with the file and where possible the line, if it raises an error, takes longer than
    TIME_LIMIT seconds of processor time, ends the process or crashes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        returncode = _run_worker(number, path, folder)
        if not (folder / "report.json").exists():
            raise MinidiffError(f"{path}{_line(path, folder)}: {_end(returncode, folder)}")
        report = json.loads((folder / "report.json").read_bytes())
        if "error" in report:
            raise MinidiffError(report["error"])
        image = folder / "image.png"
        return Checked(report["right"], report["hint"], image.read_bytes() if image.exists() else None)


def _run_worker(number: int, path: Path, folder: Path) -> int:
    """The return code of the process, which has no standard input."""
    command = [sys.executable, *WORKER, str(number), str(path), str(folder)]
    sys.stdout.flush()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
    try:
        return child.wait()
    finally:
        child.kill()


def _line(path: Path, folder: Path) -> str:
    """The line that ran last, by the stack; "" if it is not known."""
    found = re.search(rf'File "{re.escape(str(path))}", line (\d+)', _stack(folder))
    return f", line {found[1]}" if found else ""


def _end(returncode: int, folder: Path) -> str:
    """Why there is no report."""
    end = signal.Signals(-returncode).name if returncode < 0 else ""
    if end == "SIGPROF" or _stack(folder).startswith("Timeout"):
        return f"takes longer than {TIME_LIMIT} seconds; is there an endless loop?"
    if not end:
        return f"ends the program with exit code {returncode}; return the result instead"
    if end == "SIGKILL":
        return "was ended by the system (SIGKILL); does it need too much memory?"
    return f"crashes Python ({end}); call what crashes there in another way"


def _stack(folder: Path) -> str:
    """What the process wrote on its end by the time limit or a crash; "" if it ended otherwise."""
    path = folder / "stack.txt"
    return path.read_text(errors="replace") if path.exists() else ""
