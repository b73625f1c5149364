"""A step, many steps, and the choices that make a run."""

import dataclasses
import math

import numpy as np
import pytest
from small_runs import network, pictures

from minidiff.data.batches import batch
from minidiff.diffusion.loss import training_loss
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.models.unet import UNet
from minidiff.runs import train as training
from minidiff.runs.train import TrainConfig, config_from_dict, train, train_step

SCHEDULE = cosine_schedule(20, "v_prediction")
CONFIG = TrainConfig("noise", steps=6, batch_size=4, lr=0.01, warmup=2, seed=3, backend="numpy")


def fresh():
    unet = UNet(network(dropout=0.3), np.random.default_rng(0), "numpy")
    return unet, AdamW(unet.parameters(), 0.01, ema=0.9)


def batches(steps):
    for step in steps:
        yield batch(pictures(), step, CONFIG.batch_size, CONFIG.seed)[0], None


def test_a_step_is_algorithm_1():
    """t, then eps, then dropout from the rng; the loss, its gradient, one step of the optimiser."""
    x0 = next(batches([1]))[0]
    unet, optimizer = fresh()
    stats = train_step(unet, SCHEDULE, optimizer, x0, np.random.default_rng(7))

    twin, own = fresh()
    rng = np.random.default_rng(7)
    t = rng.integers(0, 20, 4)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    loss = training_loss(twin, SCHEDULE, x0, t, eps, rng=rng)
    loss.backward()
    norm = own.step()

    assert (stats.step, stats.loss, stats.grad_norm) == (1, float(loss.numpy()), float(norm))
    np.testing.assert_array_equal(optimizer.p, own.p)
    np.testing.assert_array_equal(optimizer.ema, own.ema)
    assert not np.array_equal(optimizer.p, fresh()[1].p)


def test_gradients_of_the_last_step_are_forgotten():
    x0 = next(batches([1]))[0]
    unet, optimizer = fresh()
    optimizer.g[...] = 1e6
    stats = train_step(unet, SCHEDULE, optimizer, x0, np.random.default_rng(7))
    unet, optimizer = fresh()
    assert stats.grad_norm == train_step(unet, SCHEDULE, optimizer, x0, np.random.default_rng(7)).grad_norm


def test_labels_reach_the_model():
    seen = []
    unet = UNet(network(num_class_embeds=3), np.random.default_rng(0), "numpy")

    def model(x_t, t, cond=None, rng=None):
        seen.append(cond)
        return unet(x_t, t, cond, rng)

    labels = np.array([0, 1, 2, 2])
    train_step(model, SCHEDULE, AdamW(unet.parameters(), 0.01), next(batches([1]))[0], np.random.default_rng(0), labels)
    np.testing.assert_array_equal(seen, [labels])


def test_train_does_every_step_that_is_left():
    unet, optimizer = fresh()
    stats = list(train(unet, SCHEDULE, optimizer, batches(range(1, 7)), CONFIG))
    assert [s.step for s in stats] == [1, 2, 3, 4, 5, 6]
    assert len({s.loss for s in stats}) == 6
    assert optimizer.lr == CONFIG.rate(6) < CONFIG.rate(3) == CONFIG.lr

    again, state = fresh()
    first = [s.loss for s in train(again, SCHEDULE, state, batches(range(1, 4)), CONFIG)]
    rest = [s.loss for s in train(again, SCHEDULE, state, batches(range(4, 7)), CONFIG)]
    assert first + rest == [s.loss for s in stats]
    np.testing.assert_array_equal(state.p, optimizer.p)


def test_every_step_has_noise_of_its_own():
    """It follows from the seed and the number of the step, whatever came before."""
    unet, optimizer = fresh()
    stats = list(train(unet, SCHEDULE, optimizer, batches(range(1, 5)), CONFIG))
    twin, own = fresh()
    for step, (x0, _) in enumerate(batches(range(1, 5)), start=1):
        own.lr = CONFIG.rate(step)
        rng = np.random.default_rng([CONFIG.seed, step])
        assert train_step(twin, SCHEDULE, own, x0, rng).loss == stats[step - 1].loss


@pytest.mark.parametrize("seed", [3, 4])
def test_the_seed_decides_the_noise(seed):
    unet, optimizer = fresh()
    config = dataclasses.replace(CONFIG, seed=seed)
    losses = [s.loss for s in train(unet, SCHEDULE, optimizer, batches([1, 2]), config)]
    unet, optimizer = fresh()
    assert (losses == [s.loss for s in train(unet, SCHEDULE, optimizer, batches([1, 2]), CONFIG)]) == (seed == 3)


def test_it_learns():
    """Ten pictures of noise are learnt by heart: the mean loss of the last steps is well below that of the first."""
    unet, optimizer = fresh()
    config = dataclasses.replace(CONFIG, steps=150)
    losses = [s.loss for s in train(unet, SCHEDULE, optimizer, batches(range(1, 151)), config)]
    assert np.mean(losses[-50:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_names_the_step(value):
    unet, optimizer = fresh()

    def model(x_t, t, rng=None):
        y = unet(x_t, t, rng=rng)
        if optimizer.step_count == 2:
            y.data[...] = value
        return y

    done = []
    with (
        np.errstate(invalid="ignore", over="ignore"),
        pytest.raises(MinidiffError, match=r"step 3: the loss is (nan|inf).*--lr"),
    ):
        for stats in train(model, SCHEDULE, optimizer, batches(range(1, 7)), CONFIG):
            done.append(stats.step)
    assert done == [1, 2]


@pytest.mark.parametrize("loss, norm", [(0.5, math.inf), (0.5, math.nan), (math.nan, 2.0), (math.inf, 2.0)])
def test_either_of_them_stops(monkeypatch, loss, norm):
    """The loss may still be finite when its gradient has overflowed."""
    unet, optimizer = fresh()
    spoilt = training.StepStats(1, Tensor(np.float32(loss), unet.backend), np.float64(norm))
    monkeypatch.setattr(training, "train_step", lambda *_: spoilt)
    with pytest.raises(MinidiffError, match=f"step 1: the loss is {loss}, the gradient's norm {norm};"):
        next(train(unet, SCHEDULE, optimizer, batches([1]), CONFIG))


def test_config_round_trip():
    assert config_from_dict(dataclasses.asdict(CONFIG)) == CONFIG


GOOD = dataclasses.asdict(CONFIG)


def test_an_older_runs_config_has_the_defaults_of_what_came_later():
    older = {name: value for name, value in GOOD.items() if name not in training.LATER}
    assert len(older) == len(GOOD) - 3 and config_from_dict(older) == CONFIG


@pytest.mark.parametrize(
    "values",
    [
        None, [], "cats", {}, {**GOOD, "surplus": 1}, {k: v for k, v in GOOD.items() if k != "lr"},
        {**GOOD, "data": 3}, {**GOOD, "backend": ["numpy"]}, {**GOOD, "size": "32"}, {**GOOD, "steps": 2.5},
        {**GOOD, "steps": True}, {**GOOD, "seed": None}, {**GOOD, "lr": "1"}, {**GOOD, "ema": [0.9]},
    ],
)  # fmt: skip
def test_a_damaged_config_is_refused(values):
    with pytest.raises(MinidiffError) as caught:
        config_from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["size", "steps", "batch_size", "seed", "warmup", "threads"])
def test_whole_numbers_have_limits(name):
    with pytest.raises(MinidiffError, match=f"{name} = -1: give a whole number"):
        TrainConfig("noise", **{name: -1})
    with pytest.raises(MinidiffError, match=f"{name} = {10**30}"):
        TrainConfig("noise", **{name: 10**30})
    if name not in ("seed", "warmup"):
        with pytest.raises(MinidiffError, match=f"{name} = 0"):
            TrainConfig("noise", **{name: 0})


@pytest.mark.parametrize("value", [0, -1e-3, 1, 7.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "ema"])
def test_rates_lie_between_0_and_1(name, value):
    with pytest.raises(MinidiffError, match=f"{name} = .*: give a number between 0 and 1"):
        TrainConfig("noise", **{name: value})
