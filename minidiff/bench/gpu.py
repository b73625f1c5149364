"""Benchmarks on a GPU: ours beside PyTorch with CUDA and cuDNN in three modes, and torch.compile as an option.

float32       NCHW, TF32 disabled
tf32          channels_last, convolutions and matrix products in TF32 on tensor cores
bfloat16      channels_last, autocast

Single operations are captured in a CUDA graph and replayed, which excludes Python's launch overhead. Networks, training
steps and AdamW run eagerly. cuDNN benchmarks its algorithms first and uses the fastest.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidiff import machine
from minidiff.bench import ours
from minidiff.bench.cases import Case
from minidiff.bench.measure import Rival, Row, Side, in_turn
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

EAGER = ("network", "step", "optim")  # families without a CUDA graph; torch's AdamW cannot be captured
REPLAYS = 10  # of a graph, per timed round
WARMUP_RUNS = 3
MODES = ("cuda float32", "cuda tf32", "cuda bfloat16")


def open_rival(name: str) -> Rival:
    """PyTorch on the GPU, to compare with the backend of that name.

    Raises MinidiffError if the backend is not a GPU's, torch or diffusers is not installed, or torch sees no GPU.
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

    def modes(op: str, compiled: bool) -> list[str]:
        return [*MODES, *(["cuda compiled"] if compiled else [])]

    def prepare(mode: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
        with _precision(torch, "tf32" in mode):
            run = rival.prepare(mode, case.op, inputs, case.settings)
        return Side(run, rival.host)

    return Rival("torch", modes, prepare, facts)


@contextmanager
def _precision(torch: Any, tf32: bool) -> Iterator[None]:
    """Within this block torch may, or may not, compute float32 operations in TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    yield


def measure(case: Case, rival: Rival, backend: str, compiled: bool = False, rounds: int | None = None) -> Row:
    """Interleaved timing of a case on the backend and in every mode of the rival; no errors, which the tests check."""
    from minidiff.bench.rival import torch

    inputs = case.inputs()
    our_backend = get_backend(backend)
    cupy = our_backend.xp
    runs = {"ours": _timed(case, ours.prepare(our_backend, case.op, inputs, case.settings), cupy, _recorded_by_cupy)}
    for mode in rival.modes(case.op, compiled):
        side = rival.prepare(mode, case, inputs)
        run = _in_precision(side.run, torch, "tf32" in mode)
        runs[mode.removeprefix("cuda ")] = _timed(case, run, cupy, lambda run, _: _recorded_by_torch(run, torch))
    seconds = in_turn(runs, rounds)
    repeats = 1 if case.family in EAGER else REPLAYS
    seconds = {name: [s / repeats for s in times] for name, times in seconds.items()}
    return Row(case, seconds, {}, "tf32" if backend == "cupy-tf32" else "float32")


def _in_precision(run: Callable, torch: Any, tf32: bool) -> Callable:
    def wrapped():
        with _precision(torch, tf32):
            return run()

    return wrapped


def _timed(case: Case, run: Callable, cupy: Any, record: Callable) -> Callable[[], None]:
    """A function to be timed: runs or replays, then waits for the GPU."""
    for _ in range(WARMUP_RUNS):
        run()
    eager = case.family in EAGER
    replay = run if eager else record(run, cupy)

    def timed(keep_alive=run):  # a graph refers to the memory of run's inputs without owning it
        for _ in range(1 if eager else REPLAYS):
            replay()
        cupy.cuda.runtime.deviceSynchronize()

    return timed


def _recorded_by_cupy(run: Callable, cupy: Any) -> Callable[[], None]:
    """A function that replays the kernels of run as a CUDA graph; it keeps their memory alive."""
    cupy.cuda.runtime.deviceSynchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()  # allocates in the stream's memory pool, which is not allowed during capture
        stream.synchronize()
        stream.begin_capture()
        try:
            results = run()
        except NotImplementedError:  # CuPy cannot capture cuBLAS, which attention with wide heads uses
            return run
        finally:
            graph = stream.end_capture()

    def replay(keep_alive=results):
        graph.launch(stream)

    return replay


def _recorded_by_torch(run: Callable, torch: Any) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peaks(backend: str) -> dict[str, float]:
    """Peak rates, "FLOP" and "B" per second: of cuBLAS in the backend's precision, and of a device copy."""
    from minidiff.bench.rival import torch

    side = 8192
    a, b = (torch.randn(side, side, device="cuda") for _ in range(2))
    source = torch.randn(1 << 28, device="cuda")
    destination = torch.empty_like(source)
    with _precision(torch, backend == "cupy-tf32"):
        product = _best(lambda: a @ b, torch)
    return {"FLOP": 2 * side**3 / product, "B": 2 * source.nbytes / _best(lambda: destination.copy_(source), torch)}


def _best(run: Callable, torch: Any) -> float:
    """Seconds of the fastest of ten runs, after one warm-up run."""
    times = []
    for _ in range(11):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
