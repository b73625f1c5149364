"""Every layer against torch's (attention against diffusers'): output and all gradients; and the methods of Module."""

import numpy as np
import pytest
import torch
from against_torch import CONV_FLOOR, Case, autograd, check, draw, nchw, nhwc, torch_layout
from diffusers.models.attention_processor import Attention
from torch.func import functional_call

from minidiff.engine import nn
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor

RNG = np.random.default_rng(0)


class UnevenPadConv(torch.nn.Conv2d):
    def forward(self, x):
        return super().forward(torch.nn.functional.pad(x, (0, 1, 0, 1)))


class GroupNormSiLU(torch.nn.GroupNorm):
    def forward(self, x):
        return torch.nn.functional.silu(super().forward(x))


def layer(label, make, net, x, **call):
    """make() returns our layer, net is torch's. Both get the same parameters, which are inputs like x."""
    images = x.ndim == 4

    def ours(backend, dy, x, **state):
        module = make().to(backend.name)
        module.load_state_dict({name: backend.to_numpy(a) for name, a in state.items()})
        given = Tensor(x, backend, requires_grad=True) if x.dtype.kind == "f" else x
        y = module(given, **call)
        y.backward(dy)
        gradients = {f"d{name}": p.grad for name, p in module.named_parameters()}
        return {"y": y.data} | ({"dx": given.grad} if given is not x else {}) | gradients

    def theirs(x, **state):
        y = functional_call(net, torch_layout(state), nchw(x) if images else x)
        return nhwc(y) if images else y

    shapes = {name: a.shape for name, a in make().state_dict().items()}
    state = {name: draw(*shape, scale=0.5, seed=i) for i, (name, shape) in enumerate(shapes.items(), 1)}
    y = theirs(torch.tensor(x), **{name: torch.tensor(a) for name, a in state.items()})
    return Case(label, {"dy": draw(*y.shape, seed=9), "x": x, **state}, ours, autograd(theirs), CONV_FLOOR)


def diffusers_attention(channels, heads, groups):
    """groups None: no normalisation."""
    return Attention(
        channels, heads=heads, dim_head=channels // heads, norm_num_groups=groups, eps=1e-6, bias=True,
        residual_connection=True,
    )  # fmt: skip


CASES = [
    layer("Linear", lambda: nn.Linear(5, 7, RNG), torch.nn.Linear(5, 7), draw(2, 3, 5)),
    layer("Linear, no bias", lambda: nn.Linear(5, 7, RNG, bias=False), torch.nn.Linear(5, 7, False), draw(4, 5)),
    layer("Conv2d", lambda: nn.Conv2d(3, 8, 3, RNG, pad=1), torch.nn.Conv2d(3, 8, 3, padding=1), draw(2, 5, 4, 3)),
    layer("Conv2d, 1x1", lambda: nn.Conv2d(3, 8, 1, RNG), torch.nn.Conv2d(3, 8, 1), draw(1, 5, 4, 3)),
    layer(
        "Conv2d, stride 2",
        lambda: nn.Conv2d(3, 8, 3, RNG, stride=2, pad=1),
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        draw(2, 6, 8, 3),
    ),
    layer(
        "Conv2d, stride 2, uneven padding",
        lambda: nn.Conv2d(3, 8, 3, RNG, stride=2, pad=(0, 1, 0, 1)),
        UnevenPadConv(3, 8, 3, stride=2),
        draw(2, 6, 8, 3),
    ),
    layer("GroupNorm", lambda: nn.GroupNorm(3, 6, 1e-5), torch.nn.GroupNorm(3, 6), draw(2, 4, 5, 6)),
    layer("GroupNorm, SiLU", lambda: nn.GroupNorm(2, 6, 1e-5), GroupNormSiLU(2, 6), draw(2, 4, 5, 6), silu=True),
    layer("LayerNorm", lambda: nn.LayerNorm(6, 1e-5), torch.nn.LayerNorm(6), draw(3, 4, 6)),
    layer("Embedding", lambda: nn.Embedding(5, 8, RNG), torch.nn.Embedding(5, 8), np.array([4, 0, 4, 2])),
    layer(
        "SelfAttention, one head",
        lambda: nn.SelfAttention(48, 1, 3, 1e-6, RNG),
        diffusers_attention(48, 1, 3),
        draw(2, 4, 5, 48),
    ),
    layer(
        "SelfAttention, four heads",
        lambda: nn.SelfAttention(32, 4, 8, 1e-6, RNG),
        diffusers_attention(32, 4, 8),
        draw(2, 5, 3, 32),
    ),
    layer(
        "SelfAttention, no normalisation",
        lambda: nn.SelfAttention(32, 2, None, 1e-6, RNG),
        diffusers_attention(32, 2, None),
        draw(2, 5, 3, 32),
    ),
    layer(
        "SelfAttention, one pixel",
        lambda: nn.SelfAttention(8, 2, 2, 1e-6, RNG),
        diffusers_attention(8, 2, 2),
        draw(1, 1, 1, 8),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_equals_torch(backend, case):
    check(backend, case)


class Net(nn.Module):
    """Parameters, modules, a list of modules, and attributes that are neither."""

    def __init__(self, backend):
        self.inner = nn.Linear(3, 2, np.random.default_rng(0))
        self.nothing = None
        self.blocks = [nn.GroupNorm(1, 2, 1e-5), nn.Embedding(4, 2, np.random.default_rng(1))]
        self.scale = nn.Parameter(np.ones(2, np.float32))
        self.width = 2
        self.move(backend)

    def __call__(self, x):
        return self.blocks[0](self.inner(x))


NAMES = ["inner.weight", "inner.bias", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "scale"]


def test_parameters_are_named_in_the_order_of_definition(backend):
    net = Net(backend.name)
    assert [name for name, _ in net.named_parameters()] == NAMES == list(net.state_dict())
    assert net.parameters() == [p for _, p in net.named_parameters()]
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net.backend is backend


def test_a_state_dict_is_a_copy(backend):
    net = Net(backend.name)
    net.state_dict()["scale"][...] = 7
    assert net.scale.numpy().tolist() == [1, 1]


def test_loading_copies_in_place(backend):
    net, state = Net(backend.name), {name: draw(*a.shape) for name, a in Net("numpy").state_dict().items()}
    arrays = [p.data for p in net.parameters()]
    net.load_state_dict({name: a.astype(np.float64) for name, a in reversed(state.items())})
    for (name, p), array in zip(net.named_parameters(), arrays, strict=True):
        assert p.data is array and array.dtype == np.float32
        np.testing.assert_array_equal(p.numpy(), state[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"inner.bias": None}, "missing inner.bias"),
        ({"other": np.ones(2)}, "surplus other"),
        ({"blocks.1.weight": np.ones((4, 3))}, r"blocks.1.weight has shape \(4, 3\), not \(4, 2\)"),
        ({"scale": None, "inner.weight": None}, "missing inner.weight, scale$"),
        ({"scale": None, **{name: np.ones(1) for name in "abcde"}}, "missing scale; surplus a, b, c and 2 more$"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(backend, change, message):
    net = Net(backend.name)
    before = net.state_dict()
    state = {name: np.full(a.shape, 7.0) for name, a in before.items()} | change
    with pytest.raises(ValueError, match=f"weights do not fit: .*{message}"):
        net.load_state_dict({name: a for name, a in state.items() if a is not None})
    assert all((a == before[name]).all() for name, a in net.state_dict().items())


def test_without_an_rng_weights_are_zeros(backend):
    layers = {nn.Linear: (3, 2), nn.Conv2d: (3, 2, 3), nn.Embedding: (3, 2)}
    for p in (p for layer, sizes in layers.items() for p in layer(*sizes, None).to(backend.name).parameters()):
        assert p.numpy().size >= 2 and not p.numpy().any() and p.numpy().dtype == np.float32


@pytest.mark.parametrize("start", ["numpy", "numba"])
def test_to_returns_a_new_module_on_the_other_backend(backend, start):
    net = Net(start)
    moved = net.to(backend.name)
    assert type(moved) is Net and moved.width == 2 and net.backend is get_backend(start)
    assert all(p.backend is backend for p in moved.parameters())
    x = draw(3, 3)
    y, y_moved = (n(Tensor(x, n.backend)).numpy() for n in (net, moved))
    np.testing.assert_allclose(y_moved, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["numpy", "numba"])
def test_to_shares_host_memory_and_copies_to_a_gpu(backend, start):
    net = Net(start)
    moved = net.to(backend.name)
    before = net.state_dict()
    moved.load_state_dict({name: a + 1 for name, a in before.items()})
    shared = backend.xp is np
    for name, p in net.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name] + shared)


def test_initial_weights_are_distributed_as_torch_s():
    """Uniform in ±1 / sqrt(fan_in): the largest of n is within 10 / n of the bound, with probability 1 - e^-10."""
    linear, conv = nn.Linear(400, 30, RNG), nn.Conv2d(16, 20, 5, RNG)
    for module in (linear, conv):
        weight, bound = module.weight.numpy(), 400**-0.5
        assert bound * (1 - 10 / weight.size) < abs(weight).max() <= np.float32(bound)
        assert module.bias is not None and abs(module.bias.numpy()).max() <= np.float32(bound)
    norm, table = nn.GroupNorm(2, 4, 1e-5), nn.Embedding(100, 100, RNG).weight.numpy()
    assert norm.weight.numpy().tolist() == [1] * 4 and norm.bias.numpy().tolist() == [0] * 4
    assert abs(table.mean()) < 0.05 and abs(table.std() - 1) < 0.05  # five standard errors
