"""Benchmark cases: operations in the shapes of a U-Net for 32x32 images, the network, the training step.

A `Case` is one row of the table. Its work does not depend on the algorithm: the floating-point operations of the
direct formula (for convolution, attention and networks), or the bytes of every array read and written once (for the
rest). So an algorithm with fewer operations, such as Winograd's, can exceed the machine's peak.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any, TypeVar

import numpy as np

from minidiff.bench import ours
from minidiff.engine.backend import get_backend
from minidiff.engine.nn import Module
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.models.config import TextUNetConfig, UNetConfig
from minidiff.models.default_configs import default_config, default_text_unet

Net = UNetConfig | TextUNetConfig
M = TypeVar("M", bound=Module)

UNET = UNetConfig(
    sample_size=32, block_out_channels=(64, 128, 128, 128), layers_per_block=2, attention_head_dim=32,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
DEMO = default_config((32, 32, 3), 32)
TEXT = default_text_unet((32, 32, 3), 128)
TOKENS = 32  # per text
STABLE = TextUNetConfig(sample_size=64, cross_attention_dim=768)  # Stable Diffusion 1.x, for 512x512 pixels
STABLE_TOKENS = 77

DEFAULT_BATCH = 64
DEMO_BATCH = 32
SAMPLING_BATCHES = (1, 16, 64)
ERROR_BATCH = 4  # images for a network's errors against float64, which is slow


@dataclass(frozen=True, eq=False)
class Case:
    """One computation that both sides run on the same float32 inputs.

    family      the name on the command line: "conv", "step", ...
    op          name of the function in ours.py and rival.py; it gets inputs and settings
    work        work of one run, in floating-point operations (unit "FLOP") or bytes ("B")
    against     the rivals that have the operation
    error_case  the case whose errors are reported; None: this one
    """

    family: str
    label: str
    op: str
    inputs: Callable[[], dict[str, np.ndarray]]
    work: float
    unit: str = "FLOP"
    settings: dict[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ("torch", "numpy")
    error_case: "Case | None" = None

    def __str__(self) -> str:
        return f"{self.family}: {self.label}"


def choose(names: list[str], against: str = "torch", batch: int | None = None) -> list[Case]:
    """The cases of the named families, or of all but LARGE if names is empty, that a rival can run.

    batch: batch size; None: 64, but 32 for the demo's network and the text U-Net, 1, 16 and 64 for network, 1 for
    stable. Raises MinidiffError if a name is unknown.
    """
    for name in names:
        if name not in FAMILIES:
            raise MinidiffError(f"unknown benchmark family {name!r}: choose from {', '.join(FAMILIES)}")
    names = names or [name for name in FAMILIES if name not in LARGE]
    chosen = (family(batch) for name, family in FAMILIES.items() if name in names)
    return [case for cases in chosen for case in cases if against in case.against]


def _normal(**shapes: tuple[int, ...]) -> Callable[[], dict[str, np.ndarray]]:
    """A function that returns standard normal arrays of these shapes."""

    def inputs():
        rng = np.random.default_rng(0)
        return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}

    return inputs


def conv(batch: int | None) -> Iterator[Case]:
    """Convolutions and their gradients."""
    sides = [(32, 64), (32, 128), (32, 256), (16, 64), (16, 128), (16, 256), (8, 128), (8, 256), (4, 128), (4, 256)]
    for side, channels in sides:
        yield from convolution(batch or DEFAULT_BATCH, side, channels, channels, 3)
    for side, channels in ((32, 64), (16, 128)):
        yield from convolution(batch or DEFAULT_BATCH, side, channels, channels, 3, stride=2)
    for side, inputs, outputs in ((32, 192, 64), (16, 256, 128)):
        yield from convolution(batch or DEFAULT_BATCH, side, inputs, outputs, 1)


def convolution(N: int, side: int, C: int, O: int, kernel: int, stride: int = 1) -> Iterator[Case]:
    """One convolution: forward, and each gradient separately."""
    pad = kernel // 2
    x = (N, side, side, C)
    w = (O, kernel, kernel, C)
    dy = (N, side // stride, side // stride, O)
    shape = f"{kernel}x{kernel} {f'/{stride} ' if stride > 1 else ''}{side}px {C}->{O}"
    settings = {"stride": stride, "pad": pad}
    work = 2 * prod(dy) * prod(w[1:])
    yield Case("conv", shape, "conv", _normal(x=x, w=w, bias=(O,)), work, settings=settings)
    for op, name in (("input_gradient", "dx"), ("weight_gradient", "dw")):
        yield Case("conv", f"{shape} {name}", op, _normal(dy=dy, x=x, w=w), work, settings=settings)


def norm(batch: int | None) -> Iterator[Case]:
    """Group normalisation with SiLU, forward and backward: reads x, then x and dy; writes y and dx."""
    for side, C in ((32, 64), (16, 128), (8, 128)):
        x = (batch or DEFAULT_BATCH, side, side, C)
        inputs = _normal(dy=x, x=x, weight=(C,), bias=(C,))
        settings = {"groups": 32, "eps": 1e-5}
        yield Case("norm", f"+ SiLU {side}px {C}", "group_norm_silu", inputs, 5 * 4 * prod(x), "B", settings)


def attention(batch: int | None) -> Iterator[Case]:
    """Self-attention, forward and backward: 2 + 4 matrix products; recomputation in backward is not counted."""
    heads_of = {64: ((4, 32), (2, 64)), 256: ((4, 32), (2, 64), (1, 128), (1, 256)), 1024: ((2, 32), (1, 64))}
    for T, heads, D in ((T, *head) for T, of_T in heads_of.items() for head in of_T):
        N = batch or (DEFAULT_BATCH if T < 1024 else DEFAULT_BATCH // 4)
        q = (N, T, heads, D)
        work = 6 * 2 * N * heads * T * T * D
        label = f"{T} tokens, {heads} x {D}" + (f", batch {N}" if N != (batch or DEFAULT_BATCH) else "")
        yield Case("attention", label, "attention", _normal(do=q, q=q, k=q, v=q), work)


def elementwise(batch: int | None) -> Iterator[Case]:
    """SiLU, forward and backward, and the sum of two arrays."""
    x = (batch or DEFAULT_BATCH, 32, 32, 64)
    yield Case("elementwise", "silu 32px 64", "silu", _normal(dy=x, x=x), 5 * 4 * prod(x), "B")
    yield Case("elementwise", "add 32px 64", "add", _normal(x=x, z=x), 3 * 4 * prod(x), "B")


def resample(batch: int | None) -> Iterator[Case]:
    """Upsampling and concatenation, forward and backward."""
    N = batch or DEFAULT_BATCH
    small = (N, 16, 16, 128)
    large = (N, 32, 32, 128)
    both = (N, 32, 32, 256)
    work = 2 * 4 * (prod(small) + prod(large))
    yield Case("resample", "upsample 16px 128", "upsample", _normal(dy=large, x=small), work, "B")
    work = 2 * 4 * 2 * prod(both)
    yield Case("resample", "concat 32px 128+128", "concat", _normal(dy=both, x=large, z=large), work, "B")


def optim(batch: int | None) -> Iterator[Case]:
    """Clipping, AdamW and EMA over all parameters of the network: reads g twice; reads and writes p, m, v, ema."""
    shapes = [p.shape for p in ours.unet(get_backend("numpy"), UNET).parameters()]
    P = sum(map(prod, shapes))

    def inputs():
        arrays = _normal(p=(P,), g=(P,), m=(P,), v=(P,), ema=(P,))()
        return arrays | {"v": arrays["v"] ** 2}

    label = f"AdamW, clip, EMA {P / 1e6:.1f} M"
    yield Case("optim", label, "adamw", inputs, 10 * 4 * P, "B", {"step": 3, "shapes": shapes})


def network(batch: int | None) -> Iterator[Case]:
    """One evaluation of the network without a tape, as in sampling."""
    for N in SAMPLING_BATCHES if batch is None else (batch,):
        inputs = _network_inputs(UNET, N, "x_t", "t")
        work = N * flop(UNET)
        settings = {"config": UNET}
        error_case = _error_case(UNET, N)
        yield Case("network", f"no tape, batch {N}", "network", inputs, work, settings=settings, error_case=error_case)


def stable(batch: int | None) -> Iterator[Case]:
    """One evaluation of Stable Diffusion's full-size U-Net; the errors are those of the small text U-Net."""
    N = batch or 1
    yield Case(
        "stable",
        f"Stable Diffusion 1.x, no tape, batch {N}",
        "large_network",
        _network_inputs(STABLE, N, "x_t", "t"),
        N * flop(STABLE),
        settings={"config": STABLE},
        against=("torch",),
        error_case=_error_case(TEXT, ERROR_BATCH),
    )


def step(batch: int | None) -> Iterator[Case]:
    """Training steps. The gradients by input and by weight each take as many operations as the forward pass."""
    nets = (("U-Net", UNET, DEFAULT_BATCH), ("demo's net", DEMO, DEMO_BATCH), ("text U-Net", TEXT, DEMO_BATCH))
    for name, config, default in nets:
        yield training_step(name, config, batch or default)


def training_step(name: str, config: Net, N: int) -> Case:
    """The training step of one network; a text U-Net's does not include the text encoder."""
    inputs = _network_inputs(config, N, "x_t", "t", "eps")
    work = 3 * N * flop(config)
    settings = {"config": config}
    error_case = _error_case(config, N)
    return Case("step", f"{name}, batch {N}", "training_step", inputs, work, settings=settings, error_case=error_case)


@cache
def _error_case(config: Net, N: int) -> Case:
    """The case for a network's errors: output and gradient for a small batch."""
    inputs = _network_inputs(config, min(N, ERROR_BATCH), "x_t", "t", "eps")
    return Case("", "", "network_and_gradient", inputs, 0, settings={"config": config})


def _network_inputs(config: Net, N: int, *names: str) -> Callable[[], dict[str, np.ndarray]]:
    """The named ones of x_t, t and eps for a network; and text embeddings for a text U-Net."""
    side: Any = config.sample_size
    shape = (N, side, side, config.in_channels)
    context = {}
    if isinstance(config, TextUNetConfig):
        context["text"] = (N, STABLE_TOKENS if config == STABLE else TOKENS, config.cross_attention_dim)

    def inputs():
        arrays = _normal(x_t=shape, eps=shape, **context)() | {"t": np.random.default_rng(1).integers(0, 1000, N)}
        return {name: arrays[name] for name in (*names, *context)}

    return inputs


@cache
def flop(config: Net) -> int:
    """Floating-point operations of a U-Net's convolutions and matrix products for one image, as `counted_flop`."""
    inputs = _network_inputs(config, 1, "x_t", "t")()
    unet = ours.unet(get_backend("numpy"), config, rng=None)
    return counted_flop(unet, lambda unet: unet(inputs["x_t"], inputs["t"], inputs.get("text")))


def counted_flop(network: M, run: Callable[[M], object]) -> int:
    """Floating-point operations of the network's convolutions and matrix products in run(network).

    Counted with convolutions and attention that return zeros without computing anything.
    """
    total = 0

    def conv2d(x, w, bias, stride, pad, *rest):
        nonlocal total
        N, H, W, _ = x.shape
        O, KH, KW, _ = w.shape
        top, bottom, left, right = pad
        y = np.zeros((N, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1, O), np.float32)
        total += 2 * y.size * w[0].size
        return y

    def attention(q, k, v, *rest):
        nonlocal total
        total += 2 * 2 * q.size * k.shape[1]
        return np.zeros_like(q), None

    reference = get_backend("numpy")
    counting = replace(reference, kernels={**reference.kernels, "conv2d": conv2d, "attention": attention})
    network = network.to("numpy")
    for p in network.parameters():
        p.backend = counting
    with no_grad():
        run(network)
    return total


FAMILIES: dict[str, Callable[[int | None], Iterator[Case]]] = {
    "step": step, "network": network, "conv": conv, "norm": norm, "attention": attention, "elementwise": elementwise,
    "resample": resample, "optim": optim, "stable": stable,
}  # fmt: skip
LARGE = ("stable",)  # only if named: the weights take 3.4 GB on each side, and torch holds them twice
