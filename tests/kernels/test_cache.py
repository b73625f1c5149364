"""The cache of compiled kernels: shared, edited, truncated or not writable. Results are always correct."""

import shutil
from pathlib import Path

import minidiff_kernels
import numpy as np
import own_process
import pytest

# A kernel with a helper from another file. Prints how often it was compiled, and its results.
SILU = """
import numpy as np
from minidiff.engine.backend import get_backend
from minidiff_kernels.cpu import elementwise
y = get_backend("numba").silu(np.linspace(-3, 3, 7, dtype=np.float32))
print(sum(elementwise._silu.stats.cache_misses.values()), *y.tolist())
"""
# Long sums, forward and backward, whose bits depend on the order of every addition.
SUMS = """
import hashlib
import numpy as np
from minidiff_kernels.cpu import conv, norm
rng = np.random.default_rng(0)
x, dy = (rng.standard_normal((2, 8, 8, 64), dtype=np.float32) for _ in range(2))
w, one = rng.standard_normal((64, 3, 3, 64), dtype=np.float32), np.ones(64, np.float32)
y, mean, rstd = norm.group_norm(x, one, one, 8, 1e-5, silu=True)
results = y, *norm.group_norm_backward(dy, x, one, one, mean, rstd, silu=True)
results += conv.conv2d(x, w, pad=(1, 1, 1, 1)), *conv.conv2d_backward(dy, x, w, 1, (1, 1, 1, 1))
print(norm._forward.stats.cache_misses.total(), *(hashlib.sha256(a.tobytes()).hexdigest() for a in results))
"""
# Prints which libraries of the kernel of SILU LLVM optimises by themselves.
OPTIMISED = """
from numba.core.codegen import CPUCodeLibrary
optimise = CPUCodeLibrary._optimize_final_module
CPUCodeLibrary._optimize_final_module = lambda library: (print("optimised", library.name), optimise(library))
"""
X = np.linspace(-3, 3, 7)
EXPECTED = X / (1 + np.exp(-X))


def silu(first_on_path=None, **environment):
    return read(own_process.run(SILU, first_on_path, **environment)[0])


def read(output):
    """The number of compilations and the results, from the output of SILU."""
    compilations, *y = output.split()
    return int(compilations), np.array(y, float)


def is_correct(y):
    return np.allclose(y, EXPECTED, rtol=1e-6)


@pytest.fixture
def cache(tmp_path):
    """A cache that holds the kernel."""
    folder = tmp_path / "cache"
    compilations, y = silu(NUMBA_CACHE_DIR=str(folder))
    assert compilations == 1
    assert is_correct(y)
    return folder


@pytest.fixture
def package(tmp_path):
    """A copy of the kernels that tests may edit."""
    copy = tmp_path / "copy" / "minidiff_kernels"
    shutil.copytree(Path(minidiff_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_a_second_start_compiles_nothing(cache):
    compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
    assert compilations == 0
    assert is_correct(y)


def test_a_loop_is_optimised_within_its_kernel_alone(tmp_path):
    output, _ = own_process.run(OPTIMISED + SILU, NUMBA_CACHE_DIR=str(tmp_path))
    names = [line.removeprefix("optimised ") for line in output.splitlines() if line.startswith("optimised ")]
    assert "_silu" in names and "exp" in names
    assert not [name for name in names if "gufunc" in name or "wrapper" in name]


def test_the_first_start_computes_the_same_bits_as_the_second(tmp_path):
    (compiled, *first), (loaded, *second) = (
        own_process.run(SUMS, NUMBA_CACHE_DIR=str(tmp_path))[0].split() for _ in range(2)
    )
    assert (compiled, loaded) == ("1", "0")
    assert first == second


def test_processes_that_start_together_share_an_empty_cache(tmp_path):
    """Their argument types differ, so that neither finds the other's file and both write at once."""
    numbers = "np.linspace(-3, 3, 7, dtype=np.float32)"
    frozen = SILU.replace(numbers, f"np.frombuffer({numbers}.tobytes(), np.float32)")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    for expected in (1, 0):
        processes = [own_process.start(code, **environment) for code in (SILU, frozen)]
        for process in processes:
            compilations, y = read(own_process.finish(process)[0])
            assert compilations == expected
            assert is_correct(y)
    assert len(list(tmp_path.rglob("*.nbc"))) == 2


def test_an_edit_of_a_helper_takes_effect(package, tmp_path):
    cache = str(tmp_path / "cache")
    assert is_correct(silu(package.parent, NUMBA_CACHE_DIR=cache)[1])
    source = package / "cpu" / "exponential.py"
    before, after = "return x / (np.float32(1) + exp", "return np.float32(3) * x / (np.float32(1) + exp"
    assert before in source.read_text()
    source.write_text(source.read_text().replace(before, after))
    compilations, y = silu(package.parent, NUMBA_CACHE_DIR=cache)
    assert compilations == 1
    assert is_correct(y / 3)


@pytest.mark.parametrize("length", [0, 16, 32, 1000, -1])
def test_a_truncated_file_is_compiled_again(cache, length):
    (file,) = cache.rglob("*.nbc")
    file.write_bytes(file.read_bytes()[:length])
    for expected in (1, 0):  # and the new file is valid
        compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
        assert compilations == expected
        assert is_correct(y)


def test_a_changed_byte_is_compiled_again(cache):
    (file,) = cache.rglob("*.nbc")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
    assert compilations == 1
    assert is_correct(y)


def test_kernels_work_without_a_writable_cache(package):
    """One line on stderr gives the reason and the remedy."""
    output, errors = own_process.run(SILU, package.parent, NUMBA_CACHE_DIR="", XDG_CACHE_HOME="/dev/null/x")
    assert is_correct(read(output)[1])
    assert errors.startswith("minidiff: compiled kernels are not kept, ")
    assert errors.endswith("set NUMBA_CACHE_DIR to a folder that can be written\n")
    assert errors.count("\n") == 1
    assert not list(package.rglob("*.nb?"))


def test_a_read_only_installation(package, tmp_path):
    """Nothing is written beside the sources. root can write anywhere, so the list of files is compared too."""
    folders = [path for path in (package, *package.rglob("*")) if path.is_dir()]
    before = sorted(package.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        assert is_correct(silu(package.parent, **environment)[1])
        assert silu(package.parent, **environment)[0] == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(package.rglob("*")) == before


def test_a_full_disk(tmp_path):
    """With a limit of 1,000 bytes per file, kernels work and are compiled every time."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + SILU
    for _ in range(2):
        compilations, y = read(own_process.run(full, NUMBA_CACHE_DIR=str(tmp_path))[0])
        assert compilations == 1
        assert is_correct(y)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
