import os
import re

import numpy as np
import pytest
from PIL import Image

from minidiff.data import memory
from minidiff.data.folder import folder
from minidiff.errors import MinidiffError


def random_image(seed, height=6, width=6, channels=3):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


def write(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def contents(dataset):
    return dataset.take(np.arange(len(dataset)))


def refused(path, match, size=None):
    with pytest.raises(MinidiffError) as caught:
        folder(path, size)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(match, message.replace(str(path), "")), message
    return message


def test_classes_sorted_by_name_images_within_them(tmp_path):
    names = ["日本/ä.png", "b/2.png", "b/10.PNG", "b/1.bmp", "a b/ø.webp"]
    for seed, name in enumerate(names):
        pixels = random_image(seed)
        path = tmp_path / "bilder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    dataset = folder(tmp_path / "bilder")
    assert (dataset.name, dataset.shape) == ("bilder", (6, 6, 3))
    assert dataset.classes == ("a b", "b", "日本")
    assert dataset.labels.tolist() == [0, 1, 1, 1, 2] and dataset.labels.dtype == np.int64
    expected = [random_image(seed) for seed in (4, 3, 2, 1, 0)]  # 1.bmp, 10.PNG, 2.png: as strings sort
    np.testing.assert_array_equal(contents(dataset), expected)


def test_one_class_named_after_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "cats" / "x.png", random_image(0))
    write(tmp_path / "cats" / "notes" / "deep" / "y.png", random_image(1))  # too deep to be seen
    (tmp_path / "cats" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    for path in (tmp_path / "cats", "."):
        dataset = folder(path)
        assert (dataset.name, dataset.classes, len(dataset)) == ("cats", ("cats",), 1)


def test_other_and_hidden_files_are_passed_over(tmp_path):
    write(tmp_path / "cats" / "x.png", random_image(0))
    write(tmp_path / "cats" / ".hidden.png", random_image(1))
    write(tmp_path / ".trash" / "y.png", random_image(2))
    (tmp_path / "cats" / "._x.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "cats" / "labels.csv").write_text("x")
    (tmp_path / "cats" / "folder.png").mkdir()
    (tmp_path / "README.md").write_text("x")
    told = []
    dataset = folder(tmp_path, notice=told.append)
    assert (dataset.classes, len(dataset)) == (("cats",), 1)
    assert told == [f"{tmp_path}: 3 other files ignored: README.md, cats/folder.png/, cats/labels.csv"]


def test_what_is_passed_over_is_told_in_short(tmp_path):
    write(tmp_path / "x.png", random_image(0))
    (tmp_path / "captions.csv").write_text("file_name,text\nx.png,a cat\n")
    told = []
    folder(tmp_path, notice=told.append)
    (tmp_path / "a.psd").write_bytes(b"")
    folder(tmp_path, notice=told.append)
    for i in range(1000):
        (tmp_path / f"{i:03}.txt").touch()
    folder(tmp_path, notice=told.append)
    assert told == [
        f"{tmp_path}: 1 other file ignored: a.psd",
        f"{tmp_path}: 1001 other files ignored: 000.txt, 001.txt, 002.txt, 003.txt, 004.txt and 996 more",
    ]


@pytest.mark.parametrize(
    "modes, channels", [(["L", "1", "I;16"], 1), (["L", "RGB"], 3), (["P"], 3), (["LA"], 3), (["L"], 1)]
)
def test_grey_only_if_all_are(tmp_path, modes, channels):
    for i, mode in enumerate(modes):
        grey = random_image(i, channels=1)
        if mode == "I;16":
            Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(tmp_path / f"{i}.png")
        else:
            write(tmp_path / f"{i}.png", grey, mode)
    images = contents(folder(tmp_path))
    assert images.shape == (len(modes), 6, 6, channels)
    if modes[0] == "L":
        np.testing.assert_array_equal(images[0], np.repeat(random_image(0, channels=1), channels, axis=2))


def test_mixed_sizes_need_a_size(tmp_path):
    write(tmp_path / "a" / "x.png", random_image(0, 6, 6))
    write(tmp_path / "b" / "y.png", random_image(1, 6, 9))
    message = refused(tmp_path, "9x6 pixels.* 6x6; .*--size 32")
    assert str(tmp_path / "a" / "x.png") in message and str(tmp_path / "b" / "y.png") in message
    assert folder(tmp_path, size=4).shape == (4, 4, 3)


def test_size_leaves_images_of_that_size_alone(tmp_path):
    write(tmp_path / "x.png", random_image(0))
    np.testing.assert_array_equal(contents(folder(tmp_path, size=6)), random_image(0)[None])


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 48), (48, 16), (2, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_size_scales_the_short_side_and_cuts_the_middle_of_the_long_one(tmp_path, shape, channels):
    pixels = random_image(0, *shape, channels)
    write(tmp_path / "x.png", pixels)
    images = contents(folder(tmp_path, size=8))
    assert images.shape == (1, 8, 8, channels)

    height, width = (8 * side // min(shape) for side in shape)
    left, top = (width - 8) // 2, (height - 8) // 2
    whole = Image.fromarray(pixels.squeeze()).resize((width, height), Image.Resampling.LANCZOS)
    expected = np.asarray(whole.crop((left, top, left + 8, top + 8))).reshape(images.shape)
    # Each of the two passes rounds once, and may do so differently.
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 2


def test_the_cut_is_centred_where_the_sides_have_no_common_measure(tmp_path):
    half = random_image(0, 9, 9)
    write(tmp_path / "x.png", np.concatenate([half, half[:, -2::-1]], axis=1))  # (9, 17, 3), symmetric
    image = contents(folder(tmp_path, size=8))[0].astype(int)
    assert image.shape == (8, 8, 3) and np.ptp(image) > 50
    assert np.abs(image - image[:, ::-1]).max() <= 2  # two passes, each rounding once


def test_nothing_to_read(tmp_path):
    refused(tmp_path, "holds no image")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt").write_text("x")
    refused(tmp_path, "holds no image")
    refused(tmp_path / "sub" / "x.txt", "cannot be read")
    refused(tmp_path / "missing", "cannot be read")
    refused(tmp_path / ("x" * 300), "cannot be read")


def test_images_beside_sub_folders_of_images(tmp_path):
    write(tmp_path / "stray.png", random_image(0))
    write(tmp_path / "cats" / "x.png", random_image(0))
    refused(tmp_path, r"has images \(stray.png\) beside sub-folders of images \(cats\)")


def truncated_jpeg(path):
    Image.fromarray(random_image(0, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    "name, make",
    [
        ("cut.jpg", truncated_jpeg),
        ("text.png", lambda path: path.write_text("not an image")),
        ("empty.gif", lambda path: path.write_bytes(b"")),
        ("dangling.png", lambda path: path.symlink_to("nowhere")),
        ("loop.png", lambda path: path.symlink_to("loop.png")),
        pytest.param(
            "pipe.png",
            lambda path: os.mkfifo(path),
            marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes"),
        ),
    ],
)
@pytest.mark.parametrize("first", ["a.png", "z.png"])  # before or after the bad one
@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_cannot_be_read(tmp_path, name, make, first, channels):
    write(tmp_path / first, random_image(0, 64, 64, channels))
    make(tmp_path / name)
    assert str(tmp_path / name) in refused(tmp_path, name)
    refused(tmp_path, name, size=8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bad", [["a.png"], ["b.png"], ["d.png"], ["a.png", "c.png", "d.png"]])
def test_bad_images_can_be_left_out(tmp_path, bad, channels):
    """First, last and in between; the others keep order and class, and grey ones stay grey."""
    names = ["a.png", "b.png", "c.png", "d.png"]
    for i, name in enumerate(names):
        write(tmp_path / ("x" if i < 2 else "y") / name, random_image(i, channels=channels))
    paths = [path for path in sorted(tmp_path.rglob("*.png")) if path.name in bad]
    for path, content in zip(paths, (b"no image", b"", paths[-1].read_bytes()[:-40]), strict=False):
        path.write_bytes(content)
    refused(tmp_path, bad[0])

    told = []
    dataset = folder(tmp_path, skip=told.append)
    assert [str(path) in str(error) for path, error in zip(paths, told, strict=True)] == [True] * len(bad)
    good = [i for i, name in enumerate(names) if name not in bad]
    np.testing.assert_array_equal(contents(dataset), [random_image(i, channels=channels) for i in good])
    assert dataset.labels.tolist() == [i // 2 for i in good] and dataset.classes == ("x", "y")


def test_what_is_left_must_be_something_and_of_one_size(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(MinidiffError, match="none of its images can be read; replace them"):
        folder(tmp_path, skip=lambda error: None)
    write(tmp_path / "b.png", random_image(0, 6, 6))
    write(tmp_path / "c.png", random_image(1, 6, 9))
    with pytest.raises(MinidiffError, match="c.png has 9x6 pixels, .*b.png has 6x6"):
        folder(tmp_path, skip=lambda error: None)


def test_a_image_bomb(tmp_path, monkeypatch):
    write(tmp_path / "bomb.png", random_image(0, 64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # Pillow warns
    refused(tmp_path, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)  # Pillow raises
    refused(tmp_path, "bomb.png")


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_of_a_tiff_the_first_page_is_read(tmp_path, suffix):
    first, *others = [Image.fromarray(random_image(seed)) for seed in range(3)]
    first.save(tmp_path / f"x{suffix}", "TIFF", save_all=True, append_images=others)
    np.testing.assert_array_equal(contents(folder(tmp_path)), random_image(0)[None])


def test_links_in_circles_do_not_hang(tmp_path):
    write(tmp_path / "cats" / "x.png", random_image(0))
    (tmp_path / "cats" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "root").symlink_to(tmp_path, target_is_directory=True)
    dataset = folder(tmp_path)
    assert (dataset.classes, len(dataset)) == (("cats",), 1)


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_out_of_range_sizes(tmp_path, size):
    write(tmp_path / "x.png", random_image(0))
    refused(tmp_path, f"size {size}: .*1 to 4096", size)


def test_more_images_than_memory(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    write(tmp_path / "x.png", random_image(0))
    monkeypatch.setattr(np, "empty", full)
    refused(tmp_path, "do not fit into memory; give a smaller --size")


def test_what_the_memory_does_not_hold_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write(tmp_path / "a.png", random_image(0, 20, 30))
    (tmp_path / "b.png").write_text("no image, but nobody has looked yet")
    monkeypatch.setattr(memory, "available", lambda: 3599)  # of the 2 x 20 x 30 x 3 bytes
    refused(
        tmp_path, r": 2 images of 30x20 need 0\.0 GB of memory, .* available; give a smaller --size, or fewer images"
    )
    refused(tmp_path, "b.png: cannot be read", size=4)
    monkeypatch.setattr(memory, "available", lambda: 3600)
    refused(tmp_path, "b.png: cannot be read")
    monkeypatch.setattr(memory, "available", lambda: None)
    refused(tmp_path, "b.png: cannot be read")


def test_how_much_memory_a_large_set_needs_is_told(tmp_path, monkeypatch):
    told = []
    write(tmp_path / "a.png", random_image(0, 20, 30))
    monkeypatch.setattr("minidiff.data.folder.LARGE", 1800)
    folder(tmp_path, notice=told.append)
    monkeypatch.setattr("minidiff.data.folder.LARGE", 1799)
    folder(tmp_path, notice=told.append)
    assert told == [f"{tmp_path}: 1 images of 30x20 need 0.0 GB of memory"]
