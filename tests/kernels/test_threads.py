"""Results are bit-identical from run to run and for any number of threads."""

import numba
import numpy as np
import own_process
import pytest
from against_torch import run_ours
from kernel_cases import adamw, add, attention, concat, conv, embedding, grad_norm, muon, norm, silu, sum_to, upsample

from minidiff.engine.backend import get_backend

CASES = [
    conv((3, 16, 15, 32), (48, 3, 3, 32), pad=(1, 1, 1, 1), add="temb"),
    conv((8, 16, 15, 12), (20, 3, 3, 12), pad=(1, 1, 1, 1), add="residual"),
    conv((8, 16, 16, 32), (32, 3, 3, 32), stride=2, pad=(0, 1, 0, 1)),  # Winograd
    conv((20, 16, 16, 32), (48, 3, 3, 32), pad=(1, 1, 1, 1)),  # Winograd, two chunks of the weight gradient
    conv((8, 16, 16, 8), (8, 3, 3, 8), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 12, 16, 32), (112, 3, 3, 32), pad=(1, 1, 1, 1)),  # Winograd with streamed weights
    conv((1, 1, 20, 64), (112, 1, 1, 64)),  # streamed weights
    conv((1, 1, 4000, 32), (40, 1, 1, 32)),
    conv((2, 40, 50, 32), (48, 1, 1, 32)),
    norm((5, 16, 16, 24), 8, silu=True),
    attention(3, 100, 77, 2, 16),
    attention(1, 500, 77, 1, 16),  # the queries of a head are divided among threads
    attention(1, 400, 400, 1, 8, causal=True),
    silu(50_000),
    add(50_000),
    sum_to((7,), (9999, 7)),
    sum_to((5, 1, 1, 7), (5, 33, 31, 7)),
    embedding(11, 64, 500),
    upsample(3, 16, 16, 17),
    concat(3, 16, 16, channels=(17, 16)),
    grad_norm(100_003),
    adamw(100_003),
    muon((64, 576), (96, 40), (10, 20)),
]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads to compare with one")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_do_not_depend_on_threads(case):
    backend = get_backend("numba")
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(run_ours(backend, case, case.inputs))
    for k, a in results[0].items():
        for again in results[1:]:
            np.testing.assert_array_equal(again[k], a, f"{case}: {k}")


TRAINING = """
import hashlib
import numba
import numpy as np
from minidiff.diffusion.loss import training_loss
from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.optim import AdamW
from minidiff.models.config import UNetConfig
from minidiff.models.unet import UNet

rng = np.random.default_rng(0)
unet = UNet(UNetConfig(
    sample_size=(14, 22), block_out_channels=(32, 48), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
), rng, "numba")
optimizer = AdamW(unet.parameters(), lr=1e-3, ema=0.99)
for step in range(3):
    x0, eps = rng.standard_normal((2, 3, 14, 22, 3), dtype=np.float32)
    optimizer.zero_grad()
    loss = training_loss(unet, linear_schedule(), x0, rng.integers(0, 1000, 3), eps)
    loss.backward()
    optimizer.step()
states = optimizer.p, optimizer.g, optimizer.m, optimizer.v, optimizer.ema
print(numba.get_num_threads(), loss.numpy().tobytes().hex(), *(hashlib.sha256(a).hexdigest() for a in states))
"""


def test_training_does_not_depend_on_threads():
    """Three steps of a U-Net whose lower resolution is 7 x 11, also with more threads than cores."""
    threads, *states = zip(*(own_process.run(TRAINING, NUMBA_NUM_THREADS=n)[0].split() for n in "124"), strict=True)
    assert threads == ("1", "2", "4")
    for state in states:
        assert len(set(state)) == 1
