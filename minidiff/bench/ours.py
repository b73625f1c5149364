"""Each operation on one of our backends. Every function does the setup and returns `run`, which is timed.

run() -> results by name: the output "y", the gradients "dx", "dw", ... On the backend "numpy" everything also works in
float64, which gives the true values where there is no torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.engine.backend import Backend, get_backend
from minidiff.engine.losses import mse
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.models.blocks import timestep_embedding
from minidiff.models.config import TextUNetConfig
from minidiff.models.text_unet import TextUNet
from minidiff.models.unet import UNet

RATE, CLIP, EMA = 1e-4, 1.0, 0.999  # of every training step; rival.py uses the same


def conv(backend, x, w, bias, stride, pad):
    return lambda: {"y": backend.conv2d(x, w, bias, stride, (pad,) * 4)}


def input_gradient(backend, dy, x, w, stride, pad):
    return lambda: {"dx": backend.conv2d_backward(dy, x, w, stride, (pad,) * 4, need_dw=False)[0]}


def weight_gradient(backend, dy, x, w, stride, pad):
    def run():
        _, dw, dbias = backend.conv2d_backward(dy, x, w, stride, (pad,) * 4, need_dx=False)
        return {"dw": dw, "dbias": dbias}

    return run


def group_norm_silu(backend, dy, x, weight, bias, groups, eps):
    def run():
        y, mean, rstd = backend.group_norm(x, weight, bias, groups, eps, True)
        dx, dweight, dbias = backend.group_norm_backward(dy, x, weight, bias, mean, rstd, True)
        return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}

    return run


def attention(backend, do, q, k, v):
    def run():
        o, lse = backend.attention(q, k, v)
        dq, dk, dv = backend.attention_backward(do, q, k, v, o, lse)
        return {"o": o, "dq": dq, "dk": dk, "dv": dv}

    return run


def silu(backend, dy, x):
    return lambda: {"y": backend.silu(x), "dx": backend.silu_backward(dy, x)}


def add(backend, x, z):
    return lambda: {"y": backend.add(x, z)}


def upsample(backend, dy, x):
    return lambda: {"y": backend.upsample_nearest(x), "dx": backend.upsample_nearest_backward(dy)}


def concat(backend, dy, x, z):
    def run():
        dx, dz = backend.concat_backward(dy, x.shape[-1])
        return {"y": backend.concat(x, z), "dx": dx, "dz": dz}

    return run


def adamw(backend, p, g, m, v, ema, step, shapes):
    """Everything after backward, on flat buffers: gradient norm, clipping, update, EMA."""

    def run():
        norm = backend.grad_norm(g)
        backend.adamw(p, g, m, v, ema, norm, CLIP, RATE, 0.9, 0.999, 1e-8, 0.01, step, EMA)
        return {"p": p, "m": m, "v": v, "ema": ema}

    return run


def network(backend, x_t, t, config, text=None):
    """One evaluation without a tape, as in a sampling step."""
    net = unet(backend, config)

    def run():
        with no_grad():
            return {"y": net(x_t, t, text).data}

    return run


def network_and_gradient(backend, x_t, t, eps, config, text=None):
    """The output, and the gradient of the loss by all parameters, concatenated."""
    net = unet(backend, config, x_t.dtype)
    embedding = Tensor(sinusoids(config, t).astype(x_t.dtype), backend)
    net._temb = lambda *_: net.time_embedding(embedding)  # its own sinusoids are float32

    def run():
        for p in net.parameters():
            p.grad = None
        y = net(x_t, t, text)
        mse(y, eps).backward()
        return {"y": y.data, "gradient": np.concatenate([backend.to_numpy(p.grad).ravel() for p in net.parameters()])}

    return run


def training_step(backend, x_t, t, eps, config, text=None):
    """Forward, backward, clipping, AdamW, EMA."""
    net = unet(backend, config)
    optimizer = AdamW(net.parameters(), RATE, clip=CLIP, ema=EMA)

    def run():
        optimizer.zero_grad()
        mse(net(x_t, t, text), eps).backward()
        optimizer.step()

    return run


def unet(backend, config, dtype=np.float32, rng: int | None = 0) -> Any:
    """A UNet or TextUNet with the initial weights of both sides; rng is their seed, None for zeros."""
    generator = None if rng is None else np.random.default_rng(rng)
    text = isinstance(config, TextUNetConfig)
    net = TextUNet(config, generator, "numpy") if text else UNet(config, generator, "numpy")
    if backend.name == "numba-bf16":
        return net.to(backend.name)
    for p in net.parameters():
        p.backend = backend
        p.data = backend.asarray(p.data.astype(dtype, copy=False))
    return net


def bfloat16(op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """The run of one evaluation of a network in bfloat16; of an `op` with gradients, which are float32, that part."""
    evaluated = {name: a for name, a in inputs.items() if name != "eps"}
    return prepare(get_backend("numba-bf16"), "network" if "gradient" in op else op, evaluated, settings)


def sinusoids(config, t) -> np.ndarray:
    """The network's sinusoidal embedding of t, float32 (N, width)."""
    return timestep_embedding(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)


OPS: dict[str, Callable] = {
    f.__name__: f
    for f in (
        conv, input_gradient, weight_gradient, group_norm_silu, attention, silu, add, upsample, concat,
        adamw, network, network_and_gradient, training_step,
    )
} | {"large_network": network}  # fmt: skip


def prepare(backend: Backend, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """The run of that operation, on copies of the inputs in the backend's memory."""
    arrays = {name: backend.asarray(a.copy()) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    return OPS[op](backend, **arrays, **settings)
