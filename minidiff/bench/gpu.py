"""On a GPU: ours beside PyTorch with CUDA and cuDNN in its three modes, and with torch.compile if asked.

float32       NCHW, TF32 forbidden
tf32          channels_last, convolutions and products rounded to TF32 on tensor cores
bfloat16      channels_last, autocast

Kernels are recorded once as a CUDA graph and replayed, so that what Python does to start them is left out. The network
and the training step run as they are. cuDNN tries all its algorithms first and keeps the fastest.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidiff.bench import ours
from minidiff.bench.cases import Case
from minidiff.bench.measure import Rival, Row, Side, in_turn
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError
from minidiff.runs import machine

WHOLE = ("network", "step", "optim")  # families that are not recorded: torch's AdamW cannot be
REPLAYS = 10  # of a graph, between two looks at the clock
WARMING = 3
KINDS = ("cuda float32", "cuda tf32", "cuda bfloat16")


def open_rival(name: str) -> Rival:
    """PyTorch on the GPU, for the backend of that name.

    Raises MinidiffError for a backend that is not a GPU's, and where torch or diffusers is missing or sees no GPU.
    """
    if not name.startswith("cupy"):
        raise MinidiffError(f"nothing to measure on backend {name!r}: choose numba, cupy or cupy-tf32")
    backend = get_backend(name)
    try:
        from minidiff.bench import rival
    except ImportError as error:
        raise MinidiffError(f"torch and diffusers are needed ({error}): pip install torch diffusers") from None
    torch = rival.torch
    if not torch.cuda.is_available():
        raise MinidiffError("this torch sees no GPU: install one for CUDA, from pytorch.org")
    torch.backends.cudnn.benchmark = True
    facts = {key: value for key, value in machine.describe().items() if key in ("minidiff", "Python", "NumPy")}
    facts |= {
        "GPU": torch.cuda.get_device_name(), "CuPy": backend.xp.__version__, "torch": torch.__version__,
        "cuDNN": torch.backends.cudnn.version(), "backend": name,
    }  # fmt: skip

    def kinds(op: str, compiled: bool) -> list[str]:
        return [*KINDS, *(["cuda compiled"] if compiled else [])]

    def prepare(kind: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
        with _precision(torch, "tf32" in kind):
            run = rival.prepare(kind, case.op, inputs, case.settings)
        return Side(run, rival.host)

    return Rival("torch", kinds, prepare, facts)


@contextmanager
def _precision(torch: Any, tf32: bool) -> Iterator[None]:
    """What torch may do to float32 within this block."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    yield


def measure(case: Case, rival: Rival, backend: str, compiled: bool = False, rounds: int | None = None) -> Row:
    """Time a case on the backend and in every mode of the rival, in turn. Errors are what the tests are for."""
    from minidiff.bench.rival import torch

    inputs, own = case.inputs(), get_backend(backend)
    cupy = own.xp
    runs = {"ours": _timed(case, ours.prepare(own, case.op, inputs, case.settings), cupy, _recorded_by_cupy)}
    for kind in rival.kinds(case.op, compiled):
        side = rival.prepare(kind, case, inputs)

        def record(run, _, kind=kind):
            return _recorded_by_torch(run, torch)

        run = _in_precision(side.run, torch, "tf32" in kind)
        runs[kind.removeprefix("cuda ")] = _timed(case, run, cupy, record)
    seconds = in_turn(runs, rounds)
    each = 1 if case.family in WHOLE else REPLAYS
    seconds = {name: [s / each for s in times] for name, times in seconds.items()}
    return Row(case, seconds, {}, "tf32" if backend == "cupy-tf32" else "float32")


def _in_precision(run: Callable, torch: Any, tf32: bool) -> Callable:
    def wrapped():
        with _precision(torch, tf32):
            return run()

    return wrapped


def _timed(case: Case, run: Callable, cupy: Any, record: Callable) -> Callable[[], None]:
    """run, ready to be timed: it ends when the GPU has ended."""
    for _ in range(WARMING):
        run()
    replay, times = (run, 1) if case.family in WHOLE else (record(run, cupy), REPLAYS)

    def whole(inputs=run):  # a graph knows where they lie, but does not keep them
        for _ in range(times):
            replay()
        cupy.cuda.runtime.deviceSynchronize()

    return whole


def _recorded_by_cupy(run: Callable, cupy: Any) -> Callable[[], None]:
    """The kernels of a run as a graph; its memory stays with it."""
    cupy.cuda.runtime.deviceSynchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()  # the stream's own pool takes its memory now: it must not while a graph is recorded
        stream.synchronize()
        stream.begin_capture()
        try:
            kept = run()
        except NotImplementedError:  # CuPy's cuBLAS, which attention with wide heads needs, cannot be recorded
            return run
        finally:
            graph = stream.end_capture()

    def replay(kept=kept):
        graph.launch(stream)

    return replay


def _recorded_by_torch(run: Callable, torch: Any) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peaks(backend: str) -> dict[str, float]:
    """The most that this card does for cuBLAS, in the backend's precision, and when it copies: a second's work."""
    from minidiff.bench.rival import torch

    side = 8192
    a, b = (torch.randn(side, side, device="cuda") for _ in range(2))
    source = torch.randn(1 << 28, device="cuda")
    to = torch.empty_like(source)
    with _precision(torch, backend == "cupy-tf32"):
        product = _best(lambda: a @ b, torch)
    return {"FLOP": 2 * side**3 / product, "B": 2 * source.nbytes / _best(lambda: to.copy_(source), torch)}


def _best(run: Callable, torch: Any) -> float:
    """Seconds of the best of ten runs, after one that warms up."""
    times = []
    for _ in range(11):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
