import gzip
import hashlib
import io
import re
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from minidiff.data import Dataset, cats_dogs, cifar10, open_dataset
from minidiff.errors import MinidiffError, NoSplit

RECORDS = bytes(3073 * 2)


def write_idx(folder, prefix):
    folder.mkdir(exist_ok=True)
    images, labels = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 5), struct.pack(">4BI", 0, 0, 8, 1, 2)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images + bytes(40))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels + bytes(2)))


def write_cifar10(folder):
    folder.mkdir(parents=True)
    for name in ("test_batch.bin", *(f"data_batch_{k}.bin" for k in range(1, 6))):
        (folder / name).write_bytes(RECORDS)


def archive_bytes():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("test_batch.bin", *(f"data_batch_{k}.bin" for k in range(1, 6))):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(RECORDS)
            archive.addfile(info, io.BytesIO(RECORDS))
    return file.getvalue()


def refused(match, data, **options):
    with pytest.raises(MinidiffError) as caught:
        open_dataset(data, **options)
    message = str(caught.value)
    assert data in message and "\n" not in message
    assert re.search(match, message.replace(data, "")), message


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a "network" that serves a small archive and counts how often it is asked."""
    archive, asked = archive_bytes(), []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(archive)

    monkeypatch.setattr(cifar10, "cache_dir", lambda: tmp_path / "cache" / "minidiff")
    monkeypatch.setattr(cifar10, "LENGTH", len(archive))
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_cats_dogs(monkeypatch):
    drawn = Dataset("cats_dogs", lambda i: np.zeros((len(i), 32, 32, 3), np.uint8), np.zeros(9), (), (32, 32, 3))
    monkeypatch.setattr(cats_dogs, "cats_dogs", lambda: drawn)
    assert open_dataset("cats_dogs") is drawn
    assert open_dataset("cats_dogs", size=32) is drawn
    refused(": its images are 32x32, not of size 64", "cats_dogs", size=64)
    refused(": has no split 'valid'", "cats_dogs", split="valid")


def test_cats_dogs_has_other_images_to_test_with():
    """Of as many classes; not one of them is drawn for training."""
    train, test = open_dataset("cats_dogs"), open_dataset("cats_dogs", split="test")
    assert len(test) == 4000 and abs(test.labels.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    first = train.take(np.arange(20)), test.take(np.arange(20))
    assert not any((a == b).all() for a in first[0] for b in first[1])


def test_cifar10_is_downloaded_once(cache):
    told = []
    assert len(open_dataset("cifar10", progress=lambda *args: told.append(args))) == 10
    assert told[-1] == (cifar10.LENGTH, cifar10.LENGTH)
    assert len(open_dataset("cifar10", split="test", size=32)) == 2
    assert cache == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    refused("32x32, not of size 28", "cifar10", size=28)


def test_emoji():
    """In the package itself, with a part that is held out."""
    assert open_dataset("emoji", size=32).captions[0] == "hash key"
    assert len(open_dataset("emoji", split="test")) < len(open_dataset("emoji"))
    refused("32x32, not of size 64", "emoji", size=64)


def test_a_built_in_name_wins_over_a_folder(tmp_path, monkeypatch, cache):
    write_idx(tmp_path / "cifar10", "train")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("cifar10").name == "CIFAR-10"
    assert open_dataset("./cifar10").shape == (4, 5, 1)


def test_idx(tmp_path):
    write_idx(tmp_path, "t10k")
    refused("holds neither train-images", str(tmp_path))
    assert open_dataset(str(tmp_path), split="test").shape == (4, 5, 1)
    refused("5x4, not of size 4", str(tmp_path), split="test", size=4)


def test_cifar10_as_folder_and_archive(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "c.tar.gz").write_bytes(archive_bytes())
    (tmp_path / "c.tgz").write_bytes(archive_bytes())
    for name in ("", "cifar-10-batches-bin", "c.tar.gz", "c.tgz"):
        assert len(open_dataset(str(tmp_path / name))) == 10
        assert len(open_dataset(str(tmp_path / name), split="test")) == 2
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    refused("data_batch_2.bin .*is missing", str(tmp_path))


def test_the_pickled_cifar10_is_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused("Python version, a pickle", str(tmp_path))


def test_images(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / name / "x.png")
    assert open_dataset(str(tmp_path)).shape == (4, 6, 3)
    assert open_dataset(str(tmp_path), size=2).shape == (2, 2, 3)
    refused("has no split 'test'", str(tmp_path), split="test")


def test_what_is_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "fake.tar.gz").write_text("x")
    refused("holds no image", str(tmp_path / "empty"))
    refused("is a file, but no .tar.gz; give a folder of images", str(tmp_path / "file.txt"))
    refused("damaged or no .tar.gz", str(tmp_path / "fake.tar.gz"))
    for data in (str(tmp_path / "missing"), "x" * 300, "", "null\0byte", "cifar-10"):
        refused("no such folder or file.* cats_dogs or cifar10 or emoji", data)


@pytest.mark.parametrize("kind", ["cats_dogs", "cifar10", "emoji", "idx", "images"])
def test_a_split_that_is_none(tmp_path, cache, kind):
    data = kind if kind in ("cats_dogs", "cifar10", "emoji") else str(tmp_path)
    if kind == "idx":
        write_idx(tmp_path, "train")
    if kind == "images":
        Image.new("RGB", (6, 4)).save(tmp_path / "x.png")
    with pytest.raises(MinidiffError, match="valid: no such split|has no split 'valid'"):
        open_dataset(data, split="valid")


def test_a_test_split_that_is_not_there(tmp_path):
    """Told apart from one that is damaged."""
    write_idx(tmp_path / "idx", "train")
    write_cifar10(tmp_path / "cifar")
    (tmp_path / "cifar" / "test_batch.bin").unlink()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "x.png")
    for data in (str(tmp_path / name) for name in ("idx", "cifar", "images")):
        with pytest.raises(NoSplit):
            open_dataset(data, split="test")
    write_idx(tmp_path / "idx", "t10k")
    (tmp_path / "idx" / "t10k-images-idx3-ubyte").write_bytes(b"")
    damaged = [tmp_path / "idx", tmp_path / "no-labels"]
    write_idx(damaged[1], "t10k")
    (damaged[1] / "t10k-labels-idx1-ubyte.gz").unlink()
    for data in damaged:
        with pytest.raises(MinidiffError) as caught:
            open_dataset(str(data), split="test")
        assert not isinstance(caught.value, NoSplit)
