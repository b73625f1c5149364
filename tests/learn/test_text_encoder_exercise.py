"""Chapter 10's solution against the engine's attention."""

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor
from minidiff.learn.chapters.text_encoder import EXERCISES, causal_attention

(ATTENTION,) = EXERCISES


def test_it_is_the_engine_s_causal_attention():
    cases = ATTENTION.inputs(np.random.default_rng(0))
    for q, k, v in (case for case in cases if case[0].shape == case[2].shape):  # which the engine asks for
        tensors = (Tensor(a[None, :, None].astype(np.float32), get_backend("numpy")) for a in (q, k, v))
        expected = F.attention(*tensors, causal=True).numpy()[0, :, 0]  # (T, D)
        assert np.allclose(causal_attention(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_an_output_depends_on_the_tokens_up_to_it():
    q, k, v = ATTENTION.inputs(np.random.default_rng(1))[1]
    changed = [a.copy() for a in (q, k, v)]
    for a in changed:
        a[5] += 1
    before, after = causal_attention(q, k, v), causal_attention(*changed)
    assert np.array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).all()
