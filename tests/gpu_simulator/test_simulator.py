"""The simulator sees what a GPU would not tell: threads that part ways, wrong arguments, memory that nobody wrote."""

import fake_cupy
import numpy as np
import pytest
from simulator import Kernel, Module

WRITE, READ = "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x;", "y[threadIdx.x] = s[63 - threadIdx.x];"
KERNEL = 'extern "C" __global__ void __launch_bounds__(64) f(float* y, int n) {{ {} }}'


def run(body: str, *arguments, order: int = 0, shared: int = 0, **changes) -> np.ndarray:
    """A kernel of 64 threads with that body, over 64 numbers."""
    y = np.zeros(64, np.float32)
    Module.order = order
    try:
        kernel = Kernel(Module(KERNEL.format(body)), "f")
        kernel((1,), (64,), arguments or (y, np.int32(64)), shared_mem=shared)
    finally:
        Module.order = 0
    return y


def test_threads_know_who_they_are():
    assert run("y[threadIdx.x] = threadIdx.x + 100 * blockDim.x;").tolist() == [6400 + i for i in range(64)]


def test_a_barrier_lets_all_see_what_all_have_written():
    body = (
        "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; __syncthreads(); y[threadIdx.x] = s[63 - threadIdx.x];"
    )
    for order in range(3):
        assert run(body, order=order).tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_reads_what_was_not_written():
    assert all(np.isnan(run(WRITE + READ, order=order)).any() for order in range(3))


@pytest.mark.parametrize(
    "body", ["if (threadIdx.x < 40) __syncthreads();", "if (threadIdx.x == 3) return; __syncthreads();",
             "if (threadIdx.x % 2) y[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1); __syncthreads();"],
)  # fmt: skip
def test_threads_that_part_ways_are_reported(body):
    with pytest.raises(RuntimeError, match=r"block \(0,0,0\): threads part ways.*line 1"):
        run(body)


def test_a_shuffle_takes_the_other_lane_s_number():
    body = "y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, float(threadIdx.x), 5);"
    assert run(body).tolist() == [i ^ 5 for i in range(64)]


def test_a_copy_is_there_when_it_was_waited_for_and_not_before():
    body = """DYNAMIC_SHARED(float, s);
    copy4(s + threadIdx.x, y + threadIdx.x, threadIdx.x > 0); end_copies();
    float early = s[threadIdx.x]; wait_copies<0>(); y[threadIdx.x] = {} ;"""
    y = np.arange(1, 65, dtype=np.float32)
    run(body.format("s[threadIdx.x]"), y, np.int32(0), shared=256)
    assert y.tolist() == [0, *range(2, 65)]
    run(body.format("early"), y, np.int32(0), shared=256)
    assert np.isnan(y).all()


def test_a_copy_that_is_not_aligned_is_reported():
    with pytest.raises(RuntimeError, match="not aligned"):
        run("DYNAMIC_SHARED(float, s); copy16(s, y + 1, true); end_copies(); wait_copies<0>();", shared=256)


@pytest.mark.parametrize(
    "arguments",
    [(np.zeros(64), np.int32(1)), (np.zeros(64, np.float32), np.int64(1)), (np.zeros(64, np.float32), np.float32(1)),
     (np.zeros(64, np.float32),)],
)  # fmt: skip
def test_arguments_of_the_wrong_kind_are_refused(arguments):
    with pytest.raises(TypeError):
        run("y[0] = n;", *arguments)


def test_shared_memory_beyond_48_kb_must_be_asked_for():
    with pytest.raises(RuntimeError, match="not asked for"):
        run("y[0] = 1;", shared=49 * 1024)


def test_arrays_of_the_host_and_of_the_device_do_not_mix():
    device, host = fake_cupy.array([1.0, 2.0]), np.ones(2)
    assert (device + device).tolist() == [2, 4] and isinstance(device + 1, fake_cupy.ndarray)
    for mixed in (lambda: device + host, lambda: host * device, lambda: fake_cupy.matmul(device, host)):
        with pytest.raises(TypeError, match="host"):
            mixed()
    with pytest.raises(TypeError):
        device[...] = host


def test_fresh_memory_is_nan():
    assert np.isnan(fake_cupy.asnumpy(fake_cupy.empty((2, 3)))).all()
