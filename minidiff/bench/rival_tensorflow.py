"""The U-Nets and their training step in TensorFlow; loaded by worker.py alone.

Channels last, as graphs: "TensorFlow" by oneDNN's operations, "TensorFlow XLA" compiled by XLA. Names, shapes and
weights are diffusers', but for the order of the weights' axes: output channels are the last.
"""

# TensorFlow's types do not know of its own operators and of explicit padding.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from minidiff.bench import ours
from minidiff.engine.backend import get_backend
from minidiff.models.config import TextUNetConfig


def set_up(threads: int) -> None:
    """Limit TensorFlow to that many threads."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def prepare(mode: str, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """The run of that operation, as in ours.py."""
    config = settings["config"]
    net = Net(config)
    embedding = tf.constant(ours.sinusoids(config, inputs["t"]))
    tensors = {name: tf.constant(a) for name, a in inputs.items() if name != "t"}
    compiled = tf.function(jit_compile=mode == "TensorFlow XLA")
    return {"network": network, "training_step": training_step, "network_and_gradient": network_and_gradient}[op](
        compiled, net, embedding, **tensors
    )


def network(compiled, net, embedding, x_t, text=None):
    forward = compiled(lambda x_t: net(x_t, embedding, text))
    return lambda: {"y": forward(x_t).numpy()}


def network_and_gradient(compiled, net, embedding, x_t, eps, text=None):
    forward = compiled(lambda x_t: _gradients(net, embedding, x_t, eps, text))

    def run():
        y, gradients = forward(x_t)
        ordered = (np.moveaxis(g.numpy(), -1, 0) if len(g.shape) > 1 else g.numpy() for g in gradients)
        return {"y": y.numpy(), "gradient": np.concatenate([g.ravel() for g in ordered])}

    return run


def training_step(compiled, net, embedding, x_t, eps, text=None):
    """Forward, backward, clipping, AdamW, EMA."""
    parameters = list(net.weights.values())
    m, v, ema = ([tf.Variable(f(p)) for p in parameters] for f in (tf.zeros_like, tf.zeros_like, tf.identity))
    step = tf.Variable(0.0)

    @compiled
    def update(x_t):
        _, gradients = _gradients(net, embedding, x_t, eps, text)
        gradients, _ = tf.clip_by_global_norm(gradients, ours.CLIP)
        step.assign_add(1.0)
        first, second = 1 - 0.9**step, 1 - 0.999**step
        for p, g, m_, v_, average in zip(parameters, gradients, m, v, ema, strict=True):
            m_.assign(0.9 * m_ + 0.1 * g)
            v_.assign(0.999 * v_ + 0.001 * g * g)
            p.assign(p * (1 - 0.01 * ours.RATE) - ours.RATE * (m_ / first) / (tf.sqrt(v_ / second) + 1e-8))
            average.assign(average + (1 - ours.EMA) * (p - average))
        return step.read_value()

    def run():
        update(x_t).numpy()  # waits for it
        return {}

    return run


def _gradients(net, embedding, x_t, eps, text):
    """The prediction, and the gradients of its squared error by all weights."""
    with tf.GradientTape() as tape:
        y = net(x_t, embedding, text)
        loss = tf.reduce_mean(tf.square(y - eps))
    return y, tape.gradient(loss, list(net.weights.values()))


class Net:
    """A U-Net of our configurations, with the weights that ours starts from."""

    def __init__(self, config):
        self.config = config
        state = ours.unet(get_backend("numpy"), config).state_dict()
        self.weights = {name: tf.Variable(np.moveaxis(a, 0, -1) if a.ndim > 1 else a) for name, a in state.items()}

    def __call__(self, x_t, embedding, text=None):
        cfg, levels = self.config, len(self.config.block_out_channels)
        temb = tf.nn.silu(
            self.linear("time_embedding.linear_2", tf.nn.silu(self.linear("time_embedding.linear_1", embedding)))
        )
        h = self.conv("conv_in", x_t)
        hs = [h]
        for level in range(levels):
            name = f"down_blocks.{level}"
            for i in range(cfg.layers_per_block):
                h = self.resnet(f"{name}.resnets.{i}", h, temb)
                h = self.attend(f"{name}.attentions.{i}", h, level, text)
                hs.append(h)
            if level < levels - 1:
                h = self.conv(f"{name}.downsamplers.0.conv", h, stride=2, pad=cfg.downsample_padding)
                hs.append(h)
        h = self.resnet("mid_block.resnets.0", h, temb)
        h = self.attend("mid_block.attentions.0", h, levels - 1, text)
        h = self.resnet("mid_block.resnets.1", h, temb)
        for level in reversed(range(levels)):
            name = f"up_blocks.{levels - 1 - level}"
            for i in range(cfg.layers_per_block + 1):
                h = self.resnet(f"{name}.resnets.{i}", tf.concat([h, hs.pop()], 3), temb)
                h = self.attend(f"{name}.attentions.{i}", h, level, text)
            if level:
                h = tf.repeat(tf.repeat(h, 2, 1), 2, 2)
                h = self.conv(f"{name}.upsamplers.0.conv", h)
        return self.conv("conv_out", tf.nn.silu(self.norm("conv_norm_out", h)))

    def linear(self, name, x):
        y = tf.linalg.matmul(x, self.weights[f"{name}.weight"])
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def conv(self, name, x, stride=1, pad=None):
        w = self.weights[f"{name}.weight"]
        if pad is None:  # keeps height and width
            padding = "SAME"
        else:
            padding = [[0, 0], [pad, 1], [pad, 1], [0, 0]]  # 0: at the bottom and right only
        return tf.nn.bias_add(tf.nn.conv2d(x, w, stride, padding), self.weights[f"{name}.bias"])

    def norm(self, name, x, eps=None):
        N, H, W, C = x.shape
        groups = self.config.norm_num_groups
        mean, variance = tf.nn.moments(tf.reshape(x, (N, H * W, groups, C // groups)), [1, 3], keepdims=True)
        scale = tf.math.rsqrt(variance + (self.config.norm_eps if eps is None else eps))  # (N, 1, groups, 1)
        mean, scale = (tf.reshape(tf.repeat(a, C // groups, 3), (N, 1, 1, C)) for a in (mean, scale))
        scale = scale * self.weights[f"{name}.weight"]
        return x * scale + (self.weights[f"{name}.bias"] - mean * scale)

    def resnet(self, name, x, temb):
        h = self.conv(f"{name}.conv1", tf.nn.silu(self.norm(f"{name}.norm1", x)))
        h = h + self.linear(f"{name}.time_emb_proj", temb)[:, None, None]
        h = self.conv(f"{name}.conv2", tf.nn.silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.weights else x)

    def attend(self, name, x, level, text):
        """Self-attention, with text a transformer, or nothing where the level has none."""
        N, H, W, C = x.shape
        if f"{name}.to_q.weight" in self.weights:
            h = tf.reshape(self.norm(f"{name}.group_norm", x), (N, H * W, C))
            width = self.config.attention_head_dim or C
            return x + tf.reshape(self.attention(name, h, h, C // width), x.shape)
        return self.transformer(name, x, level, text) if f"{name}.norm.weight" in self.weights else x

    def attention(self, name, x, context, heads):
        N, T, C = x.shape
        q, k, v = (self.linear(f"{name}.to_{key}", a) for key, a in (("q", x), ("k", context), ("v", context)))
        q, k, v = (tf.transpose(tf.reshape(a, (N, -1, heads, C // heads)), (0, 2, 1, 3)) for a in (q, k, v))
        weights = tf.nn.softmax(tf.linalg.matmul(q, k, transpose_b=True) / math.sqrt(C // heads))  # (N, heads, T, S)
        o = tf.transpose(tf.linalg.matmul(weights, v), (0, 2, 1, 3))
        return self.linear(f"{name}.to_out.0", tf.reshape(o, (N, T, C)))

    def transformer(self, name, x, level, text):
        assert isinstance(self.config, TextUNetConfig)
        N, H, W, C = x.shape
        heads = self.config.heads[level]
        h = self.norm(f"{name}.norm", x, 1e-6)
        h = tf.reshape(self.projection(f"{name}.proj_in", h), (N, H * W, C))
        for i in range(self.config.transformer_layers_per_block):
            block = f"{name}.transformer_blocks.{i}"
            a = self.layer_norm(f"{block}.norm1", h)
            h = h + self.attention(f"{block}.attn1", a, a, heads)
            h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), text, heads)
            a, gate = tf.split(self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h)), 2, 2)
            h = h + self.linear(f"{block}.ff.net.2", a * tf.nn.gelu(gate))
        return x + self.projection(f"{name}.proj_out", tf.reshape(h, x.shape))

    def projection(self, name, x):
        """A linear layer, whose weights may be those of a 1x1 convolution."""
        four = len(self.weights[f"{name}.weight"].shape) == 4 and len(x.shape) == 4
        return self.conv(name, x) if four else self.linear(name, x)

    def layer_norm(self, name, x):
        mean, variance = tf.nn.moments(x, [2], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-5) * self.weights[f"{name}.weight"] + self.weights[
            f"{name}.bias"
        ]
