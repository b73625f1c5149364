"""Kernels compiled for other processors, with shorter vectors, compute the same."""

import own_process
import pytest

# Environment variables that set Numba's target processor, and the lanes of its vectors.
CPUS = [
    pytest.param({"NUMBA_CPU_NAME": "generic"}, 4, id="generic", marks=pytest.mark.soak),
    pytest.param({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}, 8, id="haswell"),
]

CHECK = """
from dataclasses import replace
from against_torch import check
from kernel_cases import attention, conv, muon, norm
from minidiff.engine.backend import get_backend
from minidiff_kernels.cpu.simd import LANES

def forward(case):
    return replace(case, ours=lambda backend, dy, x, w, bias: {"y": backend.conv2d(x, w, bias, 1, SAME)})

SAME = (1, 1, 1, 1)
for case in CASES:
    check(get_backend("numba"), case)
print(LANES)
"""

FORWARD = """[
    forward(conv((2, 9, 13, 32), (48, 3, 3, 32), pad=SAME)),  # Winograd
    forward(conv((2, 7, 5, 17), (19, 3, 3, 17), pad=SAME)),  # im2col, with an incomplete vector of channels
]"""

ALL_KERNELS = """[
    conv((2, 9, 13, 32), (48, 3, 3, 32), pad=SAME, add="residual"),
    conv((1, 5, 6, 72), (40, 3, 3, 72), pad=(0, 2, 1, 0), bias=False),
    conv((2, 7, 5, 17), (19, 3, 3, 17), pad=SAME, add="temb"),
    conv((1, 16, 8, 32), (32, 3, 3, 32), stride=2, pad=(0, 1, 0, 1)),
    conv((3, 15, 18, 32), (48, 3, 3, 32), stride=2, pad=(1, 1, 0, 1), add="residual"),
    conv((4, 3, 3, 33), (17, 1, 1, 33)),
    attention(1, 130, 77, 2, 17),
    attention(2, 64, 64, 1, 32),
    norm((2, 5, 7, 24), 3, silu=True),
    norm((2, 16, 16, 32), 8),
    norm((130, 1, 96), 1),
    conv((2, 4, 4, 96), (48, 1, 1, 96)),
    muon((20, 50), (64, 20), (3, 3)),
]"""

CACHE_DIR = "from minidiff_kernels.cpu import jit, simd\nprint(jit.cache_dir(), simd.LANES)"


def lanes(cases, cpu):
    """Check the cases in a process that compiles for that processor; returns its LANES."""
    return int(own_process.run(CHECK.replace("CASES", cases), **cpu)[0])


@pytest.mark.parametrize(("cpu", "expected"), CPUS)
def test_conv_forward(cpu, expected):
    assert lanes(FORWARD, cpu) == expected


@pytest.mark.soak
@pytest.mark.parametrize(("cpu", "expected"), CPUS)
def test_every_kernel(cpu, expected):
    assert lanes(ALL_KERNELS, cpu) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NUMBA_CPU_NAME": "generic"}, 4),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}, 4),  # features do not follow from the name
        ({"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "+avx,+avx512f"}, 16),
        ({"NUMBA_CPU_FEATURES": "+avx,-avx512f"}, 8),
        ({"NUMBA_CPU_FEATURES": "+avx2,+sse4.2"}, 4),
    ],
)
def test_lanes_follow_from_the_features(settings, expected):
    assert own_process.run(CACHE_DIR, **settings)[0].split()[1] == str(expected)


def test_every_processor_has_its_own_cache():
    """One cache for all could load code with another vector length."""
    settings = [{}, *(param.values[0] for param in CPUS), {"NUMBA_CPU_FEATURES": "+avx"}]
    folders = [own_process.run(CACHE_DIR, **changes)[0].split()[0] for changes in settings]
    assert len(set(folders)) == len(folders)
    assert own_process.run(CACHE_DIR)[0].split()[0] == folders[0]
