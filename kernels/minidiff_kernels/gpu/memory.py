"""Arrays on the GPU, from CuPy's memory pool."""

from collections import deque

import numpy as np

from .launch import cp

pending = deque()  # (event, host memory) of copies to the host, which keeps the memory alive until they have finished


def empty(shape):
    """An uninitialised float32 array."""
    return cp.empty(shape, np.float32)


def asarray(a):
    """A contiguous float32 array on the GPU with the values of `a`; `a` itself if it is one."""
    if isinstance(a, cp.ndarray):
        return a if a.dtype == np.float32 and a.flags.c_contiguous else cp.array(a, np.float32, order="C")
    return cp.array(np.asarray(a), np.float32, order="C")


def to_numpy(a):
    """The same values in host memory; waits for the GPU."""
    return cp.asnumpy(a)


def later(a):
    """A function that waits for a copy of `a` and returns it in host memory; the copy starts now.

    The host memory is pinned (page-locked): a copy to other memory would block here.
    """
    while pending and pending[0][0].done:
        pending.popleft()
    pinned = np.frombuffer(cp.cuda.alloc_pinned_memory(a.nbytes), a.dtype, a.size).reshape(a.shape)
    a.get(out=pinned, blocking=False)
    done = cp.cuda.Event(disable_timing=True)
    done.record()
    pending.append((done, pinned))

    def wait():
        done.synchronize()
        return pinned

    return wait
