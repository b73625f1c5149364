"""Layers. A Module's parameters are found by iterating over its attributes, in the order of definition.

Layers are made on NumPy; `Module.to` moves them, and the networks of models/ move themselves once they are complete.

Initialisation is PyTorch's: linear and convolution layers uniform in ±1 / sqrt(fan_in), embeddings standard normal,
norms 1 and 0. If rng is None these weights are zeros, to be loaded; they take no memory until written.
"""

import copy
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.backend import Backend, get_backend
from minidiff.engine.normalisation import group_norm, layer_norm
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor


class Parameter(Tensor):
    """A trainable leaf, on NumPy unless a backend is given; with float16 values it is not for training."""

    __slots__ = ()

    def __init__(self, data: Any, backend: Backend | None = None):
        super().__init__(data, backend or get_backend("numpy"), requires_grad=True)
        if data.dtype == np.float16:
            self.hold_half(data)

    def hold_half(self, a: Any) -> None:
        """Hold these float16 values: every operation widens them, and they are not for training."""
        self.data: Any = self.backend.xp.ascontiguousarray(a)
        self.requires_grad: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether the values are in bfloat16, as `Backend.pack` returns them; they are not for training."""
        return self.data.dtype == np.uint16

    def pack(self) -> None:
        """Hold the weights of a convolution or linear layer as the backend keeps them."""
        self.data = self.backend.pack(self.data)
        self.requires_grad = self.requires_grad and not self.is_packed

    def fill(self, a: Any) -> None:
        """Overwrite the values in place; packed ones are rounded to bfloat16."""
        a = self.backend.asarray(a)
        self.data[...] = self.backend.pack(a) if self.is_packed else a

    def numpy(self) -> np.ndarray:
        """The values in host memory, in the shape of the parameter; packed ones as float32."""
        return self.backend.widen(self.data) if self.is_packed else super().numpy()


class Module:
    """Holds parameters and other modules, as attributes or in lists."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """("down_blocks.0.resnets.0.norm1.weight", parameter), ... in the order of definition."""
        for name, value in _children(self):
            if isinstance(value, Parameter):
                yield name, value
            else:
                yield from ((f"{name}.{inner}", p) for inner, p in value.named_parameters())

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """("down_blocks.0", module), ("down_blocks.0.resnets.0", module), ...: all modules within this one."""
        for name, value in _children(self):
            if isinstance(value, Module):
                yield name, value
                yield from ((f"{name}.{inner}", module) for inner, module in value.named_modules())

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of definition."""
        return [p for _, p in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter in host memory, by name."""
        return {name: p.numpy().copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Overwrite every parameter in place; those in float16 become float32, still not for training.

        Raises ValueError if a key is missing or surplus or has another shape, before anything is changed.
        """
        self.check_shapes({name: a.shape for name, a in state.items()})
        for name, p in self.named_parameters():
            if p.data.dtype == np.float16:
                p.data = p.backend.empty(p.shape)
            p.fill(state[name])

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises ValueError, which names the keys, if some are missing or surplus or have another shape."""
        own = {name: p.shape for name, p in self.named_parameters()}
        missing = [k for k in own if k not in shapes]
        surplus = [k for k in shapes if k not in own]
        differing = [k for k in own if k in shapes and shapes[k] != own[k]]
        found = [f"missing {first_few(missing)}"] if missing else []
        found += [f"surplus {first_few(surplus)}"] if surplus else []
        found += [first_few([f"{k} has shape {shapes[k]}, not {own[k]}" for k in differing])] if differing else []
        if found:
            raise ValueError(f"weights do not fit: {'; '.join(found)}")

    def to(self, backend: str) -> Self:
        """A new module with its parameters on another backend.

        To and from a GPU they are copied. "numpy" and "numba" share host memory: between them nothing is copied, both
        modules hold the same arrays, and a change of one in place changes the other.
        """
        module = copy.copy(self)
        module.move(backend)
        return module

    def move(self, backend: str) -> None:
        """`to` for this module itself, such as a network that is complete: its layers are made on NumPy."""
        for attribute, value in vars(self).items():
            setattr(self, attribute, _moved(value, get_backend(backend)))

    @property
    def backend(self) -> Backend:
        """The backend of the parameters."""
        return next(self.named_parameters())[1].backend


def _children(module: Module) -> Iterator[tuple[str, "Module | Parameter"]]:
    for name, value in vars(module).items():
        items = [(f"{name}.{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(name, value)]
        for key, item in items:
            if isinstance(item, Module | Parameter):
                yield key, item


def first_few(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _moved(value, backend: Backend):
    if isinstance(value, Parameter):
        return Parameter(value.numpy(), backend)
    if isinstance(value, Module):
        return value.to(backend.name)
    return [_moved(v, backend) for v in value] if isinstance(value, list) else value


def _uniform(rng: InitRng, shape: tuple[int, ...], fan_in: int) -> Parameter:
    bound = fan_in**-0.5
    data = np.zeros(shape, np.float32) if rng is None else rng.uniform(-bound, bound, shape).astype(np.float32)
    return Parameter(data)


class _Product(Module):
    """A layer whose weight is a factor of a matrix product, and is kept as the backend wants it."""

    weight: Parameter

    def move(self, backend: str) -> None:
        super().move(backend)
        self.weight.pack()


class Linear(_Product):
    """y = x weight^T + bias; weight (O, I), bias (O,)."""

    def __init__(self, inputs: int, outputs: int, rng: InitRng, bias: bool = True):
        self.weight: Parameter = _uniform(rng, (outputs, inputs), inputs)
        self.bias: Parameter | None = _uniform(rng, (outputs,), inputs) if bias else None

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight, self.bias, add)  # (..., O)


class Conv2d(_Product):
    """Convolution with weight (O, K, K, I) and bias (O,); pad is (top, bottom, left, right), or one integer for all."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, rng: InitRng, stride: int = 1, pad: int | tuple[int, ...] = 0
    ):
        fan_in = inputs * kernel * kernel
        self.weight: Parameter = _uniform(rng, (outputs, kernel, kernel, inputs), fan_in)
        self.bias: Parameter = _uniform(rng, (outputs,), fan_in)
        self.stride = stride
        self.pad: tuple[int, ...] = pad if isinstance(pad, tuple) else (pad,) * 4

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.pad, add)  # (N, P, Q, O)


class GroupNorm(Module):
    """Group normalisation of C channels; calling it with `silu=True` applies SiLU in the same pass."""

    def __init__(self, groups: int, channels: int, eps: float):
        self.weight: Parameter = Parameter(np.ones(channels, np.float32))
        self.bias: Parameter = Parameter(np.zeros(channels, np.float32))
        self.groups: int = groups
        self.eps: float = eps

    def __call__(self, x: Tensor, silu: bool = False) -> Tensor:
        return group_norm(x, self.weight, self.bias, self.groups, self.eps, silu)


class LayerNorm(Module):
    """Layer normalisation over the last axis, of length C."""

    def __init__(self, channels: int, eps: float):
        self.weight: Parameter = Parameter(np.ones(channels, np.float32))
        self.bias: Parameter = Parameter(np.zeros(channels, np.float32))
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Module):
    """A learned vector for each of K indices; weight (K, D), initialised from N(0, I)."""

    def __init__(self, rows: int, width: int, rng: InitRng):
        shape = (rows, width)
        data = np.zeros(shape, np.float32) if rng is None else rng.standard_normal(shape).astype(np.float32)
        self.weight: Parameter = Parameter(data)

    def __call__(self, index: np.ndarray) -> Tensor:
        return F.embedding(self.weight, index)  # (N, D)


class SelfAttention(Module):
    """x + attention(group_norm(x)) among the pixels of an image: (N, H, W, C) -> same (Ho et al. 2020, appendix B).

    Names are those of diffusers' Attention: group_norm, to_q, to_k, to_v, to_out.0. groups None: no normalisation.
    """

    def __init__(self, channels: int, heads: int, groups: int | None, eps: float, rng: InitRng):
        self.heads = heads
        self.group_norm: GroupNorm | None = None if groups is None else GroupNorm(groups, channels, eps)
        self.to_q: Linear = Linear(channels, channels, rng)
        self.to_k: Linear = Linear(channels, channels, rng)
        self.to_v: Linear = Linear(channels, channels, rng)
        self.to_out: list[Linear] = [Linear(channels, channels, rng)]

    def __call__(self, x: Tensor) -> Tensor:
        N, H, W, C = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        split = (N, H * W, self.heads, C // self.heads)
        q, k, v = (F.reshape(project(h), split) for project in (self.to_q, self.to_k, self.to_v))
        o = F.reshape(F.attention(q, k, v), x.shape)  # (N, H, W, C)
        return self.to_out[0](o, add=x)
