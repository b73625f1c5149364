"""The same operations in torch and diffusers. Nothing else of minidiff imports these, and this file only when asked.

Every function is made like its namesake in ours.py, and `run` does it as fast as torch can: a single gradient is asked
for by the operation behind autograd, AdamW is fused, the average of all weights moves in one call. torch sees the same
numbers in its own order, NCHW and OIHW; in memory they lie as that says, or channels_last.
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
from minidiff.models.latent_config import TextUNetConfig

PLANES = ("x", "z", "w", "dy", "x_t", "eps", "y", "dx", "dz", "dw")  # of these, arrays with four axes are NHWC or OHWI
FLAT = ("attention", "silu", "add", "adamw")  # operations that know no NCHW


@dataclass(frozen=True)
class Kind:
    """One configuration of torch. In bfloat16 a network runs under autocast, an operation on bfloat16 arrays."""

    layout: torch.memory_format = torch.channels_last
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    device: str = "cpu"

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function) if self.compiled else function

    def tensor(self, name: str, a: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """A copy in torch's order."""
        tensor = torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else None, device=self.device)
        if name in PLANES and a.ndim == 4:
            tensor = tensor.movedim(-1, 1).contiguous(memory_format=self.layout)
        return tensor


KINDS = {
    "NCHW": Kind(torch.contiguous_format),
    "channels_last": Kind(),
    "float32": Kind(),
    "compiled": Kind(compiled=True),
    "bfloat16": Kind(dtype=torch.bfloat16),
    "float64": Kind(dtype=torch.float64),
    "cuda float32": Kind(torch.contiguous_format, device="cuda"),
    "cuda tf32": Kind(device="cuda"),  # and what torch is told for the whole process: see gpu.py
    "cuda bfloat16": Kind(dtype=torch.bfloat16, device="cuda"),
    "cuda compiled": Kind(compiled=True, device="cuda"),
}


def kinds(op: str, compiled: bool) -> list[str]:
    """The configurations in which an operation is timed; a large network only in two, for lack of memory."""
    if op == "large_network":
        return ["NCHW", "channels_last"]
    names = ["float32"] if op in FLAT else ["NCHW", "channels_last"]
    names += ["compiled"] if compiled and op != "adamw" else []
    return names + (["bfloat16"] if op != "adamw" else [])


def prepare(name: str, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """run, as in ours.py, in the configuration of that name."""
    kind = KINDS[name]
    dtype = torch.float32 if kind.dtype == torch.bfloat16 and "config" in settings else kind.dtype
    return OPS[op](kind, **{key: kind.tensor(key, a, dtype) for key, a in inputs.items()}, **settings)


def host(name: str, a: torch.Tensor) -> np.ndarray:
    """A result as minidiff has it."""
    a = a.detach().to(torch.promote_types(a.dtype, torch.float32))
    return (a.movedim(1, -1) if name in PLANES and a.ndim == 4 else a).numpy()


def set_up(threads: int) -> dict[str, Any]:
    """Let torch have that many threads, and no more; tells its version and what it makes of the processor.

    Numba lets OpenMP's threads start threads of their own. torch shares that OpenMP, and its attention, whose threads
    call a library with threads, would take up to thirty times as long as without minidiff.
    """
    torch.set_num_threads(threads)
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "openmp":
            ctypes.CDLL(library["filepath"]).omp_set_max_active_levels(1)
    return {
        "torch": f"{version('torch')}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "diffusers": version("diffusers"),
    }


def _gradients(kind: Kind, f: Callable, output: str, dy: torch.Tensor, **inputs: torch.Tensor) -> Callable:
    """The output of f and the gradients by all inputs, through autograd."""
    leaves = {name: a.requires_grad_() for name, a in inputs.items()}
    f = kind.compile(f)

    def run():
        y = f(**leaves)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {output: y} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}

    return run


def conv(kind, x, w, bias, stride, pad):
    f = kind.compile(lambda *args: F.conv2d(*args))
    return lambda: {"y": f(x, w, bias, stride, pad)}


def _conv_gradients(names: tuple[str, ...]) -> Callable:
    """Those of dx, dw, dbias that are named, by the operation that autograd would call."""
    mask = [name in names for name in ("dx", "dw", "dbias")]

    def prepared(kind, dy, x, w, stride, pad):
        stride, pad, dilation = ([n, n] for n in (stride, pad, 1))
        backward = kind.compile(lambda *args: torch.ops.aten.convolution_backward(*args))

        def run():
            outputs = backward(dy, x, w, [len(w)], stride, pad, dilation, False, [0, 0], 1, mask)
            return {name: a for name, a in zip(("dx", "dw", "dbias"), outputs, strict=True) if name in names}

        return run

    return prepared


def group_norm_silu(kind, dy, x, weight, bias, groups, eps):
    def f(x, weight, bias):
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    return _gradients(kind, f, "y", dy, x=x, weight=weight, bias=bias)


def attention(kind, do, q, k, v):
    def f(q, k, v):
        by_head = (a.transpose(1, 2) for a in (q, k, v))  # (N, heads, T, D)
        return F.scaled_dot_product_attention(*by_head).transpose(1, 2)

    return _gradients(kind, f, "o", do, q=q, k=k, v=v)


def silu(kind, dy, x):
    return _gradients(kind, lambda x: F.silu(x), "y", dy, x=x)


def add(kind, x, z):
    f = kind.compile(lambda x, z: x + z)
    return lambda: {"y": f(x, z)}


def upsample(kind, dy, x):
    return _gradients(kind, lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), "y", dy, x=x)


def concat(kind, dy, x, z):
    """torch's gradients are views of dy, and cost nothing here; what comes before may have to copy them."""
    return _gradients(kind, lambda x, z: torch.cat((x, z), 1), "y", dy, x=x, z=z)


def adamw(kind, p, g, m, v, ema, step, shapes):
    """Over parameters of the network's own shapes, as torch has them."""
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


def network(kind, x_t, t, config, text=None):
    forward = _forward(kind, _unet(kind, x_t, config))

    def run():
        with torch.inference_mode():
            return {"y": forward(x_t, t, text)}

    return run


def network_and_gradient(kind, x_t, t, eps, config, text=None):
    """All precisions get the same sinusoids of t: torch makes them in float32, and not as well as it could."""
    net, given = _unet(kind, x_t, config), torch.tensor(ours.sinusoids(config, t.numpy()), dtype=x_t.dtype)
    net.time_proj.forward = lambda t: given
    forward = _forward(kind, net)
    order = [name for name, _ in ours.unet(get_backend("numpy"), config).named_parameters()]

    def run():
        net.zero_grad()
        y = forward(x_t, t, text)
        (y - eps).square().mean().backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        parts = [g.movedim(1, -1) if g.ndim == 4 else g for g in (gradients[name] for name in order)]
        return {"y": y, "gradient": torch.cat([part.reshape(-1) for part in parts])}

    return run


def training_step(kind, x_t, t, eps, config, text=None):
    net = _unet(kind, x_t, config)
    forward, parameters = _forward(kind, net), list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, ours.RATE, fused=True)

    def run():
        optimizer.zero_grad()
        (forward(x_t, t, text) - eps).square().mean().backward()
        _update(optimizer, parameters, average)

    return run


def _forward(kind: Kind, net: Any) -> Callable:
    """The network, under autocast if in bfloat16; its output is float32 or float64."""
    call = kind.compile(net)

    def forward(x_t, t, text=None):
        half = kind.dtype == torch.bfloat16
        with torch.autocast(kind.device, torch.bfloat16) if half else nullcontext():
            y = (call(x_t, t) if text is None else call(x_t, t, text)).sample
        return y.float() if half else y

    return forward


def _unet(kind: Kind, x_t: torch.Tensor, config) -> Any:
    """diffusers' network with our weights, in the precision of x_t."""
    its = UNet2DConditionModel if isinstance(config, TextUNetConfig) else UNet2DModel
    net: Any = its(**asdict(config))
    state = {name: torch.tensor(a) for name, a in ours.unet(get_backend("numpy"), config).state_dict().items()}
    net.load_state_dict({name: a.movedim(-1, 1) if a.ndim == 4 else a for name, a in state.items()})
    torch.nn.Module.to(net, x_t.device, x_t.dtype)  # in place; diffusers' own `to` warns of nothing
    return net.to(memory_format=kind.layout)


OPS: dict[str, Callable] = {
    "conv": conv, "input_gradient": _conv_gradients(("dx",)), "weight_gradient": _conv_gradients(("dw", "dbias")),
    "group_norm_silu": group_norm_silu, "attention": attention, "silu": silu, "add": add, "upsample": upsample,
    "concat": concat, "adamw": adamw, "network": network, "network_and_gradient": network_and_gradient,
    "training_step": training_step, "large_network": network,
}  # fmt: skip
