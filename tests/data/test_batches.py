import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.data import batches
from minidiff.data.batches import batch, drop_labels, prefetch, shift
from minidiff.data.dataset import from_arrays
from minidiff.data.imaging import to_float


def numbered(n):
    """n images of 2x3x1; image i has label i and lists its own number and its left-to-right order."""
    images = np.zeros((n, 2, 3, 1), np.uint8)
    images[:, 0] = np.arange(n)[:, None, None]
    images[:, 1, :, 0] = [0, 100, 200]
    return from_arrays("numbered", images, np.arange(n), tuple(map(str, range(n))))


@given(n=st.integers(1, 12), size=st.integers(1, 30), seed=st.integers(0, 2**63))
def test_each_epoch_has_each_image_once(n, size, seed):
    steps = -(-3 * n // size)  # at least three epochs
    seen = np.concatenate([batch(numbered(n), step, size, seed)[1] for step in range(1, steps + 1)])
    assert len(seen) == steps * size
    for epoch in range(len(seen) // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_positions_run_through_the_permutations_end_to_end():
    n, size, seed = 10, 4, 7
    order = np.concatenate([np.random.default_rng([seed, epoch, 1]).permutation(n) for epoch in range(4)])
    for step in range(1, 11):
        np.testing.assert_array_equal(batch(numbered(n), step, size, seed)[1], order[(step - 1) * size : step * size])


def test_a_pure_function_of_seed_and_step():
    dataset, size = numbered(10), 4
    first = [batch(dataset, step, size, seed=3) for step in range(1, 21)]
    for step in (20, 1, 9, 2, 15, 15):
        batches._order.cache_clear()
        x0, labels = batch(dataset, step, size, seed=3)
        np.testing.assert_array_equal(x0, first[step - 1][0])
        np.testing.assert_array_equal(labels, first[step - 1][1])
    x0[:], labels[:] = 0, 0  # a consumer may write into what it was given
    np.testing.assert_array_equal(batch(dataset, 15, size, seed=3)[0], first[14][0])
    assert any((batch(dataset, step, size, seed=4)[1] != first[step - 1][1]).any() for step in range(1, 4))


def test_x0_is_the_image_or_its_mirror_image_as_the_flips_say():
    dataset, size, seed = numbered(50), 32, 5
    for step in (1, 2, 30):
        x0, labels = batch(dataset, step, size, seed)
        assert x0.dtype == np.float32 and labels.dtype == np.int64 and x0.shape == (size, 2, 3, 1)
        assert x0.min() >= -1 and x0.max() <= 1
        mirrored = np.random.default_rng([seed, step, 2]).integers(2, size=size).astype(bool)
        assert 0 < mirrored.sum() < size
        plain = to_float(dataset.take(labels))
        np.testing.assert_array_equal(x0[~mirrored], plain[~mirrored])
        np.testing.assert_array_equal(x0[mirrored], plain[mirrored][:, :, ::-1])
        np.testing.assert_array_equal(batch(dataset, step, size, seed, flip=False)[0], plain)


def test_half_of_the_images_are_mirrored():
    flips = np.concatenate([batch(numbered(64), step, 64, seed=0)[0][:, 1, 0, 0] > 0 for step in range(1, 101)])
    # 6,400 fair coins: a standard deviation is 40, and six of them happen for one seed in 5e8.
    assert abs(int(flips.sum()) - 3200) < 240


def test_a_shift_is_a_crop_of_the_mirrored_surroundings():
    images = np.random.default_rng(0).integers(256, size=(40, 5, 4, 3), dtype=np.uint8)
    before = images.copy()
    shifted = shift(images, 2, np.random.default_rng(1))
    assert shifted.shape == images.shape and shifted.dtype == np.uint8 and shifted.flags.c_contiguous
    places = set()
    for image, got in zip(images, shifted, strict=True):
        rows, columns = ([abs(i) if i < n else 2 * (n - 1) - i for i in range(-2, n + 2)] for n in (5, 4))
        found = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if np.array_equal(image[rows[dy : dy + 5]][:, columns[dx : dx + 4]], got)
        ]
        assert len(found) == 1
        places.update(found)
    assert {dy for dy, _ in places} == {dx for _, dx in places} == set(range(5))  # missed at 40 draws: once in 700
    np.testing.assert_array_equal(images, before)


def test_shifts_follow_from_seed_and_step():
    dataset = numbered(10)
    plain, labels = batch(dataset, 3, 8, seed=1, flip=False)
    shifted, same = batch(dataset, 3, 8, seed=1, flip=False, pad_crop=1)
    np.testing.assert_array_equal(same, labels)
    rng = np.random.default_rng([1, 3, 4])
    np.testing.assert_array_equal(shifted, to_float(shift(dataset.take(labels), 1, rng)))
    assert np.any(shifted != plain)


def test_the_data_set_is_left_as_it_was():
    dataset = numbered(6)
    before = dataset.take(np.arange(6)).copy()
    for step in range(1, 9):
        batch(dataset, step, 4, seed=1)[0][:] = 0
    np.testing.assert_array_equal(dataset.take(np.arange(6)), before)


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetch_equals_the_plain_loop():
    dataset, steps = numbered(10), range(5, 30)

    def make(step):
        return batch(dataset, step, 4, seed=9)

    fetched = list(prefetch(make, steps))
    assert len(fetched) == len(steps)
    for (x0, labels), step in zip(fetched, steps, strict=True):
        np.testing.assert_array_equal(x0, make(step)[0])
        np.testing.assert_array_equal(labels, make(step)[1])
    assert prefetch_threads() == []


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_prefetch_of_few_steps(n):
    assert list(prefetch(lambda step: step * step, range(n))) == [step * step for step in range(n)]


def test_prefetch_runs_at_most_two_steps_ahead_in_one_other_thread():
    made, threads = [], set()

    def make(step):
        made.append(step)
        threads.add(threading.current_thread().name)
        return step

    stream = prefetch(make, itertools.count(1))
    for step in range(1, 6):
        assert next(stream) == step
        deadline = time.monotonic() + 10
        while made[-1] < step + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made == list(range(1, step + 3))
    stream.close()
    assert len(threads) == 1 and threading.current_thread().name not in threads


def test_prefetch_hands_an_exception_to_its_step():
    def make(step):
        if step == 3:
            raise OSError("the disk is gone")
        return step

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for made in prefetch(make, range(1, 100)):
            got.append(made)
    assert got == [1, 2]
    assert prefetch_threads() == []


@pytest.mark.parametrize("stop", [lambda stream: stream.close(), lambda stream: stream.throw(KeyboardInterrupt)])
def test_a_consumer_may_stop_early(stop):
    begun, release = [], threading.Event()

    def make(step):
        begun.append(step)
        assert step == 1 or release.wait(10)
        return step

    stream = prefetch(make, itertools.count(1))
    assert next(stream) == 1
    while begun != [1, 2]:
        time.sleep(0.001)
    timer = threading.Timer(0.3, release.set)  # by then, the stop waits for step 2
    timer.start()
    try:
        stop(stream)
    except KeyboardInterrupt:
        pass
    timer.join()
    assert prefetch_threads() == []
    assert begun == [1, 2]  # step 3 had been asked for, and was called off


def test_a_prefetch_never_begun_starts_no_thread():
    stream = prefetch(lambda step: step, range(3))
    assert prefetch_threads() == []
    stream.close()


def test_dropped_labels():
    """About the share asked for, the same for the same step, others for another, and the rest as they were."""
    labels = np.arange(10_000) % 7
    dropped = drop_labels(labels, 7, 0.1, seed=3, step=5)
    gone = dropped == 7
    assert abs(gone.mean() - 0.1) < 5 * (0.1 * 0.9 / 10_000) ** 0.5  # five standard deviations
    np.testing.assert_array_equal(dropped[~gone], labels[~gone])
    np.testing.assert_array_equal(dropped, drop_labels(labels, 7, 0.1, seed=3, step=5))
    assert np.any(dropped != drop_labels(labels, 7, 0.1, seed=3, step=6))
    assert np.any(dropped != drop_labels(labels, 7, 0.1, seed=4, step=5))
    np.testing.assert_array_equal(drop_labels(labels, 7, 0.0, seed=3, step=5), labels)
