"""A whole diffusion model in one file, to be read from top to bottom: NumPy, and Pillow to save the result.

    python -m minidiff.nano     # trains for a few minutes, then samples 32 cats and 32 dogs, 16x16 pixels: nano.png

Options: --steps, --out, --seed. Ctrl-C ends training early; the samples then show what is learned so far.

Images are arrays (N, H, W, C) from -1 to 1: N images, height, width, channels. A shape at the end of a line is that of
its result. DDPM is Ho et al. 2020, arXiv 2006.11239; equation numbers are those of the papers.
"""

import argparse
import time

import numpy as np
from PIL import Image

# 1 Dataset ------------------------------------------------------------------------------------------------------------
# Every image is new: a few coloured shapes, with a random coat, pose and background. A shape is the distance d of every
# pixel to its edge, in pixels, negative inside; it covers min(max(1/2 - d, 0), 1) of the pixel, so edges are smooth.

SIZE = 16
CAT, DOG, NULL = 0, 1, 2  # class labels; NULL means "either", see section 8


def rgb(colours):
    """Hexadecimal colours -> (K, 3), from -1 to 1."""
    return np.array([[*bytes.fromhex(colour)] for colour in colours.split()], np.float32) / 127.5 - 1


BACKGROUNDS = rgb("a9dcc9 f2b5a0 b5d0f4 d0baf0 f0afc4 93cbe2 bfe09a 7fbdb3 8fb0ea")
CAT_COATS = rgb("eca04c f3dcb6 97a2b8 d5d8e2 4a4754 8a5f40 fbf7f0 c8743f")
DOG_COATS = rgb("e8b96f b3713f 6f4a36 3f3b48 f4e2c1 fbf7f0 cc754d a1a6b2")
IRISES = rgb("7fd04a f7c02e 56b8f5 f08a2c")
INK, WHITE, PINK, TONGUE = rgb("2b2530 ffffff f08f9c ec6a7c")
POSES = (-0.5, 0.5), (0.5, 1.3), (0.94, 1.03), (-0.12, 0.12)  # of a face: right and down, zoom, tilt


def pick(rng, colours, n):
    """A random colour for each of n images, (n, 1, 1, 3)."""
    return colours[rng.integers(0, len(colours), n), None, None]


def ellipse(x, y, width, height):
    """Distance to the ellipse around (0, 0) with these semi-axes (approximate)."""
    return (np.hypot(x / width, y / height) - 1) * min(width, height)


def ear(x, y, slope, length):
    """Distance to a triangle with its tip at (0, 0), pointing up."""
    return np.maximum((abs(x) - slope * y) / np.hypot(1, slope), y - length)


def some(rng, distance, probability):
    """The shape in a random part of the images; in the others it is far away."""
    return np.where(rng.random((len(distance), 1, 1)) < probability, distance, SIZE)


def cat(rng, x, y, coat):
    """Pointed ears, large coloured eyes, a small nose, whiskers, perhaps stripes: (distance, colour) pairs."""
    side, dark = abs(x), 0.6 * coat - 0.4  # a shape in `side` is there twice, left and right
    stripes = np.minimum(ellipse(x, y + 3.4, 0.5, 1.5), ellipse(side - 2, y + 3.2, 0.5, 1.2))
    return [
        (ear(side - 4.2, y + 8, 0.55, 7), coat),
        (ear(side - 4.2, y + 6.2, 0.45, 3.7), PINK),
        (ellipse(side - 6.2, y - 2.4, 1.9, 0.3), WHITE),  # whiskers
        (ellipse(x, y - 0.6, 6, 4.9), coat),  # head
        (some(rng, stripes, 0.5), dark),
        (ellipse(side - 1.1, y - 3, 1.5, 1.2), 0.4 * coat + 0.6 * WHITE),  # muzzle
        (ellipse(side - 2.8, y + 0.1, 1.5, 1.4), pick(rng, IRISES, len(x))),
        (ellipse(side - 2.8, y + 0.1, 0.55, 1.4), INK),  # pupils
        (ellipse(x, y - 2, 0.9, 0.55), PINK),  # nose
        (ellipse(side - 0.9, y - 3.6, 0.8, 0.35), INK),  # mouth
    ]


def dog(rng, x, y, coat):
    """Hanging ears, small dark eyes, a light muzzle with a big nose, perhaps a patch and a tongue."""
    side, dark = abs(x), 0.55 * coat - 0.45
    return [
        (ellipse(x, y - 0.2, 4.9, 5.9), coat),  # head
        (some(rng, ellipse(x - 2.2, y + 1.4, 1.9, 2.1), 0.4), dark),  # patch
        (ellipse(side - 5.2 - 0.15 * y, y + 0.4, 1.8, 4.2), dark),  # ears
        (ellipse(x, y - 3, 3.1, 2.5), 0.3 * coat + 0.7 * WHITE),  # muzzle
        (ellipse(side - 2.1, y + 1.2, 1, 1.1), INK),  # eyes
        (ellipse(side - 1.7, y + 1.6, 0.4, 0.4), WHITE),
        (some(rng, ellipse(x, y - 5.2, 1.1, 1.3), 0.6), TONGUE),
        (ellipse(side - 1, y - 4, 1.1, 0.3), INK),  # mouth
        (ellipse(x, y - 1.9, 1.6, 1.05), INK),  # nose
    ]


def batch(rng, n):
    """x0: n new images, half of them cats, (n, 16, 16, 3) float32, and their labels (n,)."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    batches = []
    for animal, coats in ((cat, CAT_COATS), (dog, DOG_COATS)):
        dx, dy, zoom, tilt = (rng.uniform(low, high, (n // 2, 1, 1)) for low, high in POSES)
        x, y = (columns - dx) / zoom, (rows - dy) / zoom  # (n / 2, 16, 16) each, from the middle of the face
        x, y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
        images = np.tile(pick(rng, BACKGROUNDS, n // 2), (1, SIZE, SIZE, 1))  # (n / 2, 16, 16, 3)
        for distance, colour in animal(rng, x, y, pick(rng, coats, n // 2)):
            images += np.clip(0.5 - distance, 0, 1)[..., None] * (colour - images)
        batches.append(images)
    return np.concatenate(batches), np.repeat([CAT, DOG], n // 2)


# 2 Forward diffusion --------------------------------------------------------------------------------------------------
# In T small steps an image becomes noise: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z with z ~ N(0, I). Sums of
# independent Gaussians are Gaussian, so all steps up to t are one (DDPM eq. 4):
#     x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps      eps ~ N(0, I)      alpha_bar_t = product of 1 - beta_s
# alpha_bar falls from 1 to 0 as a squared cosine (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17). t counts from 0.

T = 1000
COSINE = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2  # (T + 1,)
BETAS = np.minimum(1 - COSINE[1:] / COSINE[:-1], 0.999)  # (T,)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)  # (T,)


def signal_and_noise(t, dtype):
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) for t (N,), the coefficients of x0 and eps: (N, 1, 1, 1) each."""
    alpha_bar = ALPHAS_CUMPROD[t].reshape(-1, 1, 1, 1)
    return np.sqrt(alpha_bar).astype(dtype), np.sqrt(1 - alpha_bar).astype(dtype)


def q_sample(x0, t, eps):
    """x_t (DDPM eq. 4)."""
    signal, noise = signal_and_noise(t, x0.dtype)
    return signal * x0 + noise * eps


# 3 Tape ---------------------------------------------------------------------------------------------------------------
# Training needs the loss's gradient with respect to every weight. Write dy for that with respect to y. If y = f(x), the
# chain rule gives dx = (df/dx)^T dy. The tape lists all operations in the order in which they were computed; backward
# applies the rule to them from the end to the beginning (Linnainmaa 1970; Rumelhart et al. 1986).

TAPE = []  # (y, inputs, gradients) for every operation; gradients(dy) returns the gradient of each input


class Tensor:
    """An array `data` and the loss's gradient `grad` with respect to it; the result of an operation is on the tape."""

    def __init__(self, data, inputs=(), gradients=None, needs_grad=False):
        self.data, self.grad = data, None
        self.needs_grad = needs_grad or any(x.needs_grad for x in inputs)  # weights do, images do not
        if inputs and self.needs_grad:
            TAPE.append((self, inputs, gradients))

    def backward(self):
        """Compute the gradients of this loss, and empty the tape."""
        self.grad = np.ones_like(self.data)
        while TAPE:
            y, inputs, gradients = TAPE.pop()
            for x, dx in zip(inputs, gradients(y.grad), strict=True):
                if x.needs_grad:
                    x.grad = dx if x.grad is None else x.grad + dx  # the sum over all uses of x


# 4 Operations ---------------------------------------------------------------------------------------------------------
# Each computes its result y, and beside it the function from dy to the gradient of every input.


def add(a, b):
    """a + b; b has a's shape, or is (N, C) and added to all pixels of image n in a (N, H, W, C)."""
    if a.data.shape == b.data.shape:
        return Tensor(a.data + b.data, (a, b), lambda dy: (dy, dy))
    return Tensor(a.data + b.data[:, None, None], (a, b), lambda dy: (dy, dy.sum((1, 2))))


def concat(a, b):
    """The channels of a, then those of b: (N, H, W, A), (N, H, W, B) -> (N, H, W, A + B)."""
    A = a.data.shape[-1]
    return Tensor(np.concatenate([a.data, b.data], -1), (a, b), lambda dy: (dy[..., :A], dy[..., A:]))


def upsample(x):
    """Every pixel as a 2x2 block: (N, H, W, C) -> (N, 2H, 2W, C)."""
    N, H, W, C = x.data.shape
    return Tensor(x.data.repeat(2, 1).repeat(2, 2), (x,), lambda dy: (dy.reshape(N, H, 2, W, 2, C).sum((2, 4)),))


def every_second(x):
    """Every second pixel of every second row: (N, H, W, C) -> (N, H / 2, W / 2, C)."""

    def gradients(dy):
        dx = np.zeros_like(x.data)
        dx[:, ::2, ::2] = dy
        return (dx,)

    return Tensor(x.data[:, ::2, ::2], (x,), gradients)


def embedding(table, index):
    """Row index[n] of a table (K, D) for every n: (N,) -> (N, D), the matrix product one_hot @ table."""
    one_hot = np.eye(len(table.data), dtype=table.data.dtype)[index]  # (N, K)
    return Tensor(one_hot @ table.data, (table,), lambda dy: (one_hot.T @ dy,))


def silu(x):
    """y = x s with s = 1 / (1 + exp(-x)); dx = dy s (1 + x (1 - s)) (Elfwing et al. 2017, arXiv 1702.03118)."""
    s = 0.5 * np.tanh(0.5 * x.data) + 0.5  # the same s, without overflow
    return Tensor(x.data * s, (x,), lambda dy: (dy * s * (1 + x.data * (1 - s)),))


def linear(x, w, b):
    """y = x w^T + b; dx = dy w, dw = dy^T x, db = sum of dy. x (..., I), w (O, I), b (O,) -> (..., O)."""
    O, I = w.data.shape

    def gradients(dy):
        rows = dy.reshape(-1, O)
        return dy @ w.data, rows.T @ x.data.reshape(-1, I), rows.sum(0)

    return Tensor(x.data @ w.data.T + b.data, (x, w, b), gradients)


def neighbours(x, K):
    """The K x K pixels around every pixel, 0 outside of the image: (N, H, W, C) -> (N H W, K K C)."""
    (N, H, W, C), edge = x.shape, K // 2
    padded = np.zeros((N, H + 2 * edge, W + 2 * edge, C), x.dtype)
    padded[:, edge : edge + H, edge : edge + W] = x
    n, h, w, c = padded.strides  # K pixels of a row lie side by side in memory
    return np.lib.stride_tricks.as_strided(padded, (N, H, W, K, K * C), (n, h, w, h, c)).reshape(-1, K * K * C)


def conv2d(x, w, b):
    """Convolution (LeCun et al. 1989): x (N, H, W, C), w (O, K, K, C), b (O,) -> (N, H, W, O).

        y[n, p, q] = b + sum over i, j of w[:, i, j] @ x[n, p + i - K // 2, q + j - K // 2]

    One matrix product (im2col, Chellapilla et al. 2006); dx is the convolution of dy with the mirrored kernel.
    """
    (N, H, W, C), (O, K, _, _) = x.data.shape, w.data.shape
    columns = neighbours(x.data, K)  # (N H W, K K C)

    def gradients(dy):
        mirrored = w.data[:, ::-1, ::-1].transpose(1, 2, 0, 3).reshape(-1, C)  # (K K O, C)
        dw = dy.reshape(-1, O).T @ columns
        return (neighbours(dy, K) @ mirrored).reshape(N, H, W, C), dw.reshape(w.data.shape), dy.sum((0, 1, 2))

    return Tensor((columns @ w.data.reshape(O, -1).T + b.data).reshape(N, H, W, O), (x, w, b), gradients)


def group_mean(x, groups):
    """The mean of each image and group of channels, for every channel: (N, H, W, C) -> (N, 1, 1, C)."""
    N, _, _, C = x.shape
    return x.mean((1, 2)).reshape(N, groups, -1).mean(2).repeat(C // groups, 1)[:, None, None]


def group_norm(x, weight, bias, groups, eps=1e-5):
    """y = xhat weight + bias, xhat = (x - mean) / sqrt(var + eps) (Wu & He 2018, arXiv 1803.08494, eq. 1).

    mean and var are those of an image's group of channels, and depend on x, too: with g = dy weight and <.> that mean,
    dx = (g - <g> - xhat <g xhat>) / sqrt(var + eps). x (N, H, W, C); weight, bias (C,).
    """
    xhat = x.data - group_mean(x.data, groups)
    rstd = 1 / np.sqrt(group_mean(xhat * xhat, groups) + eps)  # (N, 1, 1, C)
    xhat *= rstd

    def gradients(dy):
        g = dy * weight.data
        dx = (g - group_mean(g, groups) - xhat * group_mean(g * xhat, groups)) * rstd
        return dx, (dy * xhat).sum((0, 1, 2)), dy.sum((0, 1, 2))

    return Tensor(xhat * weight.data + bias.data, (x, weight, bias), gradients)


def attention(q, k, v):
    """o = p v, p = softmax(s), s = q k^T / sqrt(C) (Vaswani et al. 2017, arXiv 1706.03762, eq. 1); all (N, H, W, C).

    Every pixel attends to all pixels of its image. The gradient of the softmax is ds = p (dp - sum over keys of p dp).
    """
    N, H, W, C = q.data.shape
    q_, k_, v_ = (x.data.reshape(N, H * W, C) for x in (q, k, v))
    s = q_ @ k_.transpose(0, 2, 1) * C**-0.5  # (N, H W, H W): every query with every key
    p = np.exp(s - s.max(-1, keepdims=True))  # the maximum cancels; it prevents overflow
    p /= p.sum(-1, keepdims=True)

    def gradients(do):
        do_ = do.reshape(N, H * W, C)
        dp = do_ @ v_.transpose(0, 2, 1)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * C**-0.5
        inputs = ds @ k_, ds.transpose(0, 2, 1) @ q_, p.transpose(0, 2, 1) @ do_  # dq, dk, dv
        return [dx.reshape(N, H, W, C) for dx in inputs]

    return Tensor((p @ v_).reshape(N, H, W, C), (q, k, v), gradients)


def mse(prediction, target):
    """The mean of (prediction - target)^2, a scalar."""
    error = prediction.data - target
    return Tensor(np.mean(error * error), (prediction,), lambda dy: (error * (2 * dy / error.size),))


# 5 U-Net --------------------------------------------------------------------------------------------------------------
# The network, which predicts from x_t, t and a class (Ronneberger et al. 2015, arXiv 1505.04597; DDPM appendix B). The
# down path goes to fewer pixels with more channels, the up path back. hs keeps what the down path computed, and the up
# path concatenates it (skip connections): details need not pass through the 8x8 pixels in the middle. Weights have the
# names they have in diffusers' UNet2DModel.

WIDTHS = (16, 32)  # channels at 16x16 and at 8x8 pixels


def timestep_embedding(t, width):
    """cos and sin of t 10000^(-2 i / width), i < width / 2 (Vaswani et al. 2017, section 3.5): (N,) -> (N, width)."""
    angles = t[:, None] * np.exp(-np.log(10000) * np.arange(width // 2) / (width // 2))  # (N, width / 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


class UNet:
    """prediction = unet(x_t, t, labels). params: weights by name; those missing are initialised at their first use."""

    def __init__(self, widths, rng, params=()):
        self.widths, self.rng, self.params = widths, rng, dict(params)
        self(np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros(1, int), np.zeros(1, int))
        TAPE.clear()  # this was their first use

    def parameter(self, name, shape, low, high):
        """The weights of that name, initially uniform from low to high."""
        if name not in self.params:
            self.params[name] = Tensor(self.rng.uniform(low, high, shape).astype(np.float32), needs_grad=True)
        return self.params[name]

    def weight_and_bias(self, name, *shape):
        """Initially uniform in +-1 / sqrt(number of inputs of an output), as PyTorch's."""
        a = np.prod(shape[1:]) ** -0.5
        return self.parameter(f"{name}.weight", shape, -a, a), self.parameter(f"{name}.bias", shape[0], -a, a)

    def linear(self, name, x, O):
        """(..., I) -> (..., O)."""
        return linear(x, *self.weight_and_bias(name, O, x.data.shape[-1]))

    def conv(self, name, x, O, K=3):
        """(N, H, W, I) -> (N, H, W, O)."""
        return conv2d(x, *self.weight_and_bias(name, O, K, K, x.data.shape[-1]))

    def norm(self, name, x):
        """Group normalisation in 8 groups, (N, H, W, C) -> same."""
        C = x.data.shape[-1]
        return group_norm(x, self.parameter(f"{name}.weight", C, 1, 1), self.parameter(f"{name}.bias", C, 0, 0), 8)

    def resnet_block(self, name, x, temb, O):
        """x + conv(silu(norm(conv(silu(norm(x))) + temb))) (He et al. 2015, arXiv 1512.03385): (N, H, W, I or O)."""
        h = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)), O)  # (N, H, W, O)
        h = add(h, self.linear(f"{name}.time_emb_proj", silu(temb), O))
        h = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", h)), O)
        return add(h, x if x.data.shape[-1] == O else self.conv(f"{name}.conv_shortcut", x, O, K=1))

    def self_attention(self, name, x):
        """x + attention among the pixels of each image: (N, H, W, C) -> same."""
        h, C = self.norm(f"{name}.group_norm", x), x.data.shape[-1]
        o = attention(*(self.linear(f"{name}.{projection}", h, C) for projection in ("to_q", "to_k", "to_v")))
        return add(x, self.linear(f"{name}.to_out.0", o, C))

    def __call__(self, x_t, t, labels):
        widths, last = self.widths, len(self.widths) - 1
        E = 4 * widths[0]
        temb = self.linear("time_embedding.linear_1", Tensor(timestep_embedding(t, widths[0])), E)
        temb = self.linear("time_embedding.linear_2", silu(temb), E)
        temb = add(temb, embedding(self.parameter("class_embedding.weight", (3, E), -1, 1), labels))  # (N, E)

        h = self.conv("conv_in", Tensor(x_t), widths[0])  # (N, 16, 16, C0)
        hs = [h]
        for i, width in enumerate(widths):
            h = self.resnet_block(f"down_blocks.{i}.resnets.0", h, temb, width)  # (N, 16, 16, C0), (N, 8, 8, C1)
            hs.append(h)
            if i < last:
                h = every_second(self.conv(f"down_blocks.{i}.downsamplers.0.conv", h, width))  # (N, 8, 8, C0)
                hs.append(h)
        h = self.resnet_block("mid_block.resnets.0", h, temb, widths[-1])  # (N, 8, 8, C1)
        h = self.self_attention("mid_block.attentions.0", h)
        h = self.resnet_block("mid_block.resnets.1", h, temb, widths[-1])
        for i, width in enumerate(reversed(widths)):
            h = self.resnet_block(f"up_blocks.{i}.resnets.0", concat(h, hs.pop()), temb, width)  # (N, 8, 8, C1), ...
            h = self.resnet_block(f"up_blocks.{i}.resnets.1", concat(h, hs.pop()), temb, width)
            if i < last:
                h = self.conv(f"up_blocks.{i}.upsamplers.0.conv", upsample(h), width)  # (N, 16, 16, C1)
        return self.conv("conv_out", silu(self.norm("conv_norm_out", h)), 3)  # (N, 16, 16, 3)


# 6 Loss ---------------------------------------------------------------------------------------------------------------
# At a random t the network sees x_t and predicts x0 (DDPM algorithm 1 with x0 in the place of eps; see section 3.2):
#     L = mean of (x0_hat - x0)^2
# The best x0_hat is the mean of all images that may have become x_t. DDPM predicts eps, from which x0 follows by eq. 4;
# x0 is smooth, and so a small network learns it in fewer steps.


def training_loss(unet, x0, t, eps, labels):
    """L for images x0, timesteps t (N,), noise eps and labels (N,)."""
    return mse(unet(q_sample(x0, t, eps), t, labels), x0)


# 7 AdamW --------------------------------------------------------------------------------------------------------------
# Gradient descent with a step length for each weight, from moving averages of its gradient g and of g^2 (Kingma & Ba
# 2014, arXiv 1412.6980, algorithm 1), and with weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2):
#     m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      p <- p - lr (mhat / (sqrt(vhat) + eps) + decay p)
# mhat = m / (1 - b1^k) and vhat = v / (1 - b2^k) in step k, as m and v begin at 0. g is clipped: all gradients together
# have at most norm 1. Samples come from the exponential moving average (EMA) of the weights, which is less noisy.


class AdamW:
    """Steps for params; `averages`, tensors of the same shapes, become the EMA."""

    def __init__(self, params, averages):
        self.params, self.averages, self.k = params, averages, 0
        self.m, self.v = ([np.zeros_like(p.data) for p in params] for _ in range(2))

    def step(self, lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.01, ema=0.99):
        """Change every parameter by its gradient, at learning rate lr; drop the gradients."""
        self.k += 1
        norm = np.sqrt(sum(np.square(p.grad, dtype=np.float64).sum() for p in self.params))
        clip = min(1.0, 1 / (float(norm) + 1e-6))
        ema = min(ema, (1 + self.k) / (10 + self.k))  # a shorter average at first, without the initial weights
        for p, m, v, average in zip(self.params, self.m, self.v, self.averages, strict=True):
            g = p.grad * clip
            p.data *= 1 - lr * decay
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p.data -= lr / (1 - b1**self.k) * m / (np.sqrt(v / (1 - b2**self.k)) + eps)
            average.data += (1 - ema) * (p.data - average.data)
            p.grad = None


# 8 DDIM sampler -------------------------------------------------------------------------------------------------------
# From noise to an image. At x_t the network predicts x0_hat, and eps_hat follows by DDPM eq. 4. Combined with less
# noise than before, they are the next x_t (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0):
#     x_prev = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev) eps_hat
# Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) strengthens the class. In training some labels
# are NULL, so the network predicts both with and without: x0_hat = x0_null + scale (x0_class - x0_null), scale > 1.


def sample(unet, x_t, labels, steps=25, scale=1.5):
    """x_t after each step, from noise x_t (N, 16, 16, 3) on; the last one is the sample. labels (N,)."""
    ts = np.linspace(T, 0, steps, endpoint=False).round().astype(int) - 1  # (steps,), falling from T - 1
    for t, alpha_bar_prev in zip(ts, [*ALPHAS_CUMPROD[ts[1:]], 1.0], strict=True):
        t, pairs = np.full(2 * len(x_t), t), np.concatenate([labels, np.full_like(labels, NULL)])  # (2 N,) each
        x0_class, x0_null = np.split(unet(np.concatenate([x_t, x_t]), t, pairs).data, 2)  # (N, 16, 16, 3) each
        x0_hat = x0_null + scale * (x0_class - x0_null)
        signal, noise = signal_and_noise(t[:1], x_t.dtype)
        eps_hat = (x_t - signal * x0_hat) / noise
        x_t = float(alpha_bar_prev) ** 0.5 * x0_hat.clip(-1, 1) + (1 - float(alpha_bar_prev)) ** 0.5 * eps_hat
        yield x_t


def save_sheet(images, path, columns=8, zoom=6):
    """Save images (N, H, W, 3) side by side as one PNG file."""
    tiles = np.pad((images.clip(-1, 1) + 1) * 127.5, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    _, H, W, _ = tiles.shape
    sheet = tiles.reshape(-1, columns, H, W, 3).swapaxes(1, 2).reshape(-1, columns * W, 3)
    Image.fromarray(sheet.round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)).save(path, "PNG")


# 9 Training -----------------------------------------------------------------------------------------------------------
# Again and again: new images, a random timestep and noise for each, one optimiser step on the loss (DDPM algorithm 1).
# The learning rate rises over 50 steps and then stays: the EMA makes up for its noise, whenever training ends.


def train(unet, optimizer, rng, steps, lr=3e-3, n=16):
    """Steps with n images each, with a line of progress; Ctrl-C ends them."""
    start, smooth = time.monotonic(), 0.0
    try:
        for step in range(1, steps + 1):
            x0, labels = batch(rng, n)
            labels[rng.random(n) < 0.1] = NULL
            t, eps = rng.integers(0, T, n), rng.standard_normal(x0.shape, np.float32)
            loss = training_loss(unet, x0, t, eps, labels)
            loss.backward()
            optimizer.step(lr * min(1, step / 50))
            smooth += max(0.02, 1 / step) * (float(loss.data) - smooth)
            left = round((time.monotonic() - start) / step * (steps - step))
            print(f"\rstep {step}/{steps}  loss {smooth:.4f}  {left // 60}:{left % 60:02} left ", end="", flush=True)
    except KeyboardInterrupt:
        print("stopped", end="")
    print()


def main():
    """Train on cats and dogs, and write a sheet of samples."""
    parser = argparse.ArgumentParser(prog="python -m minidiff.nano", description="Train, then sample 64 images.")
    parser.add_argument("--steps", type=int, default=1500, help="Number of training steps.")
    parser.add_argument("--out", default="nano.png", help="PNG file to write: cats above, dogs below.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, images and noise.")
    args = parser.parse_args()
    try:
        rng = np.random.default_rng(args.seed)
        open(args.out, "ab").close()  # fails before training, not after it
    except (OSError, ValueError) as error:  # of the path, of a negative seed
        parser.error(f"argument --out or --seed: {error}")

    unet = UNet(WIDTHS, rng)
    averaged = UNet(WIDTHS, rng, {name: Tensor(p.data.copy()) for name, p in unet.params.items()})  # needs no gradients
    train(unet, AdamW([*unet.params.values()], [*averaged.params.values()]), rng, args.steps)
    *_, images = sample(averaged, rng.standard_normal((64, SIZE, SIZE, 3), np.float32), np.repeat([CAT, DOG], 32))
    try:
        save_sheet(images, args.out)
    except OSError as error:  # a full disk
        parser.error(f"argument --out: {error}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
