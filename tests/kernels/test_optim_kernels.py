"""One step of AdamW over a flat buffer, and the norm it clips by."""

import math

import numpy as np
import pytest
import torch
from against_torch import Case, check, check_nan, draw


def grad_norm(P, scale=1.0):
    def ours(backend, g):
        return {"norm": backend.grad_norm(g)}

    inputs = {"g": draw(P, scale=scale)}
    return Case(f"grad_norm {P} x{scale}", inputs, ours, lambda g: {"norm": torch.linalg.vector_norm(g)})


def adamw(P, step=3, lr=0.5, weight_decay=0.1, clip=math.inf, beta1=0.9, beta2=0.99, eps=1e-8, ema_decay=0.7, g=1.0):
    """From moments as after a few steps. The rate is large, so that an error in the update shows in p."""
    norm_of = float(np.linalg.norm(draw(P, scale=g, seed=1).astype(np.float64)))

    def ours(backend, p, g, m, v, ema=None):
        new = {"p": p, "m": m, "v": v} | ({} if ema is None else {"ema": ema})
        new = {k: a.copy() for k, a in new.items()}  # adamw works in place, and must leave g alone
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


CASES = [
    grad_norm(1),
    grad_norm(7),
    grad_norm(1000, scale=1e-3),
    grad_norm(100_003),
    grad_norm(100_003, scale=1e18),  # squares that would overflow float32
    grad_norm(5000, scale=1e-25),  # or vanish in it
    adamw(1),
    adamw(13, step=1),
    adamw(1000, ema_decay=None),
    adamw(1000, step=1000, weight_decay=0.0),
    adamw(1001, clip=1.0),
    adamw(1001, clip=1e9),  # too large to clip anything
    adamw(70_001, clip=0.5, ema_decay=0.9999, beta2=0.999),
    adamw(300, eps=0.1, g=1e-3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim_carries_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("ema", [True, False])
def test_a_norm_that_is_no_number_spoils_everything(backend, norm, ema):
    """Gradients that overflowed must not look like a small step."""
    p, g, m, v, average = (backend.asarray(draw(5, seed=i) ** 2) for i in range(5))
    g[2] = norm
    backend.adamw(p, g, m, v, average if ema else None, backend.grad_norm(g), 1.0, 0.1, 0.9, 0.99, 1e-8, 0.0, 1, 0.9)
    assert np.isnan(backend.to_numpy(p)[2])
