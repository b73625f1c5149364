"""Reverse-mode automatic differentiation on a tape of Function nodes.

Each use of an operation creates one Function, a node of the tape: it refers to the nodes that produced its inputs, or
to leaves, and saves the arrays that its backward pass needs. The output Tensor refers to its node, and no node refers
to its output, nor to the tensors in between: an array that no backward needs is freed during the forward pass. There
are no reference cycles, so reference counting alone frees the tape.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np

from minidiff.engine.backend import Backend

_recording = True
_order = count()


@contextmanager
def _set_recording(value: bool):
    global _recording
    before, _recording = _recording, value
    try:
        yield
    finally:
        _recording = before


def no_grad() -> AbstractContextManager[None]:
    """Within this block operations are computed but not recorded."""
    return _set_recording(False)


def enable_grad() -> AbstractContextManager[None]:
    """Within this block operations are recorded, a surrounding `no_grad` notwithstanding."""
    return _set_recording(True)


class Tensor:
    """An array on a backend, the node that produced it (None for a leaf), and for leaves the gradient.

    The array is float32. Weights that are only sampled from may be float16 (`Parameter`): operations widen them.
    """

    __slots__ = ("data", "backend", "requires_grad", "node", "grad")

    def __init__(self, data: Any, backend: Backend, requires_grad: bool = False):
        self.data: Any = backend.asarray(data)
        self.backend: Backend = backend
        self.requires_grad: bool = requires_grad
        self.node: Function | None = None
        self.grad: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array in host memory."""
        return self.backend.to_numpy(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.shape}, {self.backend.name})"

    def backward(self, dy: Any = None, final: "Callable[[Tensor], object] | None" = None) -> None:
        """Add the gradient of sum(self * dy) to `grad` of every leaf that requires it.

        final(leaf) is called for each of them as soon as its gradient is complete: the last layer's come first.

        Nodes are visited in reverse order of creation, so the gradient of each is complete when it is visited. This
        consumes the tape: each node drops its saved arrays after its backward. dy has self's shape; None is 1, for
        scalars only. Raises RuntimeError if nothing was recorded or the tape is consumed, ValueError if dy is missing
        or has another shape.
        """
        if self.node is None or self.node.order is None:
            raise RuntimeError("backward: the tape was consumed by an earlier backward, or nothing was recorded")
        if dy is None and self.data.size != 1:
            raise ValueError(f"backward: give dy of shape {self.shape}; it is optional for scalars only")
        dy = self.backend.xp.ones_like(self.data) if dy is None else self.backend.asarray(dy)
        if dy.shape != self.shape:
            raise ValueError(f"backward: dy has shape {dy.shape}, the tensor has {self.shape}")
        uses = _uses_of_leaves(self.node) if final else None
        self.node.dy = dy
        heap = [(-self.node.order, self.node)]
        while heap:
            node = heappop(heap)[1]
            for i, (source, dx) in enumerate(zip(node.inputs, node.backward(node.dy), strict=True)):
                if source is not None and source.requires_grad:
                    _accumulate(source, dx, heap, i in node.totals)
            if final and uses:
                for leaf in _leaves(node):
                    uses[leaf] -= 1
                    if not uses[leaf]:
                        final(leaf)
            node.release()


def _is_lost(source: "Tensor | Function | None") -> bool:
    """Whether an input's array is found nowhere after the forward pass: not in a leaf, nor computed once more."""
    return isinstance(source, Function) and not source.recomputes


def _leaves(node: "Function") -> list[Tensor]:
    """The inputs of a node that are leaves and require a gradient, each as often as it is one."""
    return [source for source in node.inputs if isinstance(source, Tensor) and source.requires_grad]


def _uses_of_leaves(root: "Function") -> "Counter[Any]":
    """How many inputs of the tape's nodes, from its last one on, each leaf that requires a gradient is."""
    uses, found, pending = Counter(), {root}, [root]
    while pending:
        node = pending.pop()
        uses.update(_leaves(node))
        sources = {a for a in node.inputs if isinstance(a, Function) and a not in found}
        found |= sources
        pending += sources
    return uses


def _accumulate(source: "Tensor | Function", dx: Any, heap: list[Any], is_total: bool) -> None:
    """Add dx to the gradient of an input: to `grad` of a leaf, or to `dy` of the node that produced it.

    is_total: dx contains `dy` of the node already.
    """
    if isinstance(source, Function):
        source.check_unconsumed()
    if dx.shape != source.shape:
        dx = source.backend.sum_to(dx, source.shape)  # the one place where broadcasting is undone
    if isinstance(source, Tensor):
        if source.grad is None:
            source.grad = dx.copy()
        else:
            source.grad += dx  # in place: the optimiser holds a view of it
    elif source.dy is None:
        source.dy = dx
        heappush(heap, (-source.order, source))
    else:
        source.dy = dx if is_total else source.backend.add(source.dy, dx)


class Function:
    """One use of one operation: `Conv2d(stride, pad)(x, w, bias)`.

    A subclass works on raw arrays: `forward(*arrays)` returns the output array and may save on self what backward
    needs; `backward(dy)` returns one gradient array (or None) for every input. Parameters that are not
    differentiated go to the constructor. An input may be None.

    half        the inputs that `forward` takes in float16, too; others are widened before
    keeps       the inputs that `backward` asks for by `input`
    recomputes  the output is cheap to compute from the inputs, all of which `keeps` has: nobody saves it
    totals      the inputs whose gradients `backward` returns with `so_far` added
    """

    half: tuple[int, ...] = ()
    keeps: tuple[int, ...] = ()
    recomputes = False
    totals: tuple[int, ...] = ()
    order: Any = None  # position in the order of recording, an int; None: not recorded, or consumed
    inputs: "tuple[Tensor | Function | None, ...]" = ()  # the nodes that produced them, or leaves
    requires_grad = True  # of the output; otherwise it is not recorded
    shape: tuple[int, ...]  # of the output
    kept: "dict[int, Any]"
    dy: Any = None
    recomputed: Any = None  # the output, between the first backward pass that asks for it and its own
    backend: Backend

    def forward(self, *arrays: Any) -> Any:
        raise NotImplementedError

    def backward(self, dy: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        tensors = [a for a in inputs if a is not None]
        self.backend = tensors[0].backend
        for a in tensors:
            if a.backend is not self.backend:
                raise TypeError(f"{type(self).__name__}: inputs on {self.backend.name} and {a.backend.name}")
        needs_grad = _recording and any(a.requires_grad for a in tensors)
        data = (a if a is None else a.data for a in inputs)
        arrays = [a if a is None or i in self.half else self.float32(a) for i, a in enumerate(data)]
        out = Tensor(self.forward(*arrays), self.backend, needs_grad)
        if needs_grad:
            self.order = next(_order)
            self.inputs = tuple(a if a is None else a.node or a for a in inputs)
            self.kept = {i: arrays[i] for i in self.keeps if _is_lost(self.inputs[i])}
            self.shape = out.shape
            out.node = self
        return out

    def input(self, i: int) -> Any:
        """The array of input i in float32, one of `keeps`: saved, a leaf's, or computed once more."""
        if i in self.kept:
            return self.kept[i]
        source = self.inputs[i]
        if isinstance(source, Tensor):
            return self.float32(source.data)
        return source if source is None else source.output()

    def blank(self, i: int, dtype: Any) -> Any:
        """An array of the shape of input i with any values, for kernels that need the shape alone."""
        source = self.inputs[i]
        return source if source is None else self.backend.xp.empty(source.shape, dtype)

    def output(self) -> Any:
        """The output once more, for the nodes that took it and did not save it."""
        self.check_unconsumed()
        if self.recomputed is None:
            self.recomputed = self.again(*map(self.input, range(len(self.inputs))))
        return self.recomputed

    def again(self, *arrays: Any) -> Any:
        """`forward` once more, of the same inputs."""
        return self.forward(*arrays)

    def so_far(self, i: int) -> Any:
        """The gradient that other nodes have given to input i; None if there is none, or if it is a leaf."""
        source = self.inputs[i]
        return source.dy if isinstance(source, Function) else None

    def check_unconsumed(self) -> None:
        """Raises RuntimeError if a backward pass has visited the node."""
        if self.order is None:
            raise RuntimeError("backward: part of this tape was consumed by an earlier backward")

    def float32(self, a: Any) -> Any:
        """`a`, widened if it is float16."""
        return self.backend.widen(a) if a.dtype == np.float16 else a

    def needs(self, i: int) -> bool:
        """Whether input i requires a gradient; lets a backward pass skip work."""
        source = self.inputs[i]
        return source is not None and source.requires_grad

    def release(self) -> None:
        """Drop inputs and saved arrays; the node cannot be used again."""
        self.__dict__.clear()
