"""The simulator reports what a GPU does not: divergent barriers, wrong arguments, uninitialised memory."""

import fake_cupy
import numpy as np
import pytest
from simulator import Kernel, Module

WRITE, READ = "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x;", "y[threadIdx.x] = s[63 - threadIdx.x];"
KERNEL = 'extern "C" __global__ void __launch_bounds__(64) f(float* y, int n) {{ {} }}'


def run(body: str, *arguments, order: int = 0, shared: int = 0, **changes) -> np.ndarray:
    """Run a kernel of 64 threads with that body on an array of 64 floats."""
    y = np.zeros(64, np.float32)
    Module.order = order
    try:
        kernel = Kernel(Module(KERNEL.format(body)), "f")
        kernel((1,), (64,), arguments or (y, np.int32(64)), shared_mem=shared)
    finally:
        Module.order = 0
    return y


def test_thread_index_and_block_size():
    assert run("y[threadIdx.x] = threadIdx.x + 100 * blockDim.x;").tolist() == [6400 + i for i in range(64)]


def test_writes_before_a_barrier_are_visible_after_it():
    body = (
        "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; __syncthreads(); y[threadIdx.x] = s[63 - threadIdx.x];"
    )
    for order in range(3):
        assert run(body, order=order).tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_reads_uninitialised_memory():
    assert all(np.isnan(run(WRITE + READ, order=order)).any() for order in range(3))


@pytest.mark.parametrize(
    "body", ["if (threadIdx.x < 40) __syncthreads();", "if (threadIdx.x == 3) return; __syncthreads();",
             "if (threadIdx.x % 2) y[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1); __syncthreads();"],
)  # fmt: skip
def test_divergent_threads_are_reported(body):
    with pytest.raises(RuntimeError, match=r"block \(0,0,0\): threads diverge.*line 1"):
        run(body)


def test_a_shuffle_reads_the_other_lane():
    body = "y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, float(threadIdx.x), 5);"
    assert run(body).tolist() == [i ^ 5 for i in range(64)]


def test_a_copy_has_arrived_after_the_wait_and_not_before():
    body = """DYNAMIC_SHARED(float, s);
    copy4(s + threadIdx.x, y + threadIdx.x, threadIdx.x > 0); commit_copies();
    float early = s[threadIdx.x]; wait_copies<0>(); y[threadIdx.x] = {} ;"""
    y = np.arange(1, 65, dtype=np.float32)
    run(body.format("s[threadIdx.x]"), y, np.int32(0), shared=256)
    assert y.tolist() == [0, *range(2, 65)]
    run(body.format("early"), y, np.int32(0), shared=256)
    assert np.isnan(y).all()


def test_a_misaligned_copy_is_reported():
    with pytest.raises(RuntimeError, match="not aligned"):
        run("DYNAMIC_SHARED(float, s); copy16(s, y + 1, true); commit_copies(); wait_copies<0>();", shared=256)


@pytest.mark.parametrize(
    "arguments",
    [(np.zeros(64), np.int32(1)), (np.zeros(64, np.float32), np.int64(1)), (np.zeros(64, np.float32), np.float32(1)),
     (np.zeros(64, np.float32),)],
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_refused(arguments):
    with pytest.raises(TypeError):
        run("y[0] = n;", *arguments)


def test_shared_memory_beyond_48_kb_needs_opt_in():
    with pytest.raises(RuntimeError, match="exceed the"):
        run("y[0] = 1;", shared=49 * 1024)


def test_host_and_device_arrays_do_not_mix():
    device, host = fake_cupy.array([1.0, 2.0]), np.ones(2)
    assert (device + device).tolist() == [2, 4] and isinstance(device + 1, fake_cupy.ndarray)
    for mixed in (lambda: device + host, lambda: host * device, lambda: fake_cupy.matmul(device, host)):
        with pytest.raises(TypeError, match="host"):
            mixed()
    with pytest.raises(TypeError):
        device[...] = host


def test_uninitialised_memory_is_nan():
    assert np.isnan(fake_cupy.asnumpy(fake_cupy.empty((2, 3)))).all()
