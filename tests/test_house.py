"""The house rules that a machine can keep: who imports whom, how long a file is, what a wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 320  # lines; a file is one idea


def python(*arguments, **kwargs):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **kwargs)


def sources(folder):
    return list((ROOT / folder).rglob("*.py"))


def test_imports_run_one_way():
    """The contracts stand in pyproject.toml."""
    done = python("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rival", ["cupy", "torch", "diffusers", "transformers", "matplotlib.pyplot"])
def test_importing_minidiff_does_not_import(rival):
    done = python("-c", f"import sys, minidiff, minidiff.cli.app; sys.exit({rival!r} in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_files_are_short():
    files = sources("minidiff") + sources("kernels") + sources("benchmarks")
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in files}
    assert {path: n for path, n in lines.items() if n > LONGEST} == {}


def test_no_package_where_none_belongs():
    """`kernels` is a name that others own, and tests are found by path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own():
    names = [path.name for path in sources("tests") if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_the_wheel_holds_every_module(tmp_path):
    """And the emoji with their licence, and nothing else but its metadata.

    The kernels lie in a folder of their own, which a wheel must not keep.
    """
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    want = {str(path.relative_to(ROOT)) for path in sources("minidiff")}
    kernels = [*sources("kernels"), *(ROOT / "kernels").rglob("*.cu")]
    want |= {str(path.relative_to(ROOT / "kernels")) for path in kernels}
    want |= {"minidiff/data/emoji.npz", "minidiff/data/emoji.LICENSE"}
    assert held == want
