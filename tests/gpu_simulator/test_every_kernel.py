"""Every kernel is launched by a test case, without undefined behaviour."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from minidiff_kernels.gpu import launch
from simulator import UNDEFINED, Module, kernels_of
from suite import FILES, cases, mismatch


def test_every_kernel_is_launched_by_a_case():
    for family in FILES:
        Module.launched.clear()
        for name, case in cases(family):
            assert mismatch(name, case) is None
        assert set(kernels_of(launch.source(family))) - Module.launched == set()
    files = {path.stem for path in launch.HERE.glob("*.cu")}
    assert set(FILES) == set(launch.PREAMBLES) == files.difference(*launch.PREAMBLES.values())


PROGRAM = """
import sys, fake_cupy
sys.modules["cupy"] = fake_cupy
fake_cupy.RawModule.flags = {flags!r}
from suite import cases, mismatch
for family in {families!r}:
    for name, case in cases(family):
        found = mismatch(name, case)
        assert found is None, found
"""


def run_sanitized(flags: tuple[str, ...], families: list[str], **environment: str) -> subprocess.CompletedProcess:
    """All cases of some families in their own process, with kernels compiled with extra flags."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(Path(__file__).parent), *sys.path])
    program = PROGRAM.format(flags=flags, families=families)
    env = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)


@pytest.mark.soak
def test_no_undefined_behaviour():
    """UBSan: misaligned loads, indices beyond an array, signed overflow, shifts too far."""
    done = run_sanitized(UNDEFINED, list(FILES))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.soak
@pytest.mark.parametrize("family", FILES)
def test_no_address_is_out_of_range(family):
    """AddressSanitizer: NumPy's arrays get red zones around them."""
    library = subprocess.check_output(["g++", "-print-file-name=libasan.so"], text=True).strip()
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    done = run_sanitized(
        ("-fsanitize=address",), [family], LD_PRELOAD=library, ASAN_OPTIONS=options, PYTHONMALLOC="malloc"
    )
    assert done.returncode == 0, done.stderr[-2000:]
