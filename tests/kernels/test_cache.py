"""Compiled kernels on the disk: shared, edited, cut short, or nowhere to be kept. The results are right every time."""

import shutil
from pathlib import Path

import minidiff_kernels
import numpy as np
import own_process
import pytest

# A kernel with a helper from another file. It prints how often it was compiled, and its results.
SILU = """
import numpy as np
from minidiff.engine.backend import get_backend
from minidiff_kernels.cpu import elementwise
y = get_backend("numba").silu(np.linspace(-3, 3, 7, dtype=np.float32))
print(sum(elementwise._silu.stats.cache_misses.values()), *y.tolist())
"""
# Sums of many numbers, forward and backward: their bits show the order of every addition.
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
X = np.linspace(-3, 3, 7)
WANT = X / (1 + np.exp(-X))


def silu(first_on_path=None, **environment):
    return read(own_process.run(SILU, first_on_path, **environment)[0])


def read(said):
    """Compilations and results."""
    compilations, *y = said.split()
    return int(compilations), np.array(y, float)


def is_right(y):
    return np.allclose(y, WANT, rtol=1e-6)


@pytest.fixture
def cache(tmp_path):
    """A cache that holds the kernel."""
    folder = tmp_path / "cache"
    compilations, y = silu(NUMBA_CACHE_DIR=str(folder))
    assert compilations == 1
    assert is_right(y)
    return folder


@pytest.fixture
def package(tmp_path):
    """A copy of the kernels, to be edited."""
    copy = tmp_path / "copy" / "minidiff_kernels"
    shutil.copytree(Path(minidiff_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_a_second_start_compiles_nothing(cache):
    compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
    assert compilations == 0
    assert is_right(y)


def test_the_first_start_computes_the_same_bits_as_the_second(tmp_path):
    (compiled, *first), (kept, *second) = (
        own_process.run(SUMS, NUMBA_CACHE_DIR=str(tmp_path))[0].split() for _ in range(2)
    )
    assert (compiled, kept) == ("1", "0")
    assert first == second


def test_processes_that_start_together_share_an_empty_cache(tmp_path):
    """With other argument types in each, so that neither finds what the other keeps, and both write at once."""
    numbers = "np.linspace(-3, 3, 7, dtype=np.float32)"
    frozen = SILU.replace(numbers, f"np.frombuffer({numbers}.tobytes(), np.float32)")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    for want in (1, 0):
        processes = [own_process.start(code, **environment) for code in (SILU, frozen)]
        for process in processes:
            compilations, y = read(own_process.finish(process)[0])
            assert compilations == want
            assert is_right(y)
    assert len(list(tmp_path.rglob("*.nbc"))) == 2


def test_an_edit_of_a_helper_takes_effect(package, tmp_path):
    cache = str(tmp_path / "cache")
    assert is_right(silu(package.parent, NUMBA_CACHE_DIR=cache)[1])
    source = package / "cpu" / "exponential.py"
    before, after = "return one / (one + exp", "return np.float32(3) * one / (one + exp"
    assert before in source.read_text()
    source.write_text(source.read_text().replace(before, after))
    compilations, y = silu(package.parent, NUMBA_CACHE_DIR=cache)
    assert compilations == 1
    assert is_right(y / 3)


@pytest.mark.parametrize("keep", [0, 16, 32, 1000, -1])
def test_a_file_cut_short_is_compiled_again(cache, keep):
    (file,) = cache.rglob("*.nbc")
    file.write_bytes(file.read_bytes()[:keep])
    for want in (1, 0):  # and mended
        compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
        assert compilations == want
        assert is_right(y)


def test_a_changed_byte_is_compiled_again(cache):
    (file,) = cache.rglob("*.nbc")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    compilations, y = silu(NUMBA_CACHE_DIR=str(cache))
    assert compilations == 1
    assert is_right(y)


def test_without_a_place_to_keep_them_kernels_work(package):
    """And one line says why every start is slow."""
    said, complaints = own_process.run(SILU, package.parent, NUMBA_CACHE_DIR="", XDG_CACHE_HOME="/dev/null/x")
    assert is_right(read(said)[1])
    assert complaints.startswith("minidiff: compiled kernels are not kept, ")
    assert complaints.endswith("set NUMBA_CACHE_DIR to a folder that can be written\n")
    assert complaints.count("\n") == 1
    assert not list(package.rglob("*.nb?"))


def test_an_installation_that_is_read_only(package, tmp_path):
    """Nothing is written beside the sources. To root every folder is writable, so what lies there is compared too."""
    folders = [path for path in (package, *package.rglob("*")) if path.is_dir()]
    before = sorted(package.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        assert is_right(silu(package.parent, **environment)[1])
        assert silu(package.parent, **environment)[0] == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(package.rglob("*")) == before


def test_a_full_disk(tmp_path):
    """No file may grow beyond 1,000 bytes: kernels work and are compiled every time."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + SILU
    for _ in range(2):
        compilations, y = read(own_process.run(full, NUMBA_CACHE_DIR=str(tmp_path))[0])
        assert compilations == 1
        assert is_right(y)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
