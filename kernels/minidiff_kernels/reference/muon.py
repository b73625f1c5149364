"""Muon: momentum, orthogonalised by Newton-Schulz iterations, as the update of weight matrices in flat buffers."""

import numpy as np

from .optim import grad_norm

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan et al.: the steepest at 0 that lead to about 0.7 to 1.2
ITERATIONS = 5
TINY = 1e-7  # least norm that is divided by
RMS = 0.2  # root mean square of an update per learning rate, about AdamW's (Liu et al. 2025, arXiv:2502.16982)


def muon(p, g, m, ema, matrices, norm, clip, lr, momentum, weight_decay, ema_decay):
    """One step of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon); p, m and ema change in place.

        m <- m + (1 - momentum) (gc - m)       n = m + (1 - momentum) (gc - m), Nesterov's momentum
        p <- p (1 - lr weight_decay)
        p <- p - lr 0.2 sqrt(max(O, K)) orthogonalize(n)
        ema <- ema + (1 - ema_decay) (p - ema)

    An orthogonal matrix (O, K) has elements of root mean square 1 / sqrt(max(O, K)), so the update's is about 0.2 lr
    whatever the shape, as with AdamW, whose learning rates hold for it too.
    p, g, m, ema (P,), of which only the matrices change: matrices (M, 3) has the first index, O and K of each. The
    weight of a convolution is (O, KH KW C). gc is the clipped gradient; norm, clip and ema as in `adamw`; if norm is
    not finite, nothing is changed.
    """
    if not np.isfinite(norm):
        return
    scale = g.dtype.type(min(1.0, clip / (norm + 1e-6)))
    for first, O, K in matrices:
        place = slice(first, first + O * K)
        gc = g[place] * scale
        m[place] += (1 - momentum) * (gc - m[place])
        n = m[place] + (1 - momentum) * (gc - m[place])
        p[place] *= 1 - lr * weight_decay
        p[place] -= lr * RMS * max(O, K) ** 0.5 * orthogonalize(n.reshape(O, K)).ravel()
        if ema is not None:
            ema[place] += (1 - ema_decay) * (p[place] - ema[place])


def orthogonalize(x):
    """About U V^T of the singular value decomposition x = U S V^T, by Newton-Schulz iterations; x (O, K).

        x <- x / |x|,   then five times   x <- a x + b (x x^T) x + c (x x^T)^2 x

    The iteration changes the singular values alone, s <- a s + b s^3 + c s^5, and brings all but the smallest to
    between 0.7 and 1.2. a, b, c are COEFFICIENTS. If O > K, x^T is orthogonalised, which takes fewer operations.
    """
    if len(x) > x.shape[1]:
        return orthogonalize(x.T).T
    a, b, c = COEFFICIENTS
    x = x / x.dtype.type(max(grad_norm(x), TINY))
    for _ in range(ITERATIONS):
        A = x @ x.T  # (O, O)
        x = (a * np.eye(len(A), dtype=x.dtype) + b * A + c * A @ A) @ x
    return x
