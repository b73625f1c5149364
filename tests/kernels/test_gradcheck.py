"""The reference's gradients against central differences, in float64.

For one leaf p and a unit direction v, with f(p) the sum of y dy:  (f(p + h v) - f(p - h v)) / 2h  =  <df/dp, v>
up to h^2 f''' / 6 (truncation) and 2^-52 |y| |dy| / h (rounding), which h = 6e-6, the cube root of 2^-52, balances:
each is about 4e-11 of its scale. The tolerance allows third derivatives and sums ten times as large.
"""

import numpy as np
import pytest
from against_torch import draw

from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.fused.geglu_linear import geglu_linear
from minidiff.engine.losses import cross_entropy, mse
from minidiff.engine.normalisation import group_norm, layer_norm
from minidiff.engine.pooling import avg_pool, global_avg_pool
from minidiff.engine.tensor import Function, Tensor, no_grad
from minidiff.models import unet
from minidiff.models.config import UNetConfig

NUMPY = get_backend("numpy")
H = 6e-6


def check_gradients(f, leaves):
    rng = np.random.default_rng(0)
    y = f()
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    size = np.linalg.norm(y.data) * np.linalg.norm(dy)
    for i, leaf in enumerate(leaves):
        v = rng.standard_normal(leaf.shape)
        v /= np.linalg.norm(v)
        numeric = (value_at(f, leaf, H * v, dy) - value_at(f, leaf, -H * v, dy)) / (2 * H)
        tolerance = 4e-10 * (np.linalg.norm(leaf.grad) + size)
        assert abs(numeric - (leaf.grad * v).sum()) <= tolerance, f"input {i}, of shape {leaf.shape}"


def value_at(f, leaf, step, dy):
    before = leaf.data
    leaf.data = before + step
    with no_grad():
        y = f().data
    leaf.data = before
    return (y * dy).sum()


def leaf(*shape, seed=0):
    return Tensor(draw(*shape, seed=seed).astype(np.float64), NUMPY, requires_grad=True)


IMAGE, KERNEL, BIAS, TEMB = (2, 5, 4, 6), (8, 3, 3, 6), (8,), (2, 1, 1, 8)
HEADS = (2, 5, 2, 3)
OPS = {
    "add": (F.add, [(2, 3, 4), (3, 1)]),
    "mul": (F.mul, [(2, 3, 4), (4,)]),
    "affine": (lambda x: F.affine(x, 3, -0.5), [(2, 3, 4)]),
    "reshape": (lambda x: F.reshape(x, (-1, 3)), [(2, 3, 4)]),
    "silu": (F.silu, [(3, 7)]),
    "conv2d": (lambda x, w, b, a: F.conv2d(x, w, b, 1, (1, 1, 1, 1), a), [IMAGE, KERNEL, BIAS, TEMB]),
    "conv2d, stride 2": (lambda x, w: F.conv2d(x, w, stride=2, pad=(0, 1, 0, 1)), [IMAGE, KERNEL]),
    "conv2d, residual": (lambda x, w, a: F.conv2d(x, w, add=a), [IMAGE, (3, 1, 1, 6), (2, 5, 4, 3)]),
    "linear": (F.linear, [(2, 3, 4), (5, 4), (5,), (2, 3, 5)]),
    "group_norm": (lambda x, w, b: group_norm(x, w, b, 3, 1e-5), [IMAGE, (6,), (6,)]),
    "group_norm, silu": (lambda x, w, b: group_norm(x, w, b, 2, 1e-5, silu=True), [IMAGE, (6,), (6,)]),
    "layer_norm": (lambda x, w, b: layer_norm(x, w, b, 1e-5), [(2, 3, 7), (7,), (7,)]),
    "attention": (F.attention, [HEADS, (2, 4, 2, 3), (2, 4, 2, 3)]),
    "attention, causal": (lambda q, k, v: F.attention(q, k, v, causal=True), [HEADS, HEADS, HEADS]),
    "gelu": (F.gelu, [(3, 7)]),
    "geglu_linear": (geglu_linear, [(3, 8), (2, 4)]),
    "upsample_nearest": (F.upsample_nearest, [IMAGE]),
    "upsample_nearest, cut": (lambda x: F.upsample_nearest(x, (9, 7)), [IMAGE]),
    "avg_pool": (avg_pool, [(2, 6, 4, 3)]),
    "split": (lambda x: F.mul(*F.split(x)), [IMAGE]),
    "concat": (F.concat, [IMAGE, (2, 5, 4, 3)]),
    "embedding": (lambda table: F.embedding(table, np.array([1, 3, 1])), [(4, 5)]),
    "dropout": (lambda x: F.dropout(x, 0.5, np.random.default_rng(0)), [(4, 6)]),
    "mean_pixel": (global_avg_pool, [IMAGE]),
    "cross_entropy": (lambda x: cross_entropy(x, np.array([1, 3, 1])), [(3, 4)]),
    "mse": (lambda x: mse(x, draw(2, 3, 1, 1), draw(2, 1, 1, 1) ** 2), [(2, 3, 1, 1)]),
}


@pytest.mark.parametrize("name", OPS)
def test_operation(name):
    op, shapes = OPS[name]
    leaves = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    check_gradients(lambda: op(*leaves), leaves)


CONFIGS = {
    "convolutions": dict(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
    ),
    "residual": dict(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        upsample_type="resnet", resnet_time_scale_shift="scale_shift", mid_block_scale_factor=1.5,
        center_input_sample=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("blocks", CONFIGS)
def test_whole_network(monkeypatch, blocks):
    """U-Nets with every type of block: the gradients of each parameter and of x. The time embedding is float32."""
    timestep_embedding = unet.timestep_embedding
    monkeypatch.setattr(unet, "timestep_embedding", lambda *args: timestep_embedding(*args).astype(np.float64))
    config = UNetConfig(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
        downsample_padding=0, num_class_embeds=3, dropout=0.2, **CONFIGS[blocks],
    )  # fmt: skip
    net = unet.UNet(config, np.random.default_rng(0), "numpy")
    for p in net.parameters():
        p.data = p.data + 0.1 * draw(*p.shape).astype(np.float64)
    x = leaf(2, 4, 8, 3)

    def f():
        return net(x, np.array([3, 700]), np.array([2, 0]), rng=np.random.default_rng(1))

    check_gradients(f, [x, *net.parameters()])


def test_a_wrong_gradient_fails():
    class Square(Function):
        def forward(self, x):
            self.x = x
            return x * x

        def backward(self, dy):
            return (2.000001 * dy * self.x,)

    x = leaf(3, 4)
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda: Square()(x), [x])
