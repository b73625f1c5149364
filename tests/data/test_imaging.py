import math
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from own_process import start
from PIL import EpsImagePlugin, Image

from minidiff.data import imaging
from minidiff.data.imaging import load_image, save_gif, save_image, save_loss_plot, sheet, strip, to_float, to_uint8
from minidiff.errors import MinidiffError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_images(rng, n, height=32, width=32, channels=3):
    return rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def files(folder):
    return sorted(os.listdir(folder))


# to_uint8, to_float


def test_every_byte_survives():
    every = np.arange(256, dtype=np.uint8).reshape(4, 64)
    x = to_float(every)
    assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(to_uint8(x), every)
    np.testing.assert_allclose(x, every / 127.5 - 1, atol=1e-7)  # one unit in the last place of float32


def test_to_uint8_clips_and_rounds():
    x = np.array([-7, -1, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1, 1.001])
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 1, 255, 255])
    assert to_uint8(np.zeros((2, 3, 4), np.float32)).shape == (2, 3, 4)


# sheet, strip


def test_sheet_holds_every_pixel_in_its_place(rng):
    images = random_images(rng, 5, 6, 8)
    grid = np.asarray(sheet(images, columns=3, scale=2, gap=3))
    assert grid.shape == (2 * (12 + 3) + 3, 3 * (16 + 3) + 3, 3)
    for i, image in enumerate(images):
        top, left = 3 + i // 3 * 15, 3 + i % 3 * 19
        tile = grid[top : top + 12, left : left + 16]
        for shift in np.ndindex(2, 2):
            np.testing.assert_array_equal(tile[shift[0] :: 2, shift[1] :: 2], image)
    background = grid[0, 0]
    assert (grid[18:30, 41:57] == background).all()  # the sixth place is empty


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (10, 4, 3), (64, 8, 8)])
def test_sheet_is_near_square_and_enlarges_small_images(rng, n, columns, rows):
    assert sheet(random_images(rng, n), gap=0).size == (columns * 96, rows * 96)


def test_large_images_keep_their_size(rng):
    assert sheet(random_images(rng, 1, 300, 200), gap=0).size == (200, 300)


def test_grey_is_shown_grey(rng):
    images = random_images(rng, 1, channels=1)
    grid = np.asarray(sheet(images, scale=1, gap=0))
    np.testing.assert_array_equal(grid, images[0].repeat(3, axis=2))


def test_strip_is_one_row_with_captions(rng):
    images = random_images(rng, 3, channels=1)
    plain, captioned = strip(images), strip(images, ["t = 0", "t = 500", "t = 999"])
    assert plain.width == captioned.width >= 3 * 96
    assert 96 < plain.height < captioned.height
    below = np.asarray(captioned)[plain.height :]
    assert (below != below[0, 0]).any()  # something is written there


def test_a_long_caption_keeps_to_its_own_image(rng):
    labels = ["an uncommonly long caption", "another"]
    image = strip(random_images(rng, 2), labels, scale=1)
    margin = 4
    cell = (image.width - 3 * margin) // 2
    assert cell > 32
    below = np.asarray(image)[32 + 2 * margin :]
    between = below[:, margin + cell : 2 * margin + cell]
    assert (between == between[0, 0]).all()


# save, gif


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.PNG", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")])
def test_save_writes_the_format_of_the_suffix(tmp_path, rng, name, kind):
    image = sheet(random_images(rng, 2))
    save_image(image, tmp_path / name)
    assert files(tmp_path) == [name]
    with Image.open(tmp_path / name) as read:
        assert read.size == image.size and read.format == kind


def test_png_is_lossless(tmp_path, rng):
    image = sheet(random_images(rng, 2))
    save_image(image, str(tmp_path / "a.png"))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.asarray(image))


@pytest.mark.parametrize("name", ["a", "a.", "a.xyz", "a.txt", "a.blp", "a.xbm", "a.grib"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(MinidiffError, match=r"\.png"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / name)
    assert files(tmp_path) == []


def test_more_pixels_than_the_format_allows(tmp_path):
    with pytest.raises(MinidiffError, match=r"cannot write .*a.webp: .*16383 pixels; give a name that ends in .png"):
        save_image(Image.new("RGB", (16384, 1)), tmp_path / "a.webp")
    assert files(tmp_path) == []


def test_missing_folder_and_file_as_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png"):
        with pytest.raises(MinidiffError, match="cannot write"):
            save_image(Image.new("RGB", (4, 4)), path)
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MinidiffError, match="cannot write"):
            save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(MinidiffError, match="cannot write"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert files(tmp_path) == ["a.png"]


def test_the_old_image_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(Image.new("RGB", (4, 4), "red"), path)
    old = path.read_bytes()

    def write_half(self, file, *args, **kwargs):
        file.write(b"half")
        assert path.read_bytes() == old
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", write_half)
    for attempt in (save_image, lambda image, path: save_gif([image], path.with_name("a.gif"))):
        with pytest.raises(KeyboardInterrupt):
            attempt(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == old and files(tmp_path) == ["a.png"]


def test_a_link_is_followed(tmp_path, rng):
    (tmp_path / "folder").mkdir()
    for write, name in ((save_image, "a.png"), (lambda image, path: save_gif([image], path), "a.gif")):
        (tmp_path / name).symlink_to(tmp_path / "folder" / name)
        for colour in ("red", "blue"):
            write(Image.new("RGB", (4, 4), colour), tmp_path / name)
            assert (tmp_path / name).is_symlink()
            assert load_image(tmp_path / "folder" / name)[0, 0].tolist() == load_image(tmp_path / name)[0, 0].tolist()
    assert files(tmp_path / "folder") == ["a.gif", "a.png"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(MinidiffError, match="a.png: it is no regular file"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_fifo()


def test_gif_loops_and_holds(tmp_path, rng):
    frames = [sheet(random_images(rng, 4, 8, 8), scale=1) for _ in range(3)]
    save_gif(frames, tmp_path / "a.gif", ms=50, hold=1500)
    with Image.open(tmp_path / "a.gif") as read:
        assert read.n_frames == 3 and read.info["loop"] == 0
        durations = []
        for i in range(3):
            read.seek(i)
            durations.append(read.info["duration"])
            # 256 random pixels and two more colours: all but a few keep theirs.
            assert (np.asarray(read.convert("RGB")) == np.asarray(frames[i])).mean() > 0.9
    assert durations == [50, 50, 1500]


def test_gif_is_deterministic(tmp_path, rng):
    frames = [sheet(random_images(rng, 4)) for _ in range(2)]
    for name in ("a.gif", "b.gif"):
        save_gif(frames, tmp_path / name)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_gif_refuses_another_suffix_and_a_missing_folder(tmp_path):
    for path in (tmp_path / "a.png", tmp_path / "none" / "a.gif"):
        with pytest.raises(MinidiffError, match=path.name):
            save_gif([Image.new("RGB", (4, 4))], path)
    assert files(tmp_path) == []


# load


def test_load_colour_and_grey(tmp_path, rng):
    pixels = random_images(rng, 1, 5, 7)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), pixels)
    grey = load_image(str(tmp_path / "a.png"), channels=1)
    assert grey.shape == (5, 7, 1) and grey.dtype == np.uint8
    luma = pixels @ (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow documents; it rounds within 1
    np.testing.assert_allclose(grey[..., 0], luma, atol=1)


def test_load_grey_as_colour(tmp_path, rng):
    pixels = random_images(rng, 1, channels=1)[0]
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), pixels.repeat(3, axis=2))


def test_what_is_transparent_becomes_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0], [[255] * 3, [10, 20, 30], [204] * 3])
    assert load_image(tmp_path / "a.png", channels=1)[0, 0] == 255


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0], [[200, 0, 0], [0, 0, 200]])
    image.save(tmp_path / "b.gif", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "b.gif")[0], [[255, 255, 255], [0, 0, 200]])


def test_sixteen_bits_are_scaled(tmp_path):
    deep = np.array([[0, 257, 25700, 65535, 128, 129]], np.uint16)
    for name in ("a.png", "a.tiff", "a.pgm"):
        Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_array_equal(load_image(tmp_path / name, channels=1)[0, :, 0], [0, 1, 100, 255, 0, 1])


def write_png(path, pixels, colour_type, *chunks):
    """A PNG of 16 bits (1, W, C), of which Pillow writes only grey."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], 1, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"\0" + pixels.astype(">u2").tobytes())
    parts = [chunk(b"IHDR", header), *(chunk(*one) for one in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_of_colour_of_sixteen_bits_the_upper_eight_are_kept(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[0x12FF, 0x8000, 0xFFFF], [0, 0xFF, 0x100]]]), 2)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0], [[0x12, 0x80, 0xFF], [0, 0, 1]])


def test_the_transparent_level_of_sixteen_bit_grey_becomes_white(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[0x8000], [0x1234]]]), 0, (b"tRNS", b"\x12\x34"))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", channels=1)[0], [[128], [255]])


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.webp", "a.png"])
def test_of_several_frames_or_pages_the_first_is_read(tmp_path, name):
    first, *others = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    first.save(tmp_path / name, save_all=True, append_images=others, **({"lossless": True} if "webp" in name else {}))
    with Image.open(tmp_path / name) as file:
        assert file.n_frames == 3
    np.testing.assert_array_equal(load_image(tmp_path / name), np.array(first))


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk_is_converted(tmp_path, name):
    inks = {(0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255, 255, 255)}
    for ink, colour in inks.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / name)
        np.testing.assert_allclose(
            load_image(tmp_path / name), np.full((8, 8, 3), colour), atol=2
        )  # JPEG loses a little


def test_grey_without_an_agreed_range(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "b.tiff")
    for name in ("a.tiff", "b.tiff"):
        with pytest.raises(MinidiffError, match=name):
            load_image(tmp_path / name)


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: turn clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load_image(tmp_path / "a.png")
    assert pixels.shape == (4, 2, 3)
    assert tuple(pixels[0, 1]) == (255, 0, 0)


def one_line(error):
    return len(str(error.value).splitlines()) == 1


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(MinidiffError, match=path.name) as error:
            load_image(path)
        assert one_line(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_truncated_file(tmp_path, rng, suffix):
    path = tmp_path / f"a.{suffix}"
    sheet(random_images(rng, 4)).save(path)
    whole = path.read_bytes()
    for part in (0, 3, 20, len(whole) // 2):
        path.write_bytes(whole[:part])
        with pytest.raises(MinidiffError, match=path.name) as error:
            load_image(path)
        assert one_line(error)


def test_noise_is_not_a_image(tmp_path, rng):
    path = tmp_path / "a.png"
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(MinidiffError, match=path.name):
        load_image(path)


def test_only_plain_image_formats_are_read(tmp_path, monkeypatch):
    """EPS is a program: Pillow would have Ghostscript run it."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.eps")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: Image.new("RGB", (8, 8)).im)
    with pytest.raises(MinidiffError, match="cannot be read as an image"):
        load_image(tmp_path / "a.eps")


def test_damaged_bytes_give_a_image_or_a_clear_error(tmp_path, rng):
    path = tmp_path / "a.png"
    sheet(random_images(rng, 1)).save(path)
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in range(8, 100):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_image(path)
        except MinidiffError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("factor", [1.5, 3])
def test_image_bomb(tmp_path, monkeypatch, factor):
    """Pillow warns of too many pixels, and refuses twice as many; here both are refused."""
    path = tmp_path / "bomb.png"
    Image.new("L", (300, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(30_000 / factor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's filters change nothing
        with pytest.raises(MinidiffError, match="bomb"):
            load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    assert load_image(path).shape == (100, 300, 3)


# loss_plot


@pytest.mark.parametrize("n", [1, 2, 700])
def test_loss_plot(tmp_path, rng, n):
    path = tmp_path / "loss.png"
    save_loss_plot(range(1, n + 1), list(np.exp(rng.standard_normal(n))), path, "A title")
    pixels = load_image(path)
    assert pixels.shape == (600, 1050, 3) and (pixels != 255).mean() > 0.01
    assert files(tmp_path) == ["loss.png"]


@pytest.mark.parametrize(("n", "between"), [(1, 0.0), (24, 0.0), (75, 0.0), (725, 0.0), (700, 0.5)])
def test_the_moving_average_of_the_plot_does_not_lag(n, between):
    """Of a straight line it is the line itself; a window of even length ends half a step after its middle."""
    steps = list(range(1, n + 1))
    shown, means = imaging._moving_average(steps, [float(step) for step in steps])
    np.testing.assert_array_equal(means, np.array(shown) + between)
    assert len(shown) == n - max(1, n // 25) + 1


@pytest.mark.parametrize("losses", [[math.nan, 0.5, math.inf, 0.4], [math.nan], [0.0, 0.0], [0.5, 0.0]])
def test_losses_that_are_not_positive_and_finite_are_left_out_of_the_plot(tmp_path, losses):
    save_loss_plot(range(1, len(losses) + 1), losses, tmp_path / "loss.png", "A title")
    finite = [(step, loss) for step, loss in enumerate(losses, start=1) if math.isfinite(loss) and loss > 0]
    save_loss_plot([step for step, _ in finite], [loss for _, loss in finite], tmp_path / "finite.png", "A title")
    np.testing.assert_array_equal(load_image(tmp_path / "loss.png"), load_image(tmp_path / "finite.png"))


def test_the_plot_shows_the_losses_by_noise_level(tmp_path, rng):
    """A line for each quarter with losses; without any the plot is the same as without quarters."""
    losses, empty = list(np.exp(rng.standard_normal(100))), [math.nan] * 100
    plots = {}
    for name, quarters in {
        "none": (), "empty": [empty] * 4, "first": [losses, *[empty] * 3], "all": [losses, losses[::-1], losses, empty],
    }.items():  # fmt: skip
        save_loss_plot(range(1, 101), losses, tmp_path / "loss.png", "A title", quarters)
        plots[name] = load_image(tmp_path / "loss.png").tobytes()
    assert plots["none"] == plots["empty"] and len({*plots.values()}) == 3


def test_a_backend_that_matplotlib_does_not_know(tmp_path):
    path = str(tmp_path / "loss.png")
    code = f"from minidiff.data.imaging import save_loss_plot; save_loss_plot([1], [0.5], {path!r}, 'A title')"
    _, complaints = start(code, MPLBACKEND="GTK").communicate(timeout=100)
    assert re.search("MinidiffError: matplotlib: .*; unset the variable MPLBACKEND$", complaints.strip())


def test_loss_plot_in_a_missing_folder(tmp_path):
    with pytest.raises(MinidiffError, match="cannot write"):
        save_loss_plot([1], [0.5], tmp_path / "none" / "loss.png", "A title")
