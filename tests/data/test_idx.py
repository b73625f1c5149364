import gzip
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minidiff.data.idx import GARMENTS, idx, is_idx, read_idx
from minidiff.errors import MinidiffError


def encode(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder, images, labels, prefix="train", suffix=""):
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = encode(array)
        (folder / f"{prefix}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.array([0, 9, 3, 3, 1], np.uint8)
GOOD = encode(IMAGES)


def read_bytes(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    return read_idx(path)


def refused(tmp_path, data, match):
    with pytest.raises(MinidiffError) as caught:
        read_bytes(tmp_path, data)
    path, message = str(tmp_path / "file"), str(caught.value)
    assert path in message and "\n" not in message
    assert re.search(match, message.replace(path, "")), message


@given(array=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=6)), zipped=st.booleans())
def test_round_trip(tmp_path_factory, array, zipped):
    data = encode(array)
    read = read_bytes(tmp_path_factory.mktemp("idx"), gzip.compress(data) if zipped else data)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("idx")
    for content in (data, b"\0\0\x08" + data, b"\x1f\x8b" + data, gzip.compress(b"\0\0\x08" + data)):
        try:
            read = read_bytes(folder, content)
        except MinidiffError:
            continue
        assert encode(read) in (content, gzip.decompress(content) if content[0] else content)


def test_truncated_anywhere(tmp_path):
    for length in range(len(GOOD)):
        refused(tmp_path, GOOD[:length], "starts with|ends within|too short|holds .* of 60")


def test_truncated_gzip_anywhere(tmp_path):
    zipped = gzip.compress(GOOD)
    for length in range(2, len(zipped)):
        refused(tmp_path, zipped[:length], "cannot be read")


def test_short_body_within_a_whole_gzip(tmp_path):
    refused(tmp_path, gzip.compress(GOOD[:-1]), "holds 59 of 60")


def test_surplus_bytes(tmp_path):
    refused(tmp_path, GOOD + b"\0", "has more than the")
    refused(tmp_path, gzip.compress(GOOD + b"\0"), "has more than the")
    refused(tmp_path, gzip.compress(GOOD) + b"junk", "cannot be read")


def test_damaged_gzip_checksum(tmp_path):
    data = bytearray(gzip.compress(GOOD))
    data[-5] ^= 1
    refused(tmp_path, bytes(data), "cannot be read")


@pytest.mark.parametrize(
    "magic", [b"\0\0\x0d\3", b"\0\0\x08\0", b"\0\0\x08\5", b"\0\1\x08\3", b"\x89PNG", b"\x80\4\x95\0"]
)
def test_wrong_magic(tmp_path, magic):
    refused(tmp_path, magic + GOOD[4:], "no IDX of bytes")


@pytest.mark.parametrize("shape", [(-1, 28, 28), (2**31 - 1, 2**31 - 1, 2**31 - 1), (2**31, 1, 2), (0, 28, 28)])
def test_out_of_range_sizes(tmp_path, shape):
    header = b"\0\0\x08\3" + struct.pack(">3I", *(size % 2**32 for size in shape))
    refused(tmp_path, header + bytes(64), "out of range")
    refused(tmp_path, gzip.compress(header + bytes(64)), "out of range")


def test_a_claim_beyond_the_file_allocates_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(np, "empty", refuse)
    header = b"\0\0\x08\1" + struct.pack(">I", 2**31)
    refused(tmp_path, header + bytes(1000), "too short")
    refused(tmp_path, gzip.compress(header + bytes(1000)), "too short")


def test_a_gzip_bomb_is_not_inflated_beyond_its_claim(tmp_path, monkeypatch):
    inflated = 0
    read = gzip.GzipFile.read

    def counting_read(self, size=-1):
        nonlocal inflated
        data = read(self, size)
        inflated += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counting_read)
    refused(tmp_path, gzip.compress(GOOD + bytes(50_000_000)), "has more than the")
    assert inflated == len(GOOD) + 1


def test_unreadable_path(tmp_path):
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(MinidiffError, match="cannot be read"):
            read_idx(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_a_set(tmp_path, split, prefix, suffix):
    folder = write_set(tmp_path / "ziffern-ü", IMAGES, LABELS, prefix, suffix)
    dataset = idx(folder, split)
    assert is_idx(folder)
    assert (dataset.name, dataset.shape, len(dataset)) == ("ziffern-ü", (4, 3, 1), 5)
    assert dataset.classes == tuple("0123456789")
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.labels, LABELS)
    np.testing.assert_array_equal(dataset.take(np.array([4, 0])), IMAGES[[4, 0]][..., None])
    with pytest.raises(MinidiffError, match="holds neither"):
        idx(folder, "test" if split == "train" else "train")


def test_class_names_follow_the_folder(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "Fashion-MNIST", IMAGES, LABELS)
    assert idx(folder).classes == GARMENTS
    monkeypatch.chdir(folder)
    assert idx(".").classes == GARMENTS


@pytest.mark.parametrize(
    "images, labels, match",
    [
        (IMAGES, LABELS[:4], "there are 5 images"),
        (IMAGES, LABELS.reshape(5, 1), "there are 5 images"),
        (IMAGES, np.full(5, 10, np.uint8), "the label 10"),
        (IMAGES.reshape(-1), np.zeros(60, np.uint8), "has 1 dimensions"),
    ],
)
def test_files_that_do_not_fit(tmp_path, images, labels, match):
    with pytest.raises(MinidiffError, match=match):
        idx(write_set(tmp_path / "set", images, labels))


def test_unknown_split(tmp_path):
    with pytest.raises(MinidiffError, match="valid: no such split"):
        idx(write_set(tmp_path / "set", IMAGES, LABELS), "valid")
