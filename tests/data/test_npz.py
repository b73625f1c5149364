"""Archives of images: what is written can be read, and what is no such thing is refused in one line."""

import io
import re
import zipfile

import numpy as np
import pytest

from minidiff.data.npz import read_npz
from minidiff.errors import MinidiffError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_numpy_writes(tmp_path, save, channels):
    save(tmp_path / "a.npz", IMAGES[..., :channels], np.zeros(3), other=np.array(["x"]))
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz"), IMAGES[..., :channels])


def npy(a, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, a, **options)
    return file.getvalue()


def archive(path, content, name="arr_0.npy"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


def test_a_header_of_the_second_version(tmp_path):
    np.testing.assert_array_equal(read_npz(archive(tmp_path / "a.npz", npy(IMAGES, version=(2, 0)))), IMAGES)


HUGE = npy(IMAGES).replace(b"(5, 4, 6, 3)", b"(10**9, 3)  ")
REFUSED = {
    "other name": (npy(IMAGES), "holds no arr_0", "arr_1.npy"),
    "floats": (npy(IMAGES / 255), r"arr_0 is float64 \(5, 4, 6, 3\), not uint8"),
    "one image": (npy(IMAGES[0]), r"arr_0 is uint8 \(4, 6, 3\), not uint8 \(N"),
    "four channels": (npy(IMAGES.repeat(4, 3)[..., :4]), "not uint8"),
    "none": (npy(IMAGES[:0]), "not uint8"),
    "Fortran": (npy(np.asfortranarray(IMAGES)), "not uint8"),
    "objects": (npy(np.array([[[[{}]]]], dtype=object), allow_pickle=True), "not uint8"),
    "short": (npy(IMAGES)[:-1], "arr_0 has .* bytes, its header gives the shape"),
    "long": (npy(IMAGES) + b"x", "arr_0 has .* bytes, its header gives the shape"),
    "claims much": (npy(IMAGES).replace(b"(5, 4, 6, 3)", b"(5,4,6,3000)"), "not uint8"),
    "claims more": (npy(IMAGES).replace(b"(5, 4, 6, 3)", b"(50000,46,3)"), "not uint8"),
    "no numbers": (HUGE, "cannot be read as images"),
    "no header": (b"\x93NUMPY\x01\x00", "cannot be read as images"),
    "no array": (b"text", "cannot be read as images"),
    "negative": (npy(IMAGES).replace(b"(5, 4, 6, 3)", b"(-5,-4,6, 3)"), "cannot be read|not uint8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    content, match, *member = REFUSED[name]
    refused(archive(tmp_path / "a.npz", content, *member), match)


def refused(path, match):
    with pytest.raises(MinidiffError, match=match) as caught:
        read_npz(path)
    assert "\n" not in str(caught.value) and re.match(f".*{path.name}: ", str(caught.value))


def test_no_archive(tmp_path):
    (tmp_path / "a.npz").write_bytes(npy(IMAGES))
    refused(tmp_path / "a.npz", "cannot be read as images .File is not a zip file")
    (tmp_path / "b.npz").mkdir()
    refused(tmp_path / "b.npz", "cannot be read as images")
    refused(tmp_path / "c.npz", "cannot be read as images .*No such file")


def test_a_damaged_archive(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    good = (tmp_path / "a.npz").read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    for content in (good[:-30], bytes(damaged), good[: len(good) // 2]):
        (tmp_path / "a.npz").write_bytes(content)
        refused(tmp_path / "a.npz", "cannot be read as images")


def test_a_bomb_is_not_inflated(tmp_path):
    """Of two GiB and a header: refused for what the archive's directory says, before anything is read."""
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (2**31, 1, 1, 1)}
    np.lib.format.write_array_header_1_0(header, claim)
    path = archive(tmp_path / "a.npz", header.getvalue())
    data = path.read_bytes()
    for at in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):  # where the length is told
        data = data[:at] + (2**31 + 128).to_bytes(4, "little") + data[at + 4 :]
    path.write_bytes(data)
    refused(path, "arr_0 has 2147483776 bytes, its header gives the shape")
