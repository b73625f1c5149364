"""The averages that a run's states hold: one by its half-life, another combined post hoc, and what is refused."""

import json
import logging

import numpy as np
import pytest
from small_runs import go_on, new_run, pictures, refused, tree

from minidiff.engine.ema import ema_profile, post_hoc_ema
from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffWarning
from minidiff.formats.run_networks import read_unet
from minidiff.formats.run_state import best_file, kept_states, read_state, state_file, step_file
from minidiff.formats.weights import write_safetensors
from minidiff.sampling.opening import open_pipeline

STEPS, OWN, EMAS, WANTED = 200, 138, (2.0, 8.0), 5.0  # half-lives in steps; OWN is a run's without options


def flat(unet):
    return np.concatenate([p.numpy().ravel() for p in unet.parameters()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two further averages, its weights after every step (STEPS + 1, P), and its average of WANTED."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = new_run(folder, STEPS, emas=EMAS, lr=0.02)
    weights, average = [run.optimizer.p.copy()], run.optimizer.p.astype(np.float64)

    def on_step(stats):
        nonlocal average
        weights.append(run.optimizer.p.copy())
        decay = min(half_life(WANTED), (1 + stats.step) / (10 + stats.step))
        average = decay * average + (1 - decay) * run.optimizer.p

    go_on(run, 50, on_step=on_step, keep=3)
    return folder, np.array(weights, np.float64), average


@pytest.mark.parametrize("steps, name", [(OWN, "ema"), (138.28, "ema"), (2, "ema_2"), (8.001, "ema_8")])
@pytest.mark.parametrize("weights", [None, "best", 150])
def test_a_stored_average(trained, caplog, steps, name, weights):
    """Bit for bit, at every checkpoint; the log says nothing."""
    folder, *_ = trained
    path = {None: state_file(folder), "best": best_file(folder), 150: step_file(folder, 150)}[weights]
    with caplog.at_level(logging.INFO):
        pipeline = open_pipeline(folder, "numpy", weights, ema=steps)
    want = read_state(path)
    np.testing.assert_array_equal(flat(pipeline.unet), want.buffers[name].read())
    assert pipeline.step == want.step and caplog.text == ""


def test_a_combined_average(trained, caplog):
    """Within the stated error of the profile of the true average."""
    folder, weights, average = trained
    with caplog.at_level(logging.INFO):
        pipeline = open_pipeline(folder, "numpy", ema=WANTED)
    (message,) = caplog.messages
    assert message.startswith("EMA of half-life 5, combined from 138, 2, 8 at 3 checkpoints: profile error ")
    error = float(message.removesuffix(" %").split()[-1]) / 100
    assert 1e-3 < error < 0.05
    profile = (1 - half_life(WANTED)) / (1 + half_life(WANTED))  # |w|^2 of an exponential average without warm-up
    bound = 1.05 * error * profile**0.5 * np.linalg.norm(weights - weights[-1], axis=0)  # two digits are stated
    got = flat(pipeline.unet)
    assert (np.abs(got - average) <= bound + 1e-4).all()  # float32 averages, times coefficients below 100
    decays = {"ema": 0.995, "ema_2": half_life(2), "ema_8": half_life(8)}
    stored = [(read_state(step_file(folder, step)), name) for step in (100, 150, 200) for name in decays]
    profiles = [ema_profile(decays[name], state.step, STEPS + 1) for state, name in stored]
    c, _ = post_hoc_ema(profiles, ema_profile(half_life(WANTED), STEPS))
    want = sum(ci * state.buffers[name].read().astype(float) for ci, (state, name) in zip(c, stored, strict=True))
    np.testing.assert_allclose(got, want, rtol=2**-23, atol=1e-12)  # one rounding to float32


def test_what_cannot_be_combined(trained, tmp_path):
    folder, *_ = trained
    before = tree(folder)
    match = (
        "run: --ema 0.3: the kept checkpoints give that average with a profile error of [0-9]+ % only; "
        "choose 138, 2, 8, or train with --ema-half-life, or with a larger --keep$"
    )
    refused(open_pipeline, folder, "numpy", None, None, False, None, 0.3, match=match)
    for bad in (0, -1, float("nan"), 1e10):
        refused(open_pipeline, folder, "numpy", None, None, False, None, bad, match="--ema .*: give 0.1 to 1e9 steps")
    match = "--raw and --ema choose different weights"
    refused(open_pipeline, folder, "numpy", "raw", None, False, None, 2, match=match)
    refused(open_pipeline, tmp_path, "numpy", None, None, False, None, 2, match="holds no run")
    assert tree(folder) == before


def test_a_run_with_one_average(tmp_path):
    """As older runs have it: that one is there, another is refused or combined of the checkpoints."""
    go_on(new_run(tmp_path, 12), 4)
    np.testing.assert_array_equal(
        flat(open_pipeline(tmp_path, "numpy", ema=OWN).unet), flat(open_pipeline(tmp_path, "numpy").unet)
    )
    refused(open_pipeline, tmp_path, "numpy", None, None, False, None, 0.5, match="choose 138, or train with")


def rewrite(path, change):
    """Write a state again with another configuration or other buffers."""
    state = read_state(path)
    config, buffers = dict(state.config), {name: stored.read() for name, stored in state.buffers.items()}
    change(config, buffers)
    path.unlink()
    write_safetensors(path, buffers, {**state.metadata, "config": json.dumps(config)})


@pytest.mark.parametrize(
    "change",
    [
        lambda config, buffers: config.update(further_emas=["x"]),
        lambda config, buffers: config.update(further_emas=3),
        lambda config, buffers: config.update(further_emas=[0]),
        lambda config, buffers: config.update(ema=1.5),
        lambda config, buffers: config.pop("ema"),
        lambda config, buffers: buffers.pop("ema_2"),
        lambda config, buffers: buffers.update(ema_2=np.zeros(3, np.float32)),
    ],
)
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, change):
    go_on(new_run(tmp_path, 8, emas=(2.0,)), 4, dataset=pictures())
    before = flat(read_unet(read_state(kept_states(tmp_path)[4]), "ema_2", "numpy"))
    for path in (state_file(tmp_path), step_file(tmp_path, 8)):
        rewrite(path, change)
    with pytest.warns(MinidiffWarning, match="Going back to step 4, state-000004.safetensors.$"):
        unet = open_pipeline(tmp_path, "numpy", ema=2).unet
    np.testing.assert_array_equal(flat(unet), before)
