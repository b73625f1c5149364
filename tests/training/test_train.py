"""A step, many steps, and the choices that make a run."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from small_runs import network, pictures

from minidiff.data.batches import batch
from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.engine.optim import AdamW
from minidiff.errors import MinidiffError
from minidiff.models.unet import UNet
from minidiff.training import config
from minidiff.training.config import TrainConfig, config_from_dict
from minidiff.training.step import train, train_step

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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_by_noise_level(accumulate):
    """The means of the images' unweighted losses by quarters of t; None where the batch has none."""
    t = np.array([0, 19, 4, 5])  # of 20
    model, drawn = UNet(network(), np.random.default_rng(0), "numpy"), np.random.default_rng(1)
    x0, eps = next(batches([1]))[0], drawn.standard_normal((4, 4, 4, 1), dtype=np.float32)

    class Fixed:
        def integers(self, low, high, n):
            return t

        def standard_normal(self, shape, dtype):
            return eps

    optimizer = AdamW(model.parameters(), 0.01)
    alone = [training_loss(model, SCHEDULE, x0[i : i + 1], t[i : i + 1], eps[i : i + 1]) for i in range(4)]
    a, b, c, d = (float(loss.numpy()) for loss in alone)

    def without_dropout(x_t, t, rng=None):
        return model(x_t, t)

    stats = train_step(without_dropout, SCHEDULE, optimizer, x0, Fixed(), min_snr=5.0, accumulate=accumulate)
    first, second, third, fourth = stats.quarter_losses
    np.testing.assert_allclose([first, second, fourth], [(a + c) / 2, d, b], rtol=1e-5)
    assert third is None


def test_it_learns():
    """Ten pictures of noise are learnt by heart: the mean loss of the last steps is well below that of the first."""
    unet, optimizer = fresh()
    config = dataclasses.replace(CONFIG, steps=150)
    losses = [s.loss for s in train(unet, SCHEDULE, optimizer, batches(range(1, 151)), config)]
    assert np.mean(losses[-50:]) < 0.9 * np.mean(losses[:10])


def spoilt(unet, optimizer, steps, value=math.nan):
    """The network, whose answer is no number in those steps."""

    def model(x_t, t, rng=None):
        y = unet(x_t, t, rng=rng)
        if optimizer.step_count + 1 in steps:
            y.data[...] = value
        return y

    return model


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_skipped_and_told(value):
    unet, optimizer = fresh()
    weights = []
    stats = []
    for done in train(spoilt(unet, optimizer, {3, 4}, value), SCHEDULE, optimizer, batches(range(1, 7)), CONFIG):
        stats.append(done)
        weights.append(optimizer.p.copy())
    assert [s.step for s in stats] == [1, 2, 3, 4, 5, 6]
    assert [math.isfinite(s.loss) and math.isfinite(s.grad_norm) for s in stats] == [True] * 2 + [False] * 2 + [
        True
    ] * 2
    np.testing.assert_array_equal(weights[1], weights[3])
    assert np.isfinite(weights[5]).all() and np.any(weights[5] != weights[4])


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_ten_of_them_in_a_row_are_an_error():
    unet, optimizer = fresh()
    config = dataclasses.replace(CONFIG, steps=40)
    bad, done = {*range(2, 11), *range(12, 31)}, []  # nine in a row, one that is good, more than ten
    with pytest.raises(MinidiffError, match=r"step 21: .* not finite 10 times in a row .*--lr"):
        for stats in train(spoilt(unet, optimizer, bad), SCHEDULE, optimizer, batches(range(1, 41)), config):
            done.append(stats.step)
    assert done == list(range(1, 22))  # the tenth is looked at when the next is done


def test_memory_that_does_not_suffice_is_told():
    """What CuPy raises on a full GPU is a MemoryError, too."""

    def model(x_t, t, rng=None):
        raise MemoryError("out of memory")

    with pytest.raises(MinidiffError, match=r"step 1: there is no memory for a batch of 4; .*--batch-size 2"):
        next(train(model, SCHEDULE, fresh()[1], batches(range(1, 2)), CONFIG))


# Accumulation


def of_a_step(accumulate, dropout=0.0, min_snr=None, n=12):
    """Loss and gradient of a step on n pictures, in so many parts."""
    unet = UNet(network(dropout=dropout), np.random.default_rng(0), "numpy")
    optimizer = AdamW(unet.parameters(), 0.01)
    x0 = batch(pictures(), 1, n, seed=0)[0]
    rng = np.random.default_rng(7)
    stats = train_step(unet, SCHEDULE, optimizer, x0, rng, min_snr=min_snr, accumulate=accumulate)
    return stats, optimizer.g.astype(np.float64), rng


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("accumulate", [2, 3, 4, 6])
def test_parts_have_the_gradient_of_the_whole(accumulate, min_snr):
    """Picture by picture, summed in float64, is the truth; parts may be off from it by no more than twice the whole."""
    (whole, g, _), (parts, h, _) = of_a_step(1, min_snr=min_snr), of_a_step(accumulate, min_snr=min_snr)
    truth = mean_of_pictures(12, min_snr)
    size = np.linalg.norm(truth)
    assert np.linalg.norm(h - truth) <= max(2 * np.linalg.norm(g - truth), 3e-7 * size)
    assert np.linalg.norm(g - truth) <= 1e-5 * size  # lest both be wrong
    assert abs(parts.loss - whole.loss) <= 1e-6 * whole.loss  # two means of 192, each within 8 x 2^-24
    assert abs(parts.grad_norm - whole.grad_norm) <= 1e-5 * whole.grad_norm


def mean_of_pictures(n, min_snr):
    """The gradient of the same step, each picture on its own."""
    rng = np.random.default_rng(7)
    x0, t = batch(pictures(), 1, n, seed=0)[0], rng.integers(0, 20, n)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    weight = None if min_snr is None else min_snr_weight(SCHEDULE, t, min_snr)
    total = 0.0
    for i in range(n):
        unet = UNet(network(), np.random.default_rng(0), "numpy")
        optimizer = AdamW(unet.parameters(), 0.01)
        one = slice(i, i + 1)
        training_loss(
            unet, SCHEDULE, x0[one], t[one], eps[one], weight=None if weight is None else weight[one]
        ).backward()
        total = total + optimizer.g.astype(np.float64) / n
    return total


def test_noise_is_drawn_for_the_whole_batch_and_dropout_for_each_part():
    assert of_a_step(3, dropout=0.5)[0].loss != of_a_step(1, dropout=0.5)[0].loss
    assert of_a_step(3, dropout=0.5)[0].loss == of_a_step(3, dropout=0.5)[0].loss


def test_a_part_has_the_same_dropout_whichever_others_are_computed():
    """As on a rank that computes the last part alone."""
    unet = UNet(network(dropout=0.5), np.random.default_rng(0), "numpy")
    x0 = batch(pictures(), 1, 4, seed=0)[0]
    masks = {}
    for skipped in (0, 1):
        draws = []

        def model(x_t, t, rng, skipped=skipped, draws=draws):
            if len(draws) >= skipped:
                draws.append(rng.random(8).tolist())
            else:
                draws.append(None)
            return unet(x_t, t)

        train_step(model, SCHEDULE, AdamW(unet.parameters(), 0.01), x0, np.random.default_rng(7), accumulate=2)
        masks[skipped] = draws
    assert masks[0][1] == masks[1][1] and masks[0][0] != masks[0][1]


def test_labels_are_cut_with_their_pictures():
    seen = []
    unet = UNet(network(num_class_embeds=3), np.random.default_rng(0), "numpy")

    def model(x_t, t, cond=None, rng=None):
        seen.append(cond.tolist())
        return unet(x_t, t, cond, rng)

    labels = np.array([0, 1, 2, 2])
    train_step(
        model, SCHEDULE, AdamW(unet.parameters(), 0.01), next(batches([1]))[0], np.random.default_rng(0), labels,
        accumulate=2,
    )  # fmt: skip
    assert seen == [[0, 1], [2, 2]]


def test_parts_take_less_memory():
    """Activations are those of one part: with eight parts less than half of all together, with all that stays."""
    peaks = []
    for accumulate in (1, 8):
        tracemalloc.start()
        of_a_step(accumulate, n=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 2


def test_a_batch_is_cut_into_equal_parts():
    with pytest.raises(ValueError, match="a batch of 12 cannot be split into 5 equal parts"):
        of_a_step(5)
    with pytest.raises(MinidiffError, match="accumulate = 5: must divide batch_size = 12"):
        TrainConfig("noise", batch_size=12, accumulate=5)


def test_the_rate_may_stay():
    config = dataclasses.replace(CONFIG, decay="none")
    assert [config.rate(step) for step in range(1, 7)] == [0.005] + [0.01] * 5
    with pytest.raises(MinidiffError, match="decay = 'linear': choose cosine or none"):
        dataclasses.replace(CONFIG, decay="linear")


def test_config_round_trip():
    assert config_from_dict(dataclasses.asdict(CONFIG)) == CONFIG


GOOD = dataclasses.asdict(CONFIG)


def test_a_field_of_an_older_run_is_read_by_its_former_name():
    older = {"pictures" if name == "fingerprint" else name: value for name, value in GOOD.items()}
    assert config_from_dict({**older, "pictures": "abc"}).fingerprint == "abc"


def test_an_older_runs_config_has_the_defaults_of_what_came_later():
    older = {name: value for name, value in GOOD.items() if name not in config.OPTIONAL_FIELDS}
    assert len(older) == len(GOOD) - len(config.OPTIONAL_FIELDS) and config_from_dict(older) == CONFIG


@pytest.mark.parametrize(
    "values",
    [
        None, [], "cats", {}, {**GOOD, "surplus": 1}, {k: v for k, v in GOOD.items() if k != "lr"},
        {**GOOD, "data": 3}, {**GOOD, "backend": ["numpy"]}, {**GOOD, "size": "32"}, {**GOOD, "steps": 2.5},
        {**GOOD, "decay": ["cosine"]}, {**GOOD, "decay": None}, {**GOOD, "skip_bad": 1}, {**GOOD, "beta2": 1},
        {**GOOD, "optimizer": "sgd"}, {**GOOD, "optimizer": ["muon"]},
        {**GOOD, "steps": True}, {**GOOD, "seed": None}, {**GOOD, "lr": "1"}, {**GOOD, "ema": [0.9]},
        {**GOOD, "further_emas": 50}, {**GOOD, "further_emas": ["50"]}, {**GOOD, "further_emas": [0]},
        {**GOOD, "further_emas": [math.nan]}, {**GOOD, "further_emas": [50, 50.01]}, {**GOOD, "further_emas": [138.3]},
        {**GOOD, "further_emas": None},
    ],
)  # fmt: skip
def test_a_damaged_config_is_refused(values):
    with pytest.raises(MinidiffError) as caught:
        config_from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(config.INTEGER_RANGES))
def test_whole_numbers_have_limits(name):
    with pytest.raises(MinidiffError, match=f"{name} = -1: give a whole number"):
        TrainConfig("noise", **{name: -1})
    with pytest.raises(MinidiffError, match=f"{name} = {10**30}"):
        TrainConfig("noise", **{name: 10**30})
    if name not in ("seed", "warmup", "pad_crop"):
        with pytest.raises(MinidiffError, match=f"{name} = 0"):
            TrainConfig("noise", **{name: 0})


@pytest.mark.parametrize("value", [0, -1e-3, 1, 7.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "ema", "beta2", "label_dropout"])
def test_rates_lie_between_0_and_1(name, value):
    with pytest.raises(MinidiffError, match=f"{name} = .*: give a number above 0 and below 1"):
        TrainConfig("noise", **{name: value})
