"""Arrays on the GPU, out of CuPy's pool: what one step gives back the next one takes."""

from collections import deque

import numpy as np

from .launch import cp

under_way = deque()  # (event, memory) of copies to the host: CuPy must not give the memory to others before they end


def empty(shape):
    """An array of the given shape whose contents are arbitrary."""
    return cp.empty(shape, np.float32)


def asarray(a):
    """A contiguous float32 array on the GPU with the values of `a`; `a` itself if it is one."""
    if isinstance(a, cp.ndarray):
        return a if a.dtype == np.float32 and a.flags.c_contiguous else cp.array(a, np.float32, order="C")
    return cp.array(np.asarray(a), np.float32, order="C")


def to_numpy(a):
    """The same values in host memory; this waits for them."""
    return cp.asnumpy(a)


def later(a):
    """A function that gives these values in host memory; it alone waits for them.

    They are on their way from here on. The memory that they come to is pinned: to other memory, CuPy's copy would wait.
    """
    while under_way and under_way[0][0].done:
        under_way.popleft()
    pinned = np.frombuffer(cp.cuda.alloc_pinned_memory(a.nbytes), a.dtype, a.size).reshape(a.shape)
    a.get(out=pinned, blocking=False)
    come = cp.cuda.Event(disable_timing=True)
    come.record()
    under_way.append((come, pinned))

    def wait():
        come.synchronize()
        return pinned

    return wait
