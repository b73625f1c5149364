"""Reverse-mode automatic differentiation: arrays that remember where they came from.

Every use of an operation makes one Function, which is the node of the tape: it knows the tensors that went
in and keeps the arrays that its backward pass needs. A Tensor that came out points to its node; nothing
points from a node to its output, so what is no longer needed is freed by reference counting alone.
"""

from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np

from minidiff.engine.backend import Backend

_recording = True
_order = count()


@contextmanager
def no_grad():
    """Within this block operations compute but leave no tape."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


class Tensor:
    """An array of a backend, the node that made it (None for a leaf), and for leaves the gradient."""

    __slots__ = ("data", "backend", "requires_grad", "node", "grad")

    def __init__(self, data: Any, backend: Backend, requires_grad: bool = False):
        self.data = backend.asarray(data)
        self.backend = backend
        self.requires_grad = requires_grad
        self.node: Function | None = None
        self.grad: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def numpy(self) -> np.ndarray:
        """The values in host memory."""
        return self.backend.to_numpy(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.shape}, {self.backend.name})"

    def backward(self, dy: Any = None) -> None:
        """Add the gradient of sum(self * dy) to `grad` of every leaf that requires it.

        Nodes are visited from the latest to the earliest, so each is complete when its turn comes. The walk
        consumes the tape: each node lets go of its arrays at once. dy: self's shape, 1 if self is a scalar.
        Raises RuntimeError if there is no tape (any more), ValueError if dy has another shape.
        """
        if self.node is None or self.node.order is None:
            raise RuntimeError("backward: no tape leads here; it was walked before, or recorded nothing")
        if dy is None and self.data.size != 1:
            raise ValueError(f"backward: give dy for a tensor of shape {self.shape}; only scalars need none")
        dy = self.backend.xp.ones_like(self.data) if dy is None else self.backend.asarray(dy)
        if dy.shape != self.shape:
            raise ValueError(f"backward: dy has shape {dy.shape}, the tensor has {self.shape}")
        self.node.dy = dy
        heap = [(-self.node.order, self.node)]
        while heap:
            node = heappop(heap)[1]
            for tensor, dx in zip(node.inputs, node.backward(node.dy), strict=True):
                if tensor is not None and tensor.requires_grad:
                    _pass_on(tensor, dx, heap)
            node.release()


def _pass_on(tensor: Tensor, dx: Any, heap: list) -> None:
    """Add dx to the gradient of a tensor: to the leaf itself, or to the node that made it."""
    backend, node = tensor.backend, tensor.node
    if dx.shape != tensor.shape:
        dx = backend.sum_to(dx, tensor.shape)  # the one place where broadcasting is undone
    if node is None:
        if tensor.grad is None:
            tensor.grad = dx.copy()
        else:
            tensor.grad += dx  # in place: optimisers hold views of it
    elif node.order is None:
        raise RuntimeError("backward: part of this tape was walked before")
    elif node.dy is None:
        node.dy = dx
        heappush(heap, (-node.order, node))
    else:
        node.dy = backend.add(node.dy, dx)


class Function:
    """One use of one operation: `Conv2d(stride, pad)(x, w, bias)`.

    A subclass states the mathematics on raw arrays: `forward(*arrays)` gives the output array and may keep
    on self what `backward(dy)` needs; that gives one array (or None) for every input. Parameters that are
    not differentiated go to the constructor. An input may be None.
    """

    order: int | None = None  # when it was recorded; None: not at all, or walked already
    inputs: tuple[Tensor | None, ...] = ()
    dy: Any = None
    backend: Backend

    def forward(self, *arrays: Any) -> Any:
        raise NotImplementedError

    def backward(self, dy: Any) -> tuple:
        raise NotImplementedError

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        tensors = [a for a in inputs if a is not None]
        self.backend = tensors[0].backend
        for a in tensors:
            if a.backend is not self.backend:
                raise TypeError(f"{type(self).__name__}: inputs on {self.backend.name} and {a.backend.name}")
        needs_grad = _recording and any(a.requires_grad for a in tensors)
        out = Tensor(self.forward(*(a if a is None else a.data for a in inputs)), self.backend, needs_grad)
        if needs_grad:
            self.order, self.inputs, out.node = next(_order), inputs, self
        return out

    def needs(self, i: int) -> bool:
        """Whether input i wants a gradient; for backward passes that can save work."""
        tensor = self.inputs[i]
        return tensor is not None and tensor.requires_grad

    def release(self) -> None:
        """Let go of inputs and kept arrays; the node is spent."""
        self.__dict__.clear()
