"""What is measured: operations in the shapes that a U-Net for 32x32 pictures has, the network, the training step.

A `Case` is one line of the table. Its work is counted as the plain formula has it, whatever way a kernel goes:
a convolution's sum over taps and channels for the floating-point operations of all that is made of products, and
arrays read and written once for the bytes of the rest. So a kernel that does with fewer operations than the formula, as
Winograd's does, can be faster than the machine's peak.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from minidiff.bench import ours
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig, default_config
from minidiff.models.latent_config import TextUNetConfig, default_text_unet

Net = UNetConfig | TextUNetConfig

UNET = UNetConfig(
    sample_size=32, block_out_channels=(64, 128, 128, 128), layers_per_block=2, attention_head_dim=32,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
DEMO = default_config((32, 32, 3), 32)
TEXT = default_text_unet((32, 32, 3), 128)
WORDS = 32  # of each text
STABLE = TextUNetConfig(sample_size=64, cross_attention_dim=768)  # Stable Diffusion 1.x, for 512x512 pixels
STABLE_WORDS = 77

BATCH, DEMO_BATCH, SAMPLING = 64, 32, (1, 16, 64)
JUDGED = 4  # pictures for whose gradient a network is judged: float64 takes its time


@dataclass(frozen=True, eq=False)
class Case:
    """One computation that both sides do, on the same float32 inputs.

    family    what one asks for: "conv", "step", ...
    op        the name of the function in ours.py and in rival.py; it gets inputs and settings
    work      how much one run is: floating-point operations ("FLOP") or bytes ("B")
    against   the rivals that have the operation
    judged    the case whose errors are shown, if not its own
    """

    family: str
    label: str
    op: str
    inputs: Callable[[], dict[str, np.ndarray]]
    work: float
    unit: str = "FLOP"
    settings: dict[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ("torch", "numpy")
    judged: "Case | None" = None

    def __str__(self) -> str:
        return f"{self.family}: {self.label}"


def choose(names: list[str], against: str = "torch", batch: int | None = None) -> list[Case]:
    """The cases of the families named, all but the LARGE if none is, for a rival, in their order.

    batch: pictures at a time; None: 64, but 32 for the demo's network, 1, 16 and 64 without a tape, 1 of stable.
    Raises MinidiffError for a name that is no family.
    """
    for name in names:
        if name not in FAMILIES:
            raise MinidiffError(f"nothing called {name!r} to measure: choose from {', '.join(FAMILIES)}")
    names = names or [name for name in FAMILIES if name not in LARGE]
    wanted = (family(batch) for name, family in FAMILIES.items() if name in names)
    return [case for cases in wanted for case in cases if against in case.against]


def _draw(**shapes: tuple[int, ...]) -> Callable[[], dict[str, np.ndarray]]:
    """Normal numbers of these shapes, drawn when they are needed."""

    def inputs():
        rng = np.random.default_rng(0)
        return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}

    return inputs


def conv(batch: int | None) -> Iterator[Case]:
    """Convolutions, and each of their gradients."""
    sides = [(32, 64), (32, 128), (32, 256), (16, 64), (16, 128), (16, 256), (8, 128), (8, 256), (4, 128), (4, 256)]
    for side, channels in sides:
        yield from convolution(batch or BATCH, side, channels, channels, 3)
    for side, channels in ((32, 64), (16, 128)):
        yield from convolution(batch or BATCH, side, channels, channels, 3, stride=2)
    for side, inputs, outputs in ((32, 192, 64), (16, 256, 128)):
        yield from convolution(batch or BATCH, side, inputs, outputs, 1)


def convolution(N: int, side: int, C: int, O: int, kernel: int, stride: int = 1) -> Iterator[Case]:
    """One of them: forward, and each gradient on its own where the rival has that."""
    after, pad = side // stride, kernel // 2
    x, w, dy = (N, side, side, C), (O, kernel, kernel, C), (N, after, after, O)
    shape = f"{kernel}x{kernel} {f'/{stride} ' if stride > 1 else ''}{side}px {C}->{O}"
    settings, work = {"stride": stride, "pad": pad}, 2 * prod(dy) * prod(w[1:])
    yield Case("conv", shape, "conv", _draw(x=x, w=w, bias=(O,)), work, settings=settings)
    for op, name, factor, against in (
        ("input_gradient", "dx", 1, ("torch",)),
        ("weight_gradient", "dw", 1, ("torch", "numpy")),
        ("conv_gradients", "dx, dw", 2, ("numpy",)),  # the reference has no dx on its own
    ):
        draw = _draw(dy=dy, x=x, w=w)
        yield Case("conv", f"{shape} {name}", op, draw, factor * work, settings=settings, against=against)


def norm(batch: int | None) -> Iterator[Case]:
    """Group normalisation with SiLU, forward and backward: x, then x and dy are read; y and dx are written."""
    for side, C in ((32, 64), (16, 128), (8, 128)):
        x = (batch or BATCH, side, side, C)
        draw = _draw(dy=x, x=x, weight=(C,), bias=(C,))
        settings = {"groups": 32, "eps": 1e-5}
        yield Case("norm", f"+ SiLU {side}px {C}", "group_norm_silu", draw, 5 * 4 * prod(x), "B", settings)


def attention(batch: int | None) -> Iterator[Case]:
    """Self-attention, forward and backward: two products, then four; what backward computes again is not counted."""
    heads_of = {64: ((4, 32), (2, 64)), 256: ((4, 32), (2, 64), (1, 128), (1, 256)), 1024: ((2, 32), (1, 64))}
    for T, heads, D in ((T, *head) for T, of_T in heads_of.items() for head in of_T):
        N = batch or (BATCH if T < 1024 else BATCH // 4)
        q = (N, T, heads, D)
        work = 6 * 2 * N * heads * T * T * D
        label = f"{T} tokens, {heads} x {D}" + (f", batch {N}" if N != (batch or BATCH) else "")
        yield Case("attention", label, "attention", _draw(do=q, q=q, k=q, v=q), work)


def elementwise(batch: int | None) -> Iterator[Case]:
    """SiLU, forward and backward, and the sum of two arrays."""
    x = (batch or BATCH, 32, 32, 64)
    yield Case("elementwise", "silu 32px 64", "silu", _draw(dy=x, x=x), 5 * 4 * prod(x), "B")
    yield Case("elementwise", "add 32px 64", "add", _draw(x=x, z=x), 3 * 4 * prod(x), "B")


def resample(batch: int | None) -> Iterator[Case]:
    """Upsampling and joining, forward and backward."""
    N = batch or BATCH
    small, large, joined = (N, 16, 16, 128), (N, 32, 32, 128), (N, 32, 32, 256)
    moved = 2 * 4 * (prod(small) + prod(large))
    yield Case("resample", "upsample 16px 128", "upsample", _draw(dy=large, x=small), moved, "B")
    moved = 2 * 4 * 2 * prod(joined)
    yield Case("resample", "concat 32px 128+128", "concat", _draw(dy=joined, x=large, z=large), moved, "B")


def optim(batch: int | None) -> Iterator[Case]:
    """Clipping, AdamW and the moving average over all parameters of the network: g twice, p, m, v, ema both ways."""
    shapes = [p.shape for p in ours.unet(get_backend("numpy"), UNET).parameters()]
    P = sum(map(prod, shapes))

    def inputs():
        drawn = _draw(p=(P,), g=(P,), m=(P,), v=(P,), ema=(P,))()
        return drawn | {"v": drawn["v"] ** 2}

    label = f"AdamW, clip, EMA {P / 1e6:.1f} M"
    yield Case("optim", label, "adamw", inputs, 10 * 4 * P, "B", {"step": 3, "shapes": shapes})


def network(batch: int | None) -> Iterator[Case]:
    """One evaluation of the network without a tape, as in drawing."""
    for N in SAMPLING if batch is None else (batch,):
        draw, settings = _noisy(UNET, N, "x_t", "t"), {"config": UNET}
        label = f"no tape, batch {N}"
        yield Case("network", label, "network", draw, N * flop(UNET), settings=settings, judged=_judged(UNET, N))


def stable(batch: int | None) -> Iterator[Case]:
    """One evaluation of Stable Diffusion's U-Net in its real size; its errors are those of the small text U-Net."""
    N = batch or 1
    draw, settings = _noisy(STABLE, N, "x_t", "t"), {"config": STABLE}
    label, work = f"Stable Diffusion 1.x, no tape, batch {N}", N * flop(STABLE)
    against, judged = ("torch",), _judged(TEXT, JUDGED)
    yield Case("stable", label, "large_network", draw, work, settings=settings, against=against, judged=judged)


def step(batch: int | None) -> Iterator[Case]:
    """Whole training steps. The gradients by input and by weight each take as many operations as the way forward."""
    nets = (("U-Net", UNET, BATCH), ("demo's net", DEMO, DEMO_BATCH), ("text U-Net", TEXT, DEMO_BATCH))
    for name, config, usual in nets:
        yield training_step(name, config, batch or usual)


def training_step(name: str, config: Net, N: int) -> Case:
    """The step of one network; of a text U-Net's without the text encoder."""
    draw, settings = _noisy(config, N, "x_t", "t", "eps"), {"config": config}
    label, work = f"{name}, batch {N}", 3 * N * flop(config)
    return Case("step", label, "training_step", draw, work, settings=settings, judged=_judged(config, N))


@cache
def _judged(config: Net, N: int) -> Case:
    """Where the errors of a network come from: a few pictures of its batch."""
    draw = _noisy(config, min(N, JUDGED), "x_t", "t", "eps")
    return Case("", "", "network_and_gradient", draw, 0, settings={"config": config})


def _noisy(config: Net, N: int, *names: str) -> Callable[[], dict[str, np.ndarray]]:
    """Of x_t, t and eps those that are named, for a network; and what it hears, if it does."""
    side: Any = config.sample_size
    shape = (N, side, side, config.in_channels)
    heard = {}
    if isinstance(config, TextUNetConfig):
        heard["text"] = (N, STABLE_WORDS if config == STABLE else WORDS, config.cross_attention_dim)

    def inputs():
        drawn = _draw(x_t=shape, eps=shape, **heard)() | {"t": np.random.default_rng(1).integers(0, 1000, N)}
        return {name: drawn[name] for name in (*names, *heard)}

    return inputs


@cache
def flop(config: Net) -> int:
    """Floating-point operations of the network's products for one picture, counted on the way through it.

    Nothing is multiplied: the results are zeros.
    """
    total = 0

    def conv2d(x, w, bias, stride, pad, *rest):
        nonlocal total
        (N, H, W, _), (O, KH, KW, _), (top, bottom, left, right) = x.shape, w.shape, pad
        y = np.zeros((N, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1, O), np.float32)
        total += 2 * y.size * w[0].size
        return y

    def attention(q, k, v, *rest):
        nonlocal total
        total += 2 * 2 * q.size * k.shape[1]
        return np.zeros_like(q), None

    counting = replace(get_backend("numpy"), conv2d=conv2d, attention=attention)
    unet = ours.unet(counting, config, rng=None)
    given = _noisy(config, 1, "x_t", "t")()
    with no_grad():
        unet(given["x_t"], given["t"], given.get("text"))
    return total


FAMILIES: dict[str, Callable[[int | None], Iterator[Case]]] = {
    "step": step, "network": network, "conv": conv, "norm": norm, "attention": attention, "elementwise": elementwise,
    "resample": resample, "optim": optim, "stable": stable,
}  # fmt: skip
LARGE = ("stable",)  # only if asked for: both sides' weights take 3.4 GB each, and torch has them twice
