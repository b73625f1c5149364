"""Products with factors in bfloat16: as accurate as sums in float32 of rounded factors."""

import numba
import numpy as np
import own_process
import pytest
import torch
from against_torch import CONV_FLOOR, FLOOR, check_nan, draw, rms_error, run_ours, run_theirs
from kernel_cases import attention, conv
from minidiff_kernels.reference import bfloat16 as reference
from minidiff_kernels.reference.bfloat16 import round_to_bfloat16

from minidiff.engine.backend import get_backend

BFLOAT16 = get_backend("numba-bf16")
SAME = (1, 1, 1, 1)
CONVOLUTIONS = [
    conv((2, 5, 7, 3), (5, 3, 3, 3), pad=SAME),
    conv((2, 9, 8, 32), (48, 3, 3, 32), pad=SAME, add="temb"),
    conv((2, 8, 9, 48), (96, 3, 3, 48), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 16, 70, 34), (64, 3, 3, 34), pad=SAME, add="residual"),  # blocks that do not divide the columns
    conv((5, 4, 4, 96), (48, 3, 3, 96), pad=SAME, add="temb"),  # several images in a block
    conv((1, 7, 5, 160), (130, 1, 1, 160), add="residual"),
    conv((1, 1, 300, 322), (64, 1, 1, 322)),  # two segments, the second padded
    conv((1, 6, 6, 640), (32, 3, 3, 640), pad=SAME, bias=False),
    conv((1, 1, 1, 20), (200, 1, 1, 20)),
]
ATTENTIONS = [
    attention(1, 130, 77, 2, 17),
    attention(2, 64, 64, 1, 32),
    attention(1, 1, 1, 1, 8),
    attention(1, 100, 100, 2, 40, causal=True),
    attention(1, 5, 3, 3, 330),
]

# The error of rounding is uniform within 2^-8 of a number just above a power of two, and within half of that of one
# just below: its rms is between 2^-8 / sqrt(3) and half as much. Two independent factors have sqrt(2) times that.
ROUNDING = 2**-8 * (2 / 3) ** 0.5


def rounded(case):
    return {k: round_to_bfloat16(a) if k in ("x", "w", "q", "k", "v") else a for k, a in case.inputs.items()}


def test_rounding_is_to_nearest_ties_to_even():
    """All upper halves, with lower ones at, just below and just above a tie: torch's bfloat16 to the last bit."""
    bits = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | np.array(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    x = bits.view(np.float32)
    want = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_to_bfloat16(x), want)
    normal = np.where(
        (np.abs(x) < np.finfo(np.float32).tiny) & ~np.isnan(x), 0, x
    )  # the instruction takes others for 0
    want = torch.from_numpy(normal).bfloat16().float().numpy()
    packed = BFLOAT16.pack(normal.reshape(-1, 64))
    assert packed.dtype == np.uint16
    np.testing.assert_array_equal(BFLOAT16.widen(packed), want.reshape(-1, 64))


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("pack", [False, True])
def test_convolution_rounds_its_factors_only(case, pack):
    inputs = dict(case.inputs)
    if pack and (inputs["w"].shape[0] % 16 or BFLOAT16.pack(inputs["w"]).dtype != np.uint16):
        pytest.skip("needs channels that fill the panels")
    got = run_ours(BFLOAT16, case, inputs)
    if pack:
        packed = BFLOAT16.pack(inputs.pop("w"))
        got = case.ours(BFLOAT16, w=packed, **inputs)
    exact, float32 = (run_theirs(case, i, torch.float64) for i in (rounded(case), case.inputs))
    assert rms_error(got["y"], exact["y"]) <= CONV_FLOOR
    assert ROUNDING / 4 < rms_error(got["y"], float32["y"]) <= ROUNDING
    gradients = run_theirs(case, case.inputs | ({"w": rounded(case)["w"]} if pack else {}), torch.float64)
    for k in {"dx", "dw", "dbias"} & set(got):
        assert rms_error(got[k], gradients[k]) <= CONV_FLOOR, k


def test_with_many_pixels_winograd_rounds_weights_only():
    case = conv((2, 32, 33, 32), (48, 3, 3, 32), pad=SAME, add="temb")
    inputs = dict(case.inputs)
    got = case.ours(BFLOAT16, w=BFLOAT16.pack(inputs.pop("w")), **inputs)["y"]
    exact = run_theirs(case, dict(case.inputs) | {"w": rounded(case)["w"]}, torch.float64)["y"]
    assert rms_error(got, exact) <= CONV_FLOOR


@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_attention_rounds_its_factors_only(case):
    """Of one block of keys, in which probabilities are relative to the maximum of all, as in the reference."""
    got = run_ours(BFLOAT16, case, case.inputs)
    q, k, v = (case.inputs[name].astype(np.float64) for name in "qkv")
    exact, lse = reference.attention(q, k, v, "causal" in str(case))
    float32 = run_theirs(case, case.inputs, torch.float64)
    # a probability near the middle between two bfloat16 may be rounded to the other one: one in 2^-8 / 2^-23 of them
    assert rms_error(got["o"], exact) <= FLOOR + 2**-8 * (2**-23 / 2**-8) ** 0.5
    assert rms_error(got["lse"], lse) <= FLOOR
    assert rms_error(got["o"], float32["o"]) <= 2 * ROUNDING


def test_attention_over_several_blocks_of_keys():
    """A block's probabilities are rounded relative to the maximum so far: another rounding, of the same size."""
    for case in (attention(1, 120, 601, 2, 40), attention(1, 300, 301, 1, 64, causal=True)):
        got, want = run_ours(BFLOAT16, case, case.inputs), run_theirs(case, rounded(case), torch.float64)
        assert rms_error(got["o"], want["o"]) <= ROUNDING
        assert rms_error(got["lse"], want["lse"]) <= FLOOR


@pytest.mark.parametrize("case", CONVOLUTIONS + ATTENTIONS, ids=str)
def test_nan_is_propagated(case):
    check_nan(BFLOAT16, case)


def test_infinity_is_propagated():
    x, w = draw(1, 6, 6, 32), draw(32, 3, 3, 32, seed=1)
    x[0, 2, 2, 5] = np.inf
    want = reference.conv2d(x, w, pad=SAME)
    np.testing.assert_array_equal(np.isinf(BFLOAT16.conv2d(x, w, pad=SAME)), np.isinf(want))
    assert np.isinf(want).any()


def test_small_integers_are_multiplied_exactly():
    """Any error would be in the layout of pairs, panels and segments."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (2, 6, 7, 36)), rng.integers(-8, 9, (48, 3, 3, 36))
    want = get_backend("numpy").conv2d(x.astype(float), w.astype(float), pad=SAME)
    w32 = w.astype(np.float32)
    for weights in (w32, BFLOAT16.pack(w32)):
        np.testing.assert_array_equal(BFLOAT16.conv2d(x.astype(np.float32), weights, pad=SAME), want)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads to compare with one")
@pytest.mark.parametrize("case", [*CONVOLUTIONS[1:5], conv((1, 1, 9, 64), (640, 1, 1, 64)), *ATTENTIONS[:2]], ids=str)
def test_results_do_not_depend_on_threads(case):
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(run_ours(BFLOAT16, case, case.inputs))
    for k, a in results[0].items():
        np.testing.assert_array_equal(results[1][k], a, k)


WITHOUT_INSTRUCTION = [
    pytest.param({"NUMBA_CPU_NAME": "generic"}, 4, id="generic", marks=pytest.mark.soak),
    pytest.param({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}, 8, id="haswell"),
    pytest.param(
        {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+avx512f"}, 16, id="avx512"
    ),
]

CHECK = """
import numpy as np
from against_torch import CONV_FLOOR, draw, rms_error
from minidiff.engine.backend import get_backend
from minidiff_kernels.cpu import bfloat16, simd
from minidiff_kernels.reference import bfloat16 as reference

backend, SAME = get_backend("numba-bf16"), (1, 1, 1, 1)
for shape, O in (((2, 9, 8, 32), 48), ((2, 5, 7, 3), 5)):
    x, w = draw(*shape), draw(O, 3, 3, shape[-1], seed=1)
    rounded = (reference.round_to_bfloat16(a).astype(float) for a in (x, w))
    want = get_backend("numpy").conv2d(*rounded, pad=SAME)
    for weights in (w, backend.pack(w)):
        assert rms_error(backend.conv2d(x, weights, pad=SAME), want) <= CONV_FLOOR
q, k, v = (draw(1, 70, 2, 24, seed=i) for i in range(3))
o, _ = backend.attention(q, k, v)
want, _ = reference.attention(*(a.astype(float) for a in (q, k, v)))
assert rms_error(o, want) <= 1e-5  # a few probabilities are rounded to the other side
print(simd.LANES, bfloat16.HAS_DOT)
"""


@pytest.mark.parametrize(("cpu", "lanes"), WITHOUT_INSTRUCTION)
def test_a_processor_without_the_instruction(cpu, lanes):
    """It widens the factors instead, with shorter vectors too."""
    assert own_process.run(CHECK, **cpu)[0].split() == [str(lanes), "False"]
