"""Images lie in memory once: not twice when they are read, and not again when they are used."""

import sys
import tracemalloc

import numpy as np
import pytest
from own_process import run
from PIL import Image
from small_runs import go_on, new_run, pictures

from minidiff.data import batches, idx
from minidiff.data.dataset import from_arrays
from minidiff.data.folder import folder


def peak_of(work) -> int:
    """The most memory in bytes that Python and NumPy held during work(), above what they held before."""
    tracemalloc.start()
    try:
        kept = work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del kept
    return peak


def test_a_folder(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(128, 128, 3), dtype=np.uint8)
    for i in range(160):
        Image.fromarray(pixels).save(tmp_path / f"{i}.bmp")
    folder(tmp_path)  # Pillow imports its readers
    assert peak_of(lambda: folder(tmp_path)) < 1.1 * 160 * pixels.nbytes  # all, and one in a few forms


def test_idx(tmp_path):
    images = np.zeros((1000, 64, 64), np.uint8)
    for name, a in (("images-idx3", images), ("labels-idx1", np.zeros(1000, np.uint8))):
        header = bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape)
        (tmp_path / f"train-{name}-ubyte").write_bytes(header + a.tobytes())
    assert peak_of(lambda: idx.idx(tmp_path)) < 1.1 * images.nbytes  # all, and eight bytes of label for 4096 of image


# Memory of its own, now and at its highest. Pages that were only asked for, but never touched, do not count.
CIFAR10 = """
import sys, threading
from minidiff.data import cifar10

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch():
    while not done.wait(0.001):
        seen.append(anonymous())

before, seen, done = anonymous(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
dataset = cifar10.cifar10(sys.argv[1])
done.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_cifar10(tmp_path):
    records = np.random.default_rng(0).integers(10, size=(2000, 3073), dtype=np.uint8)
    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}.bin").write_bytes(records.tobytes())
    said, _ = run(f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n{CIFAR10}")
    size = 5 * records.nbytes
    assert size <= int(said) <= 1.6 * size  # all, and one batch of the five in two orders; a batch's worth of slack


def test_a_batch():
    """Of a set of 31 MB, the batch and its floats, and no copy of the set."""
    images = np.zeros((40_000, 16, 16, 3), np.uint8)
    dataset = from_arrays("black", images, np.zeros(len(images), int), ("black",))
    assert peak_of(lambda: batches.batch(dataset, 1, 64, seed=0, pad_crop=2)) < images.nbytes / 16


def test_a_training(tmp_path):
    large = pictures(60_000, (16, 16, 1))  # 15 MB
    small = pictures(100, (16, 16, 1))
    peaks = []
    for name, dataset in (("small", small), ("large", large)):
        a_run = new_run(tmp_path / name, 3, sample_size=16)
        peaks.append(peak_of(lambda a_run=a_run, dataset=dataset: go_on(a_run, dataset=dataset)))
    index = 3 * 8 * len(large)  # the order of an epoch, as it is shuffled
    assert peaks[1] - peaks[0] <= index + 60_000 * 256 / 20
