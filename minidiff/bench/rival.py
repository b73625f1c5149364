"""The same operations in torch and diffusers. No other module of minidiff imports these; this one is loaded on demand.

Every function corresponds to its namesake in ours.py, and `run` uses torch's fastest way: single gradients by the aten
operation that autograd calls, fused AdamW, EMA of all weights in one foreach call. torch gets the same values in NCHW
and OIHW shapes; in memory they are contiguous or channels_last.
"""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import threadpoolctl
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from minidiff.bench import ours
from minidiff.engine.backend import get_backend
from minidiff.models.config import TextUNetConfig

PLANES = ("x", "z", "w", "dy", "x_t", "eps", "y", "dx", "dz", "dw")  # those with four axes are NHWC or OHWI
FLAT = ("attention", "silu", "add", "adamw")  # operations without a memory layout


@dataclass(frozen=True)
class Mode:
    """Layout, precision, device. In bfloat16 networks run under autocast, single operations on bfloat16 arrays."""

    layout: torch.memory_format = torch.channels_last
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    device: str = "cpu"

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function) if self.compiled else function

    def tensor(self, name: str, a: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """A copy with torch's order of axes."""
        tensor = torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else None, device=self.device)
        if name in PLANES and a.ndim == 4:
            tensor = tensor.movedim(-1, 1).contiguous(memory_format=self.layout)
        return tensor


KINDS = {
    "NCHW": Mode(torch.contiguous_format),
    "channels_last": Mode(),
    "float32": Mode(),
    "compiled": Mode(compiled=True),
    "bfloat16": Mode(dtype=torch.bfloat16),
    "float64": Mode(dtype=torch.float64),
    "cuda float32": Mode(torch.contiguous_format, device="cuda"),
    "cuda tf32": Mode(device="cuda"),  # gpu.py enables TF32 in torch
    "cuda bfloat16": Mode(dtype=torch.bfloat16, device="cuda"),
    "cuda compiled": Mode(compiled=True, device="cuda"),
}


def modes(op: str, compiled: bool) -> list[str]:
    """The modes in which an operation is timed; a large network only in two, to save memory."""
    if op == "large_network":
        return ["NCHW", "channels_last"]
    names = ["float32"] if op in FLAT else ["NCHW", "channels_last"]
    names += ["compiled"] if compiled and op != "adamw" else []
    return names + (["bfloat16"] if op != "adamw" else [])


def prepare(name: str, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """The run of that operation, as in ours.py, in the mode of that name."""
    mode = KINDS[name]
    dtype = torch.float32 if mode.dtype == torch.bfloat16 and "config" in settings else mode.dtype
    return OPS[op](mode, **{key: mode.tensor(key, a, dtype) for key, a in inputs.items()}, **settings)


def host(name: str, a: torch.Tensor) -> np.ndarray:
    """A result as a NumPy array with our order of axes."""
    a = a.detach().to(torch.promote_types(a.dtype, torch.float32))
    return (a.movedim(1, -1) if name in PLANES and a.ndim == 4 else a).numpy()


def set_up(threads: int) -> dict[str, Any]:
    """Limit torch to that many threads; returns its version and CPU capability, for the report.

    Numba enables nested parallelism in OpenMP, which torch shares. torch's attention calls a threaded library from its
    threads and would then be up to thirty times slower, so nesting is disabled here.
    """
    torch.set_num_threads(threads)
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "openmp":
            ctypes.CDLL(library["filepath"]).omp_set_max_active_levels(1)
    return {
        "torch": f"{version('torch')}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "diffusers": version("diffusers"),
    }


def _gradients(mode: Mode, f: Callable, output: str, dy: torch.Tensor, **inputs: torch.Tensor) -> Callable:
    """A run that returns the output of f and the gradients by all inputs, through autograd."""
    leaves = {name: a.requires_grad_() for name, a in inputs.items()}
    f = mode.compile(f)

    def run():
        y = f(**leaves)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {output: y} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}

    return run


def conv(mode, x, w, bias, stride, pad):
    f = mode.compile(lambda *args: F.conv2d(*args))
    return lambda: {"y": f(x, w, bias, stride, pad)}


def _conv_gradients(names: tuple[str, ...]) -> Callable:
    """The named ones of dx, dw, dbias, by the aten operation that autograd calls."""
    mask = [name in names for name in ("dx", "dw", "dbias")]

    def prepared(mode, dy, x, w, stride, pad):
        stride, pad, dilation = ([n, n] for n in (stride, pad, 1))
        backward = mode.compile(lambda *args: torch.ops.aten.convolution_backward(*args))

        def run():
            outputs = backward(dy, x, w, [len(w)], stride, pad, dilation, False, [0, 0], 1, mask)
            return {name: a for name, a in zip(("dx", "dw", "dbias"), outputs, strict=True) if name in names}

        return run

    return prepared


def group_norm_silu(mode, dy, x, weight, bias, groups, eps):
    def f(x, weight, bias):
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    return _gradients(mode, f, "y", dy, x=x, weight=weight, bias=bias)


def attention(mode, do, q, k, v):
    def f(q, k, v):
        by_head = (a.transpose(1, 2) for a in (q, k, v))  # (N, heads, T, D)
        return F.scaled_dot_product_attention(*by_head).transpose(1, 2)

    return _gradients(mode, f, "o", do, q=q, k=k, v=v)


def silu(mode, dy, x):
    return _gradients(mode, lambda x: F.silu(x), "y", dy, x=x)


def add(mode, x, z):
    f = mode.compile(lambda x, z: x + z)
    return lambda: {"y": f(x, z)}


def upsample(mode, dy, x):
    return _gradients(mode, lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), "y", dy, x=x)


def concat(mode, dy, x, z):
    """torch's gradients are views of dy and cost nothing here; the preceding backward may have to copy them."""
    return _gradients(mode, lambda x, z: torch.cat((x, z), 1), "y", dy, x=x, z=z)


def adamw(mode, p, g, m, v, ema, step, shapes):
    """Over separate parameters with the network's shapes."""
    flat = {name: _split(a, shapes) for name, a in (("p", p), ("g", g), ("m", m), ("v", v), ("ema", ema))}
    parameters = [torch.nn.Parameter(a) for a in flat["p"]]
    optimizer = torch.optim.AdamW(parameters, ours.RATE, fused=True)
    for parameter, grad, m_, v_ in zip(parameters, flat["g"], flat["m"], flat["v"], strict=True):
        parameter.grad = grad
        optimizer.state[parameter] = {
            "step": torch.tensor(step - 1.0, device=p.device),
            "exp_avg": m_,
            "exp_avg_sq": v_,
        }

    def run():
        _update(optimizer, parameters, flat["ema"])
        return {"p": p, "m": m, "v": v, "ema": ema}

    return run


def _split(flat: torch.Tensor, shapes) -> list[torch.Tensor]:
    return [part.view(shape) for part, shape in zip(flat.split([int(np.prod(s)) for s in shapes]), shapes, strict=True)]


def _update(optimizer, parameters, average) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, ours.CLIP)
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, parameters, 1 - ours.EMA)  # pyright: ignore[reportPrivateImportUsage]


def network(mode, x_t, t, config, text=None):
    forward = _forward(mode, unet(mode, x_t, config))

    def run():
        with torch.inference_mode():
            return {"y": forward(x_t, t, text)}

    return run


def network_and_gradient(mode, x_t, t, eps, config, text=None):
    """All precisions get our sinusoids of t: diffusers computes them in float32, with larger errors."""
    net = unet(mode, x_t, config)
    embedding = torch.tensor(ours.sinusoids(config, t.numpy()), dtype=x_t.dtype)
    net.time_proj.forward = lambda t: embedding
    forward = _forward(mode, net)
    order = [name for name, _ in ours.unet(get_backend("numpy"), config).named_parameters()]

    def run():
        net.zero_grad()
        y = forward(x_t, t, text)
        (y - eps).square().mean().backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        parts = [g.movedim(1, -1) if g.ndim == 4 else g for g in (gradients[name] for name in order)]
        return {"y": y, "gradient": torch.cat([part.reshape(-1) for part in parts])}

    return run


def training_step(mode, x_t, t, eps, config, text=None):
    net = unet(mode, x_t, config)
    forward = _forward(mode, net)
    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, ours.RATE, fused=True)

    def run():
        optimizer.zero_grad()
        (forward(x_t, t, text) - eps).square().mean().backward()
        _update(optimizer, parameters, average)

    return run


def _forward(mode: Mode, net: Any) -> Callable:
    """The network, under autocast in bfloat16; its output is float32 or float64."""
    call = mode.compile(net)

    def forward(x_t, t, text=None):
        bfloat16 = mode.dtype == torch.bfloat16
        with torch.autocast(mode.device, torch.bfloat16) if bfloat16 else nullcontext():
            y = (call(x_t, t) if text is None else call(x_t, t, text)).sample
        return y.float() if bfloat16 else y

    return forward


def unet(mode: Mode, x_t: torch.Tensor, config) -> Any:
    """diffusers' network with our weights, in the precision of x_t."""
    network = UNet2DConditionModel if isinstance(config, TextUNetConfig) else UNet2DModel
    net: Any = network(**asdict(config))
    state = {name: torch.from_numpy(a) for name, a in ours.unet(get_backend("numpy"), config).state_dict().items()}
    net.load_state_dict({name: a.movedim(-1, 1) if a.ndim == 4 else a for name, a in state.items()})
    torch.nn.Module.to(net, x_t.device, x_t.dtype)  # in place; diffusers' own `to` warns needlessly
    return net.to(memory_format=mode.layout)


OPS: dict[str, Callable] = {
    "conv": conv, "input_gradient": _conv_gradients(("dx",)), "weight_gradient": _conv_gradients(("dw", "dbias")),
    "group_norm_silu": group_norm_silu, "attention": attention, "silu": silu, "add": add, "upsample": upsample,
    "concat": concat, "adamw": adamw, "network": network, "network_and_gradient": network_and_gradient,
    "training_step": training_step, "large_network": network,
}  # fmt: skip
