"""The unrolled transforms of Winograd's convolution, on CPU and GPU, are the matrices of reference/winograd.py."""

import inspect
import re
from types import ModuleType

import numba
import numpy as np
import pytest
from minidiff_kernels.cpu import jit, winograd_transforms
from minidiff_kernels.cpu.simd import LANES, round_up, store
from minidiff_kernels.gpu import launch
from minidiff_kernels.reference.winograd import matrices

At, G, Bt = matrices()
MATRICES = {
    "input_transform": Bt, "output_transform": At, "output_transform_backward": At.T, "weight_transform": G,
    "weight_transform_backward": G.T,
}  # fmt: skip
CUDA = (launch.HERE / "winograd_transforms.cu").read_text()
IN_CUDA = re.findall(r"void (\w+)\(float\* v, int step\)", CUDA)

# A and B are exact in float32. An element of G is a constant times a power of a or b, rounded twice.
ROUNDING = (1 + 2**-24) ** 2 - 1

needs_compiler = pytest.mark.skipif(
    not jit.ENABLED, reason="needs Numba's compiler, which NUMBA_DISABLE_JIT=1 disables"
)


def unit_vectors(rows, columns, width):
    """(rows, width), column k the k-th unit vector, for k < columns."""
    return np.eye(rows, width, dtype=np.float32) * (np.arange(width) < columns)


def stored(output_transform):
    """output_transform with its result stored, as that of the others is."""

    @jit.helper
    def transform(source, s, step, to, t, to_step):
        values = output_transform(source, s, step)
        for i in range(4):
            store(to, t + i * to_step, values[i])

    return transform


def on_the_cpu(module, name):
    """The matrix by which a transform multiplies: its results for the unit vectors, one in each lane."""
    rows, columns = MATRICES[name].shape
    width = round_up(columns)
    transform = getattr(module, name)
    transform = stored(transform) if name == "output_transform" else transform
    call = numba.njit(lambda *arguments: transform(*arguments))  # a helper cannot be called from Python
    source, result = unit_vectors(columns, columns, width).ravel(), np.full(rows * width, np.nan, np.float32)
    for lane in range(0, width, LANES):
        call(source, lane, width, result, lane, width)
    return result.reshape(rows, width)[:, :columns]


APPLY = 'extern "C" __global__ void __launch_bounds__(32) apply(float* v) {{ {}(v + threadIdx.x, blockDim.x); }}'


def on_the_gpu(source, name):
    """The same of a transform in CUDA, in place; one thread for each unit vector."""
    rows, columns = MATRICES[name].shape
    v = launch.cp.asarray(unit_vectors(6, columns, columns))
    module = launch.cp.RawModule(code=source + APPLY.format(name), options=("-std=c++17",))
    module.get_function("apply")((1,), (columns,), (v,))
    return launch.cp.asnumpy(v)[:rows]


def check_matrix(got, name):
    np.testing.assert_allclose(got, MATRICES[name], rtol=ROUNDING, atol=0)


def test_every_transform_is_compared():
    assert {name for name in vars(winograd_transforms) if "transform" in name} == set(MATRICES)
    assert IN_CUDA and set(IN_CUDA) <= set(MATRICES)
    assert CUDA.count("__device__") == len(IN_CUDA)


@needs_compiler
@pytest.mark.parametrize("name", MATRICES)
def test_a_cpu_transform_is_its_matrix(name):
    check_matrix(on_the_cpu(winograd_transforms, name), name)


@pytest.mark.parametrize("name", IN_CUDA)
def test_a_cuda_transform_is_its_matrix(name):
    check_matrix(on_the_gpu(CUDA, name), name)


def mutated(source, name, old, new):
    """The source with `old` replaced by `new`, once, in that function, which has no blank line."""
    before, start, after = source.partition(f" {name}(")
    function, end, rest = after.partition("\n\n")
    assert old in function
    return before + start + function.replace(old, new, 1) + end + rest


@needs_compiler
@pytest.mark.parametrize(
    "name, old, new",
    [
        ("input_transform", "P2 * d2", "P0 * d2"),
        ("output_transform", "A3 * difference_a", "A2 * difference_a"),
        ("output_transform_backward", "B1 * odd_b", "A1 * odd_b"),
        ("weight_transform", "(GA * A2) * g2", "(GA * A1) * g2"),
        ("weight_transform_backward", "GB * sum_b", "GA * sum_b"),
    ],
)
def test_a_wrong_cpu_coefficient_is_rejected(name, old, new):
    module = ModuleType("mutant")
    module.__package__ = winograd_transforms.__package__
    exec(mutated(inspect.getsource(winograd_transforms), name, old, new), vars(module))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_matrix(on_the_cpu(module, name), name)


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("input_transform", "P2 * d3", "P0 * d3"),
        ("output_transform_backward", "A2 * y3", "B2 * y3"),
        ("weight_transform_backward", "GA * A1", "GB * A1"),
    ],
)
def test_a_wrong_cuda_coefficient_is_rejected(name, old, new):
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_matrix(on_the_gpu(mutated(CUDA, name, old, new), name), name)
