from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minidiff.data.cats_dogs import CAT_COATS, DOG_COATS, backdrop, cats_dogs, pick
from minidiff.data.pen import FINE

N = 500


@pytest.fixture(scope="module")
def dataset():
    return cats_dogs(N, seed=0)


@pytest.fixture(scope="module")
def images(dataset):
    return dataset.take(np.arange(N))


def test_shape_and_names(dataset, images):
    assert images.shape == (N, 32, 32, 3) and images.dtype == np.uint8
    assert len(dataset) == N and dataset.shape == (32, 32, 3)
    assert dataset.name == "cats_dogs" and dataset.classes == ("cat", "dog")
    assert dataset.labels.dtype == np.int64 and set(dataset.labels) == {0, 1}


def test_ten_thousand_by_default():
    assert len(cats_dogs()) == 10_000


def test_same_seed_same_images_in_any_order(images):
    order = np.random.default_rng(1).permutation(N)[:60]
    again = cats_dogs(N, seed=0)
    np.testing.assert_array_equal(again.take(order), images[order])
    np.testing.assert_array_equal(again.take(np.sort(order)), images[np.sort(order)])


def test_a_longer_set_begins_with_the_shorter(dataset, images):
    longer = cats_dogs(2 * N, seed=0)
    np.testing.assert_array_equal(longer.labels[:N], dataset.labels)
    np.testing.assert_array_equal(longer.take(np.arange(20)), images[:20])


def test_another_seed_other_images(dataset, images):
    other = cats_dogs(N, seed=1)
    assert (other.labels != dataset.labels).any()
    for image, before in zip(other.take(np.arange(20)), images[:20], strict=True):
        assert (image != before).any()


def test_take_repeats_and_nothing(dataset, images):
    np.testing.assert_array_equal(cats_dogs(N).take(np.array([7, 3, 7])), images[[7, 3, 7]])
    assert dataset.take(np.array([], np.int64)).shape == (0, 32, 32, 3)


def test_what_is_taken_may_be_written_to(dataset, images):
    dataset.take(np.arange(3))[:] = 0
    np.testing.assert_array_equal(dataset.take(np.arange(3)), images[:3])


def test_threads_that_take_at_once(images):
    shared, forth = cats_dogs(N, seed=0), np.arange(100)
    orders = [forth, forth[::-1], forth, forth[::-1]]
    with ThreadPoolExecutor(len(orders)) as pool:
        for order, taken in zip(orders, pool.map(shared.take, orders), strict=True):
            np.testing.assert_array_equal(taken, images[order])


def test_all_distinct(images):
    assert len({image.tobytes() for image in images}) == N


def test_half_are_dogs():
    # 10,000 fair coins: standard deviation 50, so 250 is five of them.
    assert abs(cats_dogs().labels.sum() - 5000) < 250


def test_labels_tell_what_is_drawn(dataset, images):
    # A ridge regression of 400 images tells all of the other 100 right; wrong labels would give half.
    x = np.hstack([images.reshape(N, -1) / 127.5 - 1, np.ones((N, 1))])
    y = 2.0 * dataset.labels - 1
    train, test = slice(0, 400), slice(400, N)
    dual = np.linalg.solve(x[train] @ x[train].T + 30 * np.eye(400), y[train])
    guess = x[test] @ (x[train].T @ dual)
    assert (np.sign(guess) == y[test]).mean() > 0.95


def test_dogs_have_the_big_dark_noses(dataset, images):
    middle = images[:, 17:23, 13:19].mean(axis=3).reshape(N, -1)  # (N, 36): brightness where a nose is
    dark = (middle < 64).mean(axis=1)
    assert dark[dataset.labels == 1].mean() > 3 * dark[dataset.labels == 0].mean()


def test_animals_are_whole_in_frame_and_seen(dataset, images):
    """Against the backdrop alone, drawn from the same chance: what differs is the animal."""
    backdrops = []
    for i, dog in enumerate(dataset.labels):
        rng = np.random.default_rng([0, i])
        coat = pick(rng, DOG_COATS if dog else CAT_COATS)
        backdrops.append(np.asarray(backdrop(rng, coat.fur).reduce(FINE)))
    difference = abs(images.astype(int) - np.stack(backdrops)).sum(axis=3)  # (N, 32, 32), 0 ... 765
    animal = difference > 0
    share = animal.mean(axis=(1, 2))
    assert share.min() > 0.4 and share.max() < 0.8
    assert animal[:, 12:24, 10:22].all()  # the face fills the middle
    assert animal[:, 0].mean() < 0.01  # the ears end below the upper edge
    contrast = (difference * animal).sum(axis=(1, 2)) / animal.sum(axis=(1, 2))
    assert contrast.min() > 60  # a fur of the backdrop's colour would leave the features alone
