"""NVIDIA's compiler compiles every kernel for two generations of GPUs, without register spills."""

import pytest
from minidiff_kernels.gpu import launch
from nvrtc import compile_cuda, library

USUAL = 128  # registers per thread
MOST = {
    "128x128": 255,
    "single": 255,
    "128x64_tf32": 170,
    "64x128_tf32": 170,
}  # kernels that run few thread blocks per multiprocessor

pytestmark = pytest.mark.skipif(not library(), reason="needs the package nvidia-cuda-nvrtc, which the test extra has")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("family", launch.PREAMBLES)
def test_kernels_compile_and_spill_nothing(family, arch):
    reports = compile_cuda(launch.source(family), arch)
    assert reports, "no kernel was compiled"
    for name, report in reports.items():
        assert report.spilled == report.stack == 0, f"{name} spills: {report}"
        most = max((most for part, most in MOST.items() if part in name), default=USUAL)
        assert report.registers <= most, f"{name}: {report}"


def test_an_array_outside_registers_is_noticed():
    source = """extern "C" __global__ void sorted(float* x, int n) {
      float all[64];
      for (int i = 0; i < 64; i++) all[i] = x[i];
      for (int i = 0; i < n; i++) all[(int)x[i]] += 1;  // run-time indices: not in registers
      for (int i = 0; i < 64; i++) x[i] = all[i];
    }"""
    assert compile_cuda(source, "sm_90")["sorted"].stack > 0


def test_invalid_cuda_is_refused():
    with pytest.raises(SyntaxError, match="undefined"):
        compile_cuda('extern "C" __global__ void f(float* x) { x[0] = undefined; }', "sm_80")
