"""Rules of the source tree: imports, sizes of files, functions and folders, types of public names, wheel and sdist."""

import ast
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tokenize
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from minidiff import api

ROOT = Path(__file__).parent.parent
LONGEST = 320  # lines of a file
LONGEST_NANO = 500  # of the whole in one file
MOST_MODULES = 16  # of a folder
LONGEST_FUNCTION = 40  # lines, outside cli/
MOST_ARGUMENTS = 8


def python(*arguments, **kwargs):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **kwargs)


def sources(folder):
    return list((ROOT / folder).rglob("*.py"))


def test_imports_run_one_way():
    """The contracts stand in pyproject.toml."""
    done = python("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rival", ["cupy", "mpi4py", "torch", "diffusers", "transformers", "matplotlib.pyplot"])
def test_importing_minidiff_does_not_import(rival):
    done = python("-c", f"import sys, minidiff, minidiff.cli.app; sys.exit({rival!r} in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_files_are_short():
    files = sources("minidiff") + sources("kernels") + sources("benchmarks")
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in files}
    assert lines.pop("minidiff/nano.py") <= LONGEST_NANO
    assert {path: n for path, n in lines.items() if n > LONGEST} == {}


class Function(NamedTuple):
    """A function or method of minidiff/ outside cli/; `public` if it is in minidiff.api.__all__."""

    name: str  # path:line function
    lines: int
    arguments: int
    public: bool


def functions():
    public = {
        (obj.__module__, obj.__name__) for obj in map(api.__dict__.get, api.__all__) if hasattr(obj, "__module__")
    }
    for path in sources("minidiff"):
        relative = path.relative_to(ROOT)
        if relative.parts[1] == "cli":
            continue
        module = ".".join(relative.with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                args = node.args
                arguments = len([a for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg != "self"])
                lines = node.end_lineno - node.lineno + 1
                name = f"{relative}:{node.lineno} {node.name}"
                yield Function(name, lines, arguments, (module, node.name) in public)


def test_functions_are_short():
    found = list(functions())
    lines = [function.lines for function in found]
    assert statistics.median(lines) <= 6
    assert sum(n < 20 for n in lines) >= 0.9 * len(lines)
    assert [f"{f.name}: {f.lines}" for f in found if f.lines > LONGEST_FUNCTION and not f.public] == []


def test_functions_have_few_arguments():
    """But for the public functions, and three methods of the backends, which have their kernels' arguments."""
    many = [f for f in functions() if f.arguments > MOST_ARGUMENTS and not f.public]
    names = {f"{f.name.partition(':')[0]} {f.name.split()[-1]}: {f.arguments}" for f in many}
    kernels = tuple(f"minidiff/engine/backend.py {op}:" for op in ("adamw", "muon", "group_norm_backward"))
    assert [name for name in names if not name.startswith(kernels)] == []


def test_one_statement_a_line():
    packed = []
    for path in sources("minidiff") + sources("kernels"):
        with open(path, "rb") as file:
            packed += [f"{path}:{token.start[0]}" for token in tokenize.tokenize(file.readline) if token.string == ";"]
    assert packed == []


def test_folders_hold_few_modules():
    folders = {path.parent for path in sources("minidiff")}
    modules = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: n for folder, n in modules.items() if n > MOST_MODULES} == {}


@pytest.mark.slow
def test_public_names_have_complete_types():
    """As pyright sees them for users: known, and not left to inference; members included."""
    # pyright cannot follow an editable install's finder
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = ("-m", "pyright", "--pythonpath", sys.executable, "--verifytypes", "minidiff")
    done = python(*command, "--ignoreexternal", "--outputjson", env=env)
    report = json.loads(done.stdout)["typeCompleteness"]
    public = {f"minidiff.{name}" for name in api.__all__}
    names = {s["name"]: {s["name"], *s.get("alternateNames", [])} for s in report["symbols"]}
    defined = tuple(name for name, others in names.items() if public & others)
    assert public <= set().union(*(names[name] for name in defined))
    members = tuple(f"{name}." for name in defined)
    incomplete = [
        s["name"]
        for s in report["symbols"]
        if (s["name"] in defined or s["name"].startswith(members)) and (not s["isTypeKnown"] or s["isTypeAmbiguous"])
    ]
    assert incomplete == []


def test_no_package_where_none_belongs():
    """`kernels` is a name that others own, and tests are found by path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own():
    names = [path.name for path in sources("tests") if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def build(kind, folder, source=ROOT):
    """Build the "wheel" or "sdist" of a source tree into a folder; returns its path."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


def content(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


MODEL_FILES = (
    "classes.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)  # of minidiff/learn/cats_dogs


def test_wheel_holds_every_module(tmp_path):
    """And emoji and CLIP's merges with their licences, the exercises' model, a report's page, the forecast's data,
    py.typed, and no more.

    `kernels` is no part of a path.
    """
    want = {str(path.relative_to(ROOT)) for path in sources("minidiff")}
    want |= {f"minidiff/learn/cats_dogs/{name}" for name in MODEL_FILES}
    want |= {f"minidiff/evaluation/run_report.{kind}" for kind in ("html", "css", "js")}
    want |= {f"minidiff/training/forecast/{name}.json" for name in ("law", "small-cpu")}
    kernels = [*sources("kernels"), *(ROOT / "kernels").rglob("*.cu")]
    want |= {str(path.relative_to(ROOT / "kernels")) for path in kernels}
    want |= {"minidiff/py.typed", "minidiff_kernels/py.typed", "minidiff/data/emoji.npz", "minidiff/data/emoji.LICENSE"}
    want |= {f"minidiff/formats/clip_merges.{ending}" for ending in ("txt.gz", "LICENSE")}
    assert content(build("wheel", tmp_path)) == want


SAMPLE = """
import numpy as np
import minidiff as md, minidiff_kernels
print(md.__file__, minidiff_kernels.__file__, sep="\\n")
config = md.UNetConfig(sample_size=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=2,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
rng = np.random.default_rng(0)
unet = md.UNet(config, rng, "numpy")
for t, x_t, x0_hat in md.sample(unet, md.linear_schedule(20), (1, 4, 4, 3), rng, steps=2):
    pass
assert x_t.shape == (1, 4, 4, 3) and np.isfinite(x_t).all()
assert len(md.open_dataset("emoji")) > 3000
"""


@pytest.mark.soak
def test_installed_wheel_of_the_sdist_works(tmp_path):
    """Built from the sdist, installed into a new virtual environment that finds the dependencies of this one."""
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        sdist.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = build("wheel", tmp_path, source)
    assert python("-m", "venv", "--without-pip", str(tmp_path / "env")).returncode == 0
    scheme = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    purelib, scripts = (Path(sysconfig.get_path(name, "venv", scheme)) for name in ("purelib", "scripts"))
    interpreter = scripts / Path(sys.executable).name
    done = python(
        "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps", "--no-index", str(wheel)
    )
    assert done.returncode == 0, done.stderr
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after the new environment's own
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    version = subprocess.run([scripts / "minidiff", "--version"], env=env, **run)
    assert (version.returncode, version.stderr) == (0, "") and "0.1.0" in version.stdout
    sampled = subprocess.run([interpreter, "-c", SAMPLE], env=env, **run)
    assert sampled.returncode == 0, sampled.stderr
    assert all(Path(path).is_relative_to(purelib) for path in sampled.stdout.split())
