"""minidiff noise."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from small_commands import bytes_of


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("LA", "png"), ("1", "bmp"), ("CMYK", "jpg"),
        ("I;16", "png"), ("RGBA", "webp"), ("RGB", "tiff"), ("CMYK", "tif"),
    ],
)  # fmt: skip
def test_noise(done, mode, suffix):
    Image.effect_noise((40, 24), 80).convert("L").convert(mode).save(f"picture.{suffix}")
    assert done("noise", f"picture.{suffix}", "--out", "strip.png") == "Wrote strip.png\n"
    with Image.open("strip.png") as strip:
        assert strip.size[0] > 10 * 40 and strip.size[1] > 24


def test_noise_comes_from_the_seed(done):
    Image.new("RGB", (8, 8), "red").save("picture.png")
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        done("noise", "picture.png", "--out", name, "--seed", seed)
    assert bytes_of("one.png") == bytes_of("two.png") != bytes_of("other.png")


def test_noise_for_large_and_thin_pictures(done):
    for name, size in {"large": (3000, 2000), "wide": (4000, 1), "high": (1, 4000), "tiny": (1, 1)}.items():
        Image.new("RGB", size, "teal").save(f"{name}.png")
        done("noise", f"{name}.png", "--out", "strip.png")
        with Image.open("strip.png") as strip:
            assert strip.size[0] < 10_000 and strip.size[1] < 1000


def test_no_picture(refused, tmp_path):
    Image.effect_noise((40, 40), 50).save("good.png")
    good = bytes_of("good.png")
    for name, content in {"empty.png": b"", "text.png": b"hello", "half.png": good[: len(good) // 2]}.items():
        Path(name).write_bytes(content)
        refused("noise", name, match=f"{name}: cannot be read as an image")
    refused("noise", "missing.png", match="missing.png: no such image file")
    refused("noise", ".", match="no such image file")
    refused("noise", "good.png", "--out", "strip.xyz", match="strip.xyz: unknown image format")
    refused("noise", "good.png", "--out", "missing/strip.png", match="cannot write missing/strip.png")


def test_a_picture_bomb(refused):
    """A few kilobytes that claim 900 million pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    Path("bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    refused("noise", "bomb.png", match="bomb.png: cannot be read as an image.*decompression bomb")
    Path("data").mkdir()
    shutil.move("bomb.png", "data/bomb.png")
    refused("train", "data", "--out", "run", "--size", 32, match="bomb.png: cannot be read as an image")
