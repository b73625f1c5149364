"""A Python program in a process of its own, for what Numba reads from its environment at the start."""

import os
import subprocess
import sys
from pathlib import Path

import minidiff_kernels

import minidiff

TESTS = Path(__file__).parent
SOURCES = [str(TESTS), *(str(Path(package.__file__).parents[1]) for package in (minidiff, minidiff_kernels))]


def start(code: str, first_on_path: Path | None = None, **environment: str) -> subprocess.Popen:
    """Begin to run a program, with these variables added; modules in first_on_path come before all others."""
    path = [*([str(first_on_path)] if first_on_path else []), *SOURCES]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """What the program printed, and what it said on stderr; fails unless it ended well."""
    said, complaints = process.communicate(timeout=600)
    assert process.returncode == 0, complaints
    return said, complaints


def run(code: str, first_on_path: Path | None = None, **environment: str) -> tuple[str, str]:
    """Both in one."""
    return finish(start(code, first_on_path, **environment))
