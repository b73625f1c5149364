"""A `Case` for each operation: inputs of given shapes, the operation on a backend, and the same in torch."""

import math
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from against_torch import CONV_FLOOR, Case, autograd, draw, nchw, nhwc
from torch.nn.attention import SDPBackend, sdpa_kernel


def conv(x, w, stride=1, pad=(0, 0, 0, 0), bias=True, add=None, offset=0.0):
    """x (N, H, W, C), w (O, KH, KW, C); add: None, "temb" (N, 1, 1, O) or "residual" (N, P, Q, O)."""
    (N, H, W, _), (O, KH, KW, _), (top, bottom, left, right) = x, w, pad
    y = N, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1, O
    inputs = {"dy": draw(*y, seed=1), "x": draw(*x, offset=offset), "w": draw(*w, seed=2)}
    inputs |= {"bias": draw(O, seed=3)} if bias else {}
    inputs |= {"add": draw(*(y if add == "residual" else (N, 1, 1, O)), seed=4)} if add else {}

    def ours(backend, dy, x, w, bias=None, add=None):
        dx, dw, dbias = backend.conv2d_backward(dy, x, w, stride, pad)
        return {"y": backend.conv2d(x, w, bias, stride, pad, add), "dx": dx, "dw": dw} | (
            {} if bias is None else {"dbias": dbias}
        )

    def theirs(x, w, bias=None, add=0):
        padded = F.pad(nchw(x), (left, right, top, bottom))
        return nhwc(F.conv2d(padded, nchw(w), bias, stride)) + add

    label = f"x{x} w{w} s{stride} p{pad}{'' if bias else ' no bias'}{f' + {add}' if add else ''}".replace(", ", ",")
    return Case(label, inputs, ours, autograd(theirs), CONV_FLOOR)


def norm(x, groups, silu=False, eps=1e-5, offset=0.0, scale=1.0):
    """x (N, ..., C), normal with mean `offset` and standard deviation `scale`."""
    C = x[-1]
    inputs = {"dy": draw(*x, seed=1), "x": draw(*x, offset=offset, scale=scale)}
    inputs |= {"weight": draw(C, offset=1), "bias": draw(C, seed=2)}

    def ours(backend, dy, x, weight, bias):
        y, mean, rstd = backend.group_norm(x, weight, bias, groups, eps, silu)
        dx, dweight, dbias = backend.group_norm_backward(dy, x, weight, bias, mean, rstd, silu)
        results = {"y": y, "mean": mean, "rstd": rstd, "dx": dx, "dweight": dweight, "dbias": dbias}
        again = dy.copy()  # becomes y
        gradients = backend.group_norm_backward(again, x, weight, bias, mean, rstd, silu, again)
        names = "y again", "dx again", "dweight again", "dbias again"
        results |= dict(zip(names, (again, *gradients), strict=True))
        mean, rstd = backend.group_statistics(x, groups, eps)
        y = backend.normalise(x, weight, bias, mean, rstd, silu)
        results |= {"y of statistics": y, "mean alone": mean, "rstd alone": rstd}
        return results | {"dx + x": backend.group_norm_backward(dy, x, weight, bias, mean, rstd, silu, None, x)[0]}

    def theirs(dy, x, weight, bias):
        leaves = [a.requires_grad_() for a in (x, weight, bias)]
        x_nchw = nchw(x) if x.ndim == 4 else nchw(x).contiguous()  # channels_last exists for 4-d tensors only
        z, mean, rstd = torch.native_group_norm(x_nchw, weight, bias, len(x), C, x[0].numel() // C, groups, eps)
        y = nhwc(F.silu(z) if silu else z)
        results = {"y": y} | dict(zip(("dx", "dweight", "dbias"), torch.autograd.grad(y, leaves, dy), strict=True))
        again = {f"{name} again": a for name, a in results.items()}
        results |= again | {"mean": mean, "rstd": rstd, "dx + x": results["dx"] + x.detach()}
        return results | {"y of statistics": y, "mean alone": mean, "rstd alone": rstd}

    label = f"x{x} G{groups}{' silu' if silu else ''} eps{eps} {offset}+{scale}".replace(", ", ",")
    return Case(label, inputs, ours, theirs)


def attention(N, T, S, heads, D, scale=1.0, causal=False):
    """q (N, T, heads, D) times `scale`, k and v (N, S, heads, D)."""
    q, kv = (N, T, heads, D), (N, S, heads, D)
    inputs = {"do": draw(*q, seed=1), "q": draw(*q, scale=scale), "k": draw(*kv, seed=2), "v": draw(*kv, seed=3)}

    def ours(backend, do, q, k, v):
        o, lse = backend.attention(q, k, v, causal)
        return {"o": o, "lse": lse} | dict(
            zip(("dq", "dk", "dv"), backend.attention_backward(do, q, k, v, o, lse, causal), strict=True)
        )

    def theirs(do, q, k, v):
        leaves = [a.requires_grad_() for a in (q, k, v)]
        by_head = [a.transpose(1, 2) for a in leaves]  # (N, heads, T, D)
        # float32: torch's fused kernel; float64: matrix products and softmax, which propagate NaN
        masked = torch.ones(T, S, dtype=torch.bool).triu(1) if causal else torch.zeros(T, S, dtype=torch.bool)
        s = (by_head[0] @ by_head[1].mT * D**-0.5).masked_fill(masked, -math.inf)
        if q.dtype == torch.float32:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                o = F.scaled_dot_product_attention(*by_head, is_causal=causal).transpose(1, 2)
        else:
            o = (s.softmax(-1) @ by_head[2]).transpose(1, 2)
        lse = s.logsumexp(-1)
        gradients = zip(("dq", "dk", "dv"), torch.autograd.grad(o, leaves, do), strict=True)
        return {"o": o, "lse": lse, **dict(gradients)}

    return Case(f"N{N} T{T} S{S} heads{heads} D{D} x{scale}{' causal' if causal else ''}", inputs, ours, theirs)


def silu(*shape, scale=1.0):
    def ours(backend, dy, x):
        return {"y": backend.silu(x), "dx": backend.silu_backward(dy, x)}

    inputs = {"dy": draw(*shape, seed=1), "x": draw(*shape, scale=scale)}
    return Case(f"silu {shape} x{scale}", inputs, ours, autograd(lambda x: F.silu(x)))


def gelu(*shape, scale=1.0):
    def ours(backend, dy, x):
        return {"y": backend.gelu(x), "dx": backend.gelu_backward(dy, x)}

    inputs = {"dy": draw(*shape, seed=1), "x": draw(*shape, scale=scale)}
    return Case(f"gelu {shape} x{scale}", inputs, ours, autograd(lambda x: F.gelu(x)))


def geglu(*shape, scale=1.0):
    """shape of x, whose last axis is h, then gate."""

    def ours(backend, dy, x):
        again = dy.copy()  # becomes y
        dx_again = backend.geglu_backward(again, x, again)
        dx = backend.geglu_backward(dy, x)
        return {"y": backend.geglu(x), "dx": dx, "y again": again, "dx again": dx_again}

    def theirs(dy, x):
        h, gate = x.requires_grad_().chunk(2, -1)
        y = h * F.gelu(gate)
        (dx,) = torch.autograd.grad(y, x, dy)
        return {"y": y, "dx": dx, "y again": y, "dx again": dx}

    inputs = {"dy": draw(*shape[:-1], shape[-1] // 2, seed=1), "x": draw(*shape, scale=scale)}
    return Case(f"geglu {shape} x{scale}", inputs, ours, theirs)


def add(*shape):
    inputs = {"a": draw(*shape), "b": draw(*shape, seed=1)}
    return Case(f"add {shape}", inputs, lambda backend, a, b: {"y": backend.add(a, b)}, lambda a, b: {"y": a + b})


def sum_to(shape, before, offset=0.0):
    """The gradient of shape `before`, summed to `shape`."""

    def ours(backend, dy):
        return {"dx": backend.sum_to(dy, shape)}

    inputs = {"dy": draw(*before, offset=offset)}
    return Case(f"{before} summed to {shape}", inputs, ours, lambda dy: {"dx": dy.sum_to_size(shape)})


def embedding(rows, width, n, dtype=np.int64):
    index = np.random.default_rng(n).integers(0, rows, n).astype(dtype)
    index[0] = rows // 2  # check_nan puts a NaN into this row

    def ours(backend, dy, table, index):
        return {"y": backend.embedding(table, index), "dtable": backend.embedding_backward(dy, index, rows)}

    inputs = {"dy": draw(n, width, seed=1), "table": draw(rows, width), "index": index}
    theirs = autograd(lambda table, index: F.embedding(index, table))
    return Case(f"embedding {rows}x{width} n{n} {index.dtype}", inputs, ours, theirs)


def upsample(N, H, W, C):
    def ours(backend, dy, x):
        return {"y": backend.upsample_nearest(x), "dx": backend.upsample_nearest_backward(dy)}

    def theirs(x):
        return nhwc(F.interpolate(nchw(x), scale_factor=2, mode="nearest"))

    inputs = {"dy": draw(N, 2 * H, 2 * W, C, seed=1), "x": draw(N, H, W, C)}
    return Case(f"upsample {N, H, W, C}", inputs, ours, autograd(theirs))


def concat(*lead, channels):
    A, B = channels

    def ours(backend, dy, a, b):
        da, db = backend.concat_backward(dy, A)
        return {"y": backend.concat(a, b), "da": da, "db": db}

    inputs = {"dy": draw(*lead, A + B, seed=1), "a": draw(*lead, A), "b": draw(*lead, B, seed=2)}
    theirs = autograd(lambda a, b: torch.cat((a, b), -1))
    return Case(f"concat {lead} {A}+{B}", inputs, ours, theirs)


def grad_norm(P, scale=1.0):
    def ours(backend, g):
        return {"norm": backend.grad_norm(g)}

    inputs = {"g": draw(P, scale=scale)}
    return Case(f"grad_norm {P} x{scale}", inputs, ours, lambda g: {"norm": torch.linalg.vector_norm(g)})


def adamw(P, step=3, lr=0.5, weight_decay=0.1, clip=math.inf, beta1=0.9, beta2=0.99, eps=1e-8, ema_decay=0.7, g=1.0):
    """One step from random moments. The learning rate is large, so that an error in the update shows in p."""
    norm_of = float(np.linalg.norm(draw(P, scale=g, seed=1).astype(np.float64)))

    def ours(backend, p, g, m, v, ema=None):
        new = {"p": p, "m": m, "v": v} | ({} if ema is None else {"ema": ema})
        new = {k: a.copy() for k, a in new.items()}  # adamw works in place and must not change g
        norm = backend.xp.float64(norm_of)
        backend.adamw(
            new["p"], g, new["m"], new["v"], new.get("ema"), norm, clip, lr, beta1, beta2, eps, weight_decay,
            step, 0.0 if ema is None else ema_decay,
        )  # fmt: skip
        return new

    def theirs(p, g, m, v, ema=None):
        p = p.clone().requires_grad_()
        optimizer = torch.optim.AdamW([p], lr, (beta1, beta2), eps, weight_decay)
        optimizer.state[p] = {"step": torch.tensor(step - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        p.grad = g * min(1.0, clip / (norm_of + 1e-6))
        optimizer.step()
        new = {"p": p, "m": optimizer.state[p]["exp_avg"], "v": optimizer.state[p]["exp_avg_sq"]}
        return new if ema is None else new | {"ema": ema + (1 - ema_decay) * (p - ema)}

    inputs = {"p": draw(P), "g": draw(P, scale=g, seed=1), "m": draw(P, seed=2), "v": draw(P, seed=3) ** 2}
    inputs |= {} if ema_decay is None else {"ema": draw(P, seed=4)}
    return Case(f"adamw {P} step{step} clip{clip} g{g} ema{ema_decay}", inputs, ours, theirs)


def muon(*shapes, clip=math.inf, weight_decay=0.1, ema_decay=0.7, g=1.0, lr=0.1, momentum=0.9):
    """One step from a random momentum on matrices (O, K), between other weights, against torch's Muon.

    The learning rate is large, so that an error in the update shows in p.
    """
    *firsts, P = np.cumsum([1, *(O * K + 1 for O, K in shapes)]).tolist()
    matrices = np.array([(first, *shape) for first, shape in zip(firsts, shapes, strict=True)])
    norm_of = float(np.linalg.norm(draw(P, scale=g, seed=1).astype(np.float64)))

    def ours(backend, p, g, m, ema=None):
        new = {"p": p, "m": m} | ({} if ema is None else {"ema": ema})
        new = {k: a.copy() for k, a in new.items()}  # muon works in place and must not change g
        norm, decay = backend.xp.float64(norm_of), 0.0 if ema is None else ema_decay
        backend.muon(new["p"], g, new["m"], new.get("ema"), matrices, norm, clip, lr, momentum, weight_decay, decay)
        return new

    def theirs(p, g, m, ema=None):
        new = {"p": p.clone(), "m": m.clone()} | ({} if ema is None else {"ema": ema.clone()})
        views = {k: [a[first : first + O * K].view(O, K) for first, O, K in matrices.tolist()] for k, a in new.items()}
        optimizer = torch.optim.Muon(views["p"], lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
        for (first, O, K), view, momentum_buffer in zip(matrices.tolist(), views["p"], views["m"], strict=True):
            optimizer.state[view] = {"momentum_buffer": momentum_buffer}
            view.grad = g[first : first + O * K].view(O, K) * min(1.0, clip / (norm_of + 1e-6))
        with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):  # else it orthogonalises in bfloat16
            optimizer.step()
        for average, view in zip(views.get("ema", []), views["p"], strict=False):
            average += (1 - ema_decay) * (view - average)
        return new

    inputs = {"p": draw(P), "g": draw(P, scale=g, seed=1), "m": draw(P, scale=g, seed=2)}
    inputs |= {} if ema_decay is None else {"ema": draw(P, seed=4)}
    label = ",".join(f"{O}x{K}" for O, K in shapes)
    return Case(f"muon {label} clip{clip} g{g} ema{ema_decay}", inputs, ours, theirs, CONV_FLOOR)


def memory(*shape):
    def ours(backend, x):
        y = backend.empty(x.shape)
        y[...] = x
        return {"y": y, "host": backend.asarray(backend.later(y)())}

    return Case(f"memory {shape}", {"x": draw(*shape)}, ours, lambda x: {"y": x, "host": x})


def pack(*shape):
    """Weights as float32 kernels keep them: they are their own."""
    return Case(f"pack {shape}", {"w": draw(*shape)}, lambda backend, w: {"y": 1 * backend.pack(w)}, lambda w: {"y": w})


def widen(*shape):
    def ours(backend, x):
        return {"y": backend.widen(backend.xp.asarray(backend.to_numpy(x).astype(np.float16)))}

    return Case(f"widen {shape}", {"x": draw(*shape)}, ours, lambda x: {"y": x.half().to(x.dtype)})
