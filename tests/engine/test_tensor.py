"""The tape: what it records, in which order backward visits it, what it saves and when that is freed."""

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.losses import mse
from minidiff.engine.normalisation import layer_norm
from minidiff.engine.tensor import Function, Tensor, enable_grad, no_grad


def leaf(backend, values):
    return Tensor(np.asarray(values, np.float32), backend, requires_grad=True)


def grad(tensor):
    return tensor.backend.to_numpy(tensor.grad).tolist()


@contextmanager
def reference_counting_only():
    """Within this block the garbage collector is off: only reference counting frees objects."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_diamond_adds_the_gradients_of_both_paths(backend):
    x = leaf(backend, [2, 3])
    y = F.mul(x, x)
    F.add(F.mul(y, y), y).backward(np.ones(2))  # x^4 + x^2
    assert grad(x) == [4 * 8 + 4, 4 * 27 + 6]


def test_a_tensor_may_be_used_many_times(backend):
    x = leaf(backend, [1, 2])
    total = x
    for _ in range(9):
        total = F.add(total, x)
    total.backward([1, 10])
    assert grad(x) == [10, 100]


def test_both_inputs_may_be_the_same_tensor(backend):
    x = leaf(backend, [1, 2])
    y = F.add(x, x)
    F.add(y, y).backward([1, 1])
    assert grad(x) == [4, 4]


def test_one_gradient_array_may_go_to_two_inputs(backend):
    """`add` returns the same dy for both inputs; accumulating into one must not change the other."""
    x, y = leaf(backend, [1, 2]), leaf(backend, [3, 4])
    a, b = F.mul(x, y), F.silu(y)
    dy = backend.asarray([1.0, 1.0])
    F.add(F.add(a, b), a).backward(dy)  # a gets dy twice, b once
    assert grad(x) == [6, 8]
    assert backend.to_numpy(dy).tolist() == [1, 1]
    again = leaf(backend, [0, 0])
    F.add(again, y).backward(dy)
    again.grad += 1  # a leaf's gradient is its own array
    assert backend.to_numpy(dy).tolist() == [1, 1]


def test_gradients_of_leaves_add_up_in_place(backend):
    x = leaf(backend, [1, 2])
    F.mul(x, x).backward([1, 1])
    first = x.grad
    F.mul(x, x).backward([1, 1])
    assert x.grad is first
    assert grad(x) == [4, 8]


@pytest.mark.parametrize("a, b", [((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 1, 4), (3, 1)), ((1,), (5,))])
def test_broadcasting_is_undone(backend, a, b):
    x, y = leaf(backend, np.full(a, 2)), leaf(backend, np.full(b, 3))
    z = F.mul(x, y)
    size = int(np.prod(z.shape))
    z.backward(np.ones(z.shape))
    assert x.grad.shape == a and y.grad.shape == b
    assert (x.grad == 3 * size // np.prod(a)).all() and (y.grad == 2 * size // np.prod(b)).all()


def test_the_latest_node_is_visited_first(backend):
    """So that a node is visited once, when its gradient is complete."""
    visited = []

    class Named(Function):
        def __init__(self, name):
            self.name = name

        def forward(self, *arrays):
            return sum(arrays[1:], arrays[0])

        def backward(self, dy):
            visited.append(self.name)
            return (dy,) * len(self.inputs)

    x = leaf(backend, [1])
    a = Named("a")(x)
    b = Named("b")(a)
    c = Named("c")(a, b)
    d = Named("d")(a)
    Named("e")(d, c, b).backward([1])
    assert visited == ["e", "d", "c", "b", "a"]
    assert grad(x) == [4]


def test_backward_consumes_the_tape(backend):
    x = leaf(backend, [1, 2])
    y = F.mul(x, x)
    y.backward([1, 1])
    with pytest.raises(RuntimeError, match="consumed by an earlier backward"):
        y.backward([1, 1])
    with pytest.raises(RuntimeError, match="consumed by an earlier backward"):
        F.silu(y).backward([1, 1])


def test_backward_without_a_tape_is_refused(backend):
    x = leaf(backend, [1, 2])
    for y in (x, Tensor([1.0], backend), F.silu(Tensor([1.0], backend))):
        with pytest.raises(RuntimeError, match="nothing was recorded"):
            y.backward(np.ones(y.shape))


def test_no_grad_records_nothing_even_after_an_error(backend):
    x = leaf(backend, [1, 2])
    with no_grad():
        with no_grad():
            assert F.silu(x).node is None
        assert F.silu(x).node is None and not F.silu(x).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert F.silu(x).requires_grad


def test_enable_grad_records_within_no_grad(backend):
    x = leaf(backend, [1, 2])
    with no_grad():
        with enable_grad():
            assert F.silu(x).requires_grad
        assert not F.silu(x).requires_grad


def test_only_tensors_that_require_a_gradient_get_one(backend):
    x, fixed = leaf(backend, [1, 2]), Tensor([3.0, 4.0], backend)
    F.mul(F.mul(fixed, fixed), x).backward([1, 1])
    assert fixed.grad is None
    assert grad(x) == [9, 16]


def test_dy_must_have_the_tensor_s_shape(backend):
    y = F.silu(leaf(backend, [[1, 2]]))
    with pytest.raises(ValueError, match=r"dy has shape \(2,\), the tensor has \(1, 2\)"):
        y.backward([1, 1])
    with pytest.raises(ValueError, match="optional for scalars only"):
        y.backward()
    y.backward([[1, 1]])  # the tape is still there after a refused dy


def test_a_scalar_needs_no_dy(backend):
    x = leaf(backend, [1, 2])
    mse(x, np.zeros(2, np.float32)).backward()
    assert grad(x) == [1, 2]


def test_backends_do_not_mix():
    x, y = leaf(get_backend("numpy"), [1]), leaf(get_backend("numba"), [1])
    with pytest.raises(TypeError, match="Add: inputs on numpy and numba"):
        F.add(x, y)


def test_backward_must_return_a_gradient_for_every_input(backend):
    class Forgetful(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return (dy,)

    with pytest.raises(ValueError, match="zip"):
        Forgetful()(leaf(backend, [1]), leaf(backend, [1])).backward([1])


def test_a_dropped_output_frees_its_tape(backend):
    x = leaf(backend, [1, 2])
    with reference_counting_only():
        y = F.silu(F.mul(x, x))
        nodes = [weakref.ref(y.node), weakref.ref(y.node.inputs[0])]
        assert all(node() for node in nodes)
        del y
        assert not any(node() for node in nodes)


def test_an_array_that_no_backward_needs_is_freed_during_forward(backend):
    x = leaf(backend, [1, 2])
    with reference_counting_only():
        hidden = F.mul(x, x)
        kept = weakref.ref(hidden.data)
        y = F.add(hidden, x)
        del hidden
        assert kept() is None
        y.backward([1, 1])
    assert grad(x) == [3, 5]


def test_backward_frees_saved_arrays(backend):
    """Node by node, even while the output is still referenced."""
    x = leaf(backend, [1, 2])
    with reference_counting_only():
        hidden = F.mul(x, x)
        kept = weakref.ref(hidden.data)
        y = F.silu(hidden)
        del hidden
        assert kept() is not None
        y.backward([1, 1])
        assert kept() is None


def test_what_is_cheap_to_compute_is_not_saved(backend):
    """A concatenation is computed once more when backward asks for it, once for all that took it."""
    x, y, times = leaf(backend, [[1, 2]]), leaf(backend, [[3]]), []

    class CountedConcat(F.Concat):
        def forward(self, a, b):
            times.append(1)
            return super().forward(a, b)

    with reference_counting_only():
        both = CountedConcat()(F.mul(x, x), y)
        kept = weakref.ref(both.data)
        z = F.add(F.mul(both, both), F.silu(F.affine(both, 0)))
        del both
        assert kept() is None and len(times) == 1
        z.backward([[1, 1, 1]])
    assert len(times) == 2
    assert (grad(x), grad(y)) == ([[4, 32]], [[6]])


def test_what_was_consumed_is_not_computed_once_more(backend):
    x = leaf(backend, [[1, 2]])
    both = F.concat(x, x)
    y = F.mul(both, both)
    both.backward([[1, 1, 1, 1]])
    with pytest.raises(RuntimeError, match="consumed by an earlier backward"):
        y.backward([[1, 1, 1, 1]])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_gradient_may_contain_those_of_other_nodes(backend, order):
    """A layer normalisation adds what its input has so far, whatever else uses the input, and when."""
    x, ones, zeros = leaf(backend, [[1, 3]]), leaf(backend, [1, 1]), leaf(backend, [0, 0])
    h = F.mul(x, x)
    uses = (lambda: layer_norm(h, ones, zeros, 1e-5), lambda: F.mul(h, h))
    results = [uses[i]() for i in order]
    F.add(*results).backward([[1, 1]])
    np.testing.assert_allclose(grad(x), [[4, 4 * 27]], rtol=1e-6)  # layer_norm's own is 0 for equal dy


def test_arrays_are_freed_during_backward(backend):
    """The saved arrays of a visited node are free before the next node's backward."""
    alive = []

    class Spy(Function):
        def forward(self, x):
            return x + 0

        def backward(self, dy):
            alive.append(kept() is not None)
            return (dy,)

    with reference_counting_only():
        hidden = F.add(Spy()(leaf(backend, [1, 2])), leaf(backend, [1, 2]))
        y = F.silu(hidden)
        kept = weakref.ref(hidden.data)
        del hidden
        y.backward([1, 1])
    assert alive == [False]


def test_a_chain_of_20000_does_not_recurse(backend):
    x, one = leaf(backend, [1]), Tensor(1.0, backend)

    def chain():
        y = x
        for _ in range(20_000):
            y = F.add(y, one)
        return y

    y = chain()
    y.backward([1])
    assert y.numpy().tolist() == [20_001] and grad(x) == [1]
    chain()  # nor when it is dropped without backward


def test_numpy_returns_the_values(backend):
    assert leaf(backend, [[1, 2]]).numpy().tolist() == [[1, 2]]
    assert repr(leaf(backend, [[1, 2]])) == f"Tensor((1, 2), {backend.name})"


def test_final_is_called_once_the_gradient_of_a_leaf_is_complete(backend):
    """Of a leaf with several uses after the last of them; the leaf of the last operation comes first."""
    first, last, unused = leaf(backend, [1, 2]), leaf(backend, [3, 4]), leaf(backend, [5, 6])
    constant = Tensor(np.ones(2, np.float32), backend)
    x = F.add(F.mul(first, first), constant)
    y = F.mul(F.add(x, first), last)
    found = []
    y.backward([1, 1], lambda leaf: found.append((leaf, grad(leaf))))
    assert [a is b for (a, _), b in zip(found, (last, first), strict=True)] == [True, True]
    assert [g for _, g in found] == [grad(last), grad(first)] == [[3, 7], [9, 20]]
    assert unused.grad is None
