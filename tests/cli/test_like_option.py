"""minidiff sample --like: an image's parameters repeat it, pixel by pixel; the command line wins."""

from pathlib import Path

import numpy as np
import pytest
import small_pipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from small_commands import QUICK, SMALL, pipeline

from minidiff.data.imaging import save_image
from minidiff.formats.png_parameters import read_parameters
from minidiff.sampling import inputs

SETTINGS = ("--steps", 3, "--sampler", "ddim", "--eta", 0.5)


@pytest.fixture
def by_class(done, data):
    done("train", data, "--out", "run", "--steps", 3, "--by-class", *SMALL)


@pytest.fixture
def text_model(tmp_path, capsys):
    small_pipeline.saved(tmp_path / "run")
    capsys.readouterr()  # a progress bar of diffusers


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def repeats(done, *more):
    """The sheet and each image of the folder `images` are repeated, with their parameters."""
    done("sample", "run", "--like", "sheet.png", "--out", "again.png", *QUICK, *more)
    assert Path("again.png").read_bytes() == Path("sheet.png").read_bytes()
    for path in sorted(Path("images").iterdir()):
        done("sample", "run", "--like", path, "--folder", f"of-{path.name}", *QUICK, *more)
        (again,) = Path(f"of-{path.name}").iterdir()
        np.testing.assert_array_equal(pixels(again), pixels(path))
        assert again.read_bytes() == path.read_bytes()


OUTPUTS = ("--out", "sheet.png", "--folder", "images")
KINDS = [("--n", 5), ("--n", 5, "--seed", 3), ("--seeds", "4,9,2-3"), ("--seeds", "7"), ("--n", 1, "--noise", "torch")]


@pytest.mark.parametrize("batch_size", [64, 2])
@pytest.mark.parametrize("images", KINDS, ids=str)
def test_images_without_a_prompt(done, trained, images, batch_size, monkeypatch):
    monkeypatch.setattr(inputs, "BATCH_SIZE", batch_size)
    done("sample", "run", *images, *OUTPUTS, *SETTINGS, *QUICK)
    repeats(done)


GUIDED = ("--n", 3, "--class", "7", "--guidance", 2.5, "--guidance-interval", "100,600", "--guidance-rescale", 0.5)


@pytest.mark.parametrize("images", [*KINDS, GUIDED], ids=str)
def test_images_of_classes(done, by_class, images):
    done("sample", "run", *images, *OUTPUTS, *SETTINGS, *QUICK)
    repeats(done)


@pytest.mark.parametrize(
    "images", [("--n", 2), ("--seeds", "4,9"), ("--seed", 5), ("--n", 2, "--noise", "torch")], ids=str
)
def test_images_of_prompts(done, text_model, images):
    prompts = (
        "--prompt",
        r"a cat, (black:1.2) \(a",
        "--prompt",
        "",
        "--negative-prompt",
        'Steps: 3, "x"',
        "--width",
        48,
    )
    done("sample", "run", *prompts, *images, *OUTPUTS, *SETTINGS, *QUICK)
    repeats(done)
    done("sample", "run", *prompts[:2], *images, *OUTPUTS[:2], *SETTINGS, *QUICK)
    done("sample", "run", "--like", "sheet.png", "--out", "again.png", *QUICK)
    assert Path("again.png").read_bytes() == Path("sheet.png").read_bytes()


def test_what_other_options_set(done, trained):
    """Of weights, sampler and schedule."""
    more = ("--raw", "--sampler", "heun", "--karras", "--spacing", "linspace", "--churn", 0.3, "--steps", 4)
    done("sample", "run", "--n", 2, *OUTPUTS, *more, *QUICK)
    assert {"Raw": "True", "Karras": "True", "Spacing": "linspace", "Churn": "0.3", "Sampler": "heun"}.items() <= (
        read_parameters(Path("sheet.png")).settings.items()
    )
    repeats(done)
    done("sample", "run", "--like", "sheet.png", "--step", 3, "--out", "other.png", *QUICK)  # in the place of --raw
    assert "Raw" not in read_parameters(Path("other.png")).settings


def test_the_figure_of_points(done):
    done("train", "two_moons", "--out", "run", "--steps", 2, *QUICK)
    done("sample", "run", "--n", 20, "--seed", 4, "--steps", 3, *QUICK)
    done("sample", "run", "--like", "sheet.png", "--out", "again.png", *QUICK)
    assert Path("again.png").read_bytes() == Path("sheet.png").read_bytes()
    assert read_parameters(Path("again.png")).settings["Seed"] == "4"


def test_the_command_line_wins(done, trained):
    done("sample", "run", "--n", 4, "--seed", 2, *OUTPUTS, *SETTINGS, *QUICK)
    single, sheet = "images/00002.png", "sheet.png"

    def settings(*options):
        done("sample", "run", "--out", "again.png", *options, *QUICK)
        return read_parameters(Path("again.png")).settings

    def chosen(*options):
        return {key: settings(*options).get(key) for key in ("Steps", "Seed", "Seeds", "Batch size", "Batch pos")}

    own = {"Steps": "3", "Seed": "2", "Seeds": None, "Batch size": "4", "Batch pos": None}
    assert chosen("--like", sheet) == own
    assert chosen("--like", sheet, "--steps", 2) == chosen("--steps", 2, "--like", sheet) == own | {"Steps": "2"}
    assert chosen("--like", sheet, "--seed", 5) == own | {"Seed": "5"}
    assert chosen("--like", sheet, "--n", 2) == own | {"Batch size": "2"}
    assert chosen("--like", sheet, "--seeds", "3-4") == own | {"Seed": None, "Seeds": "3-4", "Batch size": None}
    assert chosen("--like", single, "--steps", 2) == own | {"Steps": "2", "Batch pos": "2"}
    assert chosen("--like", single, "--seed", 5) == own | {"Seed": "5", "Batch size": "1"}
    assert chosen("--like", single, "--n", 2) == own | {"Batch size": "2"}
    assert settings("--like", sheet)["Eta"] == "0.5"
    done("sample", "run", "--seeds", "1-3", *OUTPUTS[:2], *SETTINGS, *QUICK)
    assert chosen("--like", sheet, "--seed", 5) == own | {"Seed": "5", "Batch size": "64"}


def test_an_image_of_another_program(done, trained):
    """Its sampler is ours of the same algorithm; another sampler leaves out what belongs to the image's."""
    text = "\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 1.0, Seed: 7, Model hash: 1f, Clip skip: 2"
    save_image(Image.new("RGB", (4, 4)), "a.png", text)
    done("sample", "run", "--like", "a.png", "--n", 2, *QUICK)
    settings = read_parameters(Path("sheet.png")).settings
    assert {"Sampler": "dpmpp_2m", "Karras": "True", "Steps": "3", "Seed": "7"}.items() <= settings.items()
    done("sample", "run", "--like", "a.png", "--n", 2, "--sampler", "ddim", *QUICK)
    settings = read_parameters(Path("sheet.png")).settings
    assert settings["Sampler"] == "ddim" and "Karras" not in settings


def test_no_path_is_taken_from_an_image(run, done, text_model):
    text = "a cat\nNegative prompt: \nSteps: 2, LoRA: mine:0.5, Classifier: /etc, Out: x.png, npz: y.npz, Size: 32x32"
    save_image(Image.new("RGB", (4, 4)), "a.png", text)
    code, _, err = run("sample", "run", "--like", "a.png", *QUICK)
    assert code == 0 and Path("sheet.png").exists() and not Path("x.png").exists()
    assert err == (
        "minidiff: a.png: was sampled with mine:0.5; no file is opened for it, give --lora too\n"
        "minidiff: a.png: was sampled with /etc; no file is opened for it, give --classifier too\n"
    )


@pytest.mark.parametrize(
    "setting, match",
    [
        ("Steps: 0", "steps must be"), ("Steps: nan", "a.png: .*'--steps'"),
        ("Sampler: DPM2 a", "a.png: .*'DPM2 a'"),
        ("Sampler: DPM++ 2M, Schedule type: Exponential", "a.png: .*'--sampler': 'DPM\\+\\+ 2M Exponential'"),
        ("Sampler: Euler a Karras", "karras is for .*, not for euler_ancestral"),
        ("Sampler: " + "e" * 60_000, "a.png: .*'--sampler'"),
        ("CFG scale: nan", "guidance|--guidance"), ("Seed: -1", "a.png: .*'--seed'"),
        ("Seed: 1e999", "a.png: .*'--seed'"),
        ("Seeds: 3-1", "--seeds '3-1'"), ('Seeds: "0-99999999"', "more than 100000 seeds"),
        ("Batch size: 99999999999", "a.png: .*'--n'"), ("Batch size: 0", "a.png: .*'--n'"), ("Eta: inf", "eta"),
        ("Batch size: 4, Batch pos: 4", "a.png: Batch pos: 4 is no position among 4"), ("Karras: maybe", "'--karras'"),
        ("Batch pos: -1", "a.png: Batch pos: -1 is no position"), ("Noise: dice", "a.png: .*'--noise'"),
        ("Spacing: odd", "a.png: .*'--spacing'"), ("EMA: x", "a.png: .*'--ema'"), ("Churn: nan", "churn"),
        ("Autoguide: 99, CFG scale: 3", "99"), ("Class: cat", "was not trained by class"),
        ("Seeds: 0-3, Batch pos: 9", "Batch pos: 9"), ("Guidance interval: x, CFG scale: 3", "guidance-interval x"),
    ],
)  # fmt: skip
def test_values_are_checked_as_those_of_options(refused, trained, setting, match):
    save_image(Image.new("RGB", (4, 4)), "a.png", f"\nSteps: 3, {setting}")
    refused("sample", "run", "--like", "a.png", *QUICK, match=rf"^(?=.*{match}).{{,800}}$")


@pytest.mark.parametrize("size", ["99999996x32", "34x32", "0x0", "x", "-8x8", "9" * 30 + "x8", "nan x 8"])
def test_sizes_are_checked(refused, text_model, size):
    save_image(Image.new("RGB", (4, 4)), "a.png", f"a cat\nSteps: 3, Size: {size}")
    refused("sample", "run", "--like", "a.png", *QUICK, match="pixels: give multiples|is no width x height")


def test_files_that_hold_no_parameters(refused, trained):
    Image.new("RGB", (4, 4)).save("plain.png")
    Path("text.png").write_text("Steps: 3")
    info = PngInfo()
    info.add(b"tEXt", b"parameters\0" + bytes(range(256)) * 50)
    Image.new("RGB", (4, 4)).save("binary.png", pnginfo=info)
    for name, match in (("plain.png", "has no parameters"), ("text.png", "cannot be read"), ("run", "no such file"),
                        ("binary.png", "hold control characters"), ("missing.png", "no such file")):  # fmt: skip
        refused("sample", "run", "--like", name, *QUICK, match=f"^minidiff: {name}: .*{match}")
    save_image(Image.new("RGB", (4, 4)), "a.png", "\nSteps: 3")
    refused("sample", "run", "--like", "a.png", "--out", "a.png", *QUICK, match="a.png: it is the input a.png")


def test_images_of_another_model(refused, done, trained, tmp_path):
    """A prompt needs a model that takes one; otherwise the settings serve any model."""
    save_image(Image.new("RGB", (4, 4)), "a.png", "a cat\nNegative prompt: \nSteps: 3")
    refused("sample", "run", "--like", "a.png", *QUICK, match="run: ")
    pipeline("net")
    done("sample", "run", "--n", 2, *OUTPUTS, *SETTINGS, *QUICK)
    done("sample", "net", "--like", "sheet.png", "--out", "other.png", *QUICK)
    assert read_parameters(Path("other.png")).settings["Model"] == "net"
