"""Parameters of single images: each names no more than its repetition needs."""

from pathlib import Path

import pytest

from minidiff.diffusion.sampler import Sampler
from minidiff.formats.png_parameters import parse
from minidiff.sampling import inputs
from minidiff.sampling.parameters import files_of, of_each, options_of, parameters

OWN = ("Seed", "Seeds", "Class", "Batch size", "Batch pos")


def own(options, n, prompts=(), classes=None):
    whole = parameters({"steps": 9, "sampler": "ddim", **options}, Path("runs/a"), (4, 6), list(prompts), "")
    assert whole.settings["Size"] == "6x4" and whole.settings["Model"] == "a"
    each = of_each(whole, n, classes)
    assert all(image.settings["Steps"] == "9" for image in each)
    return each, [{key: image.settings[key] for key in OWN if key in image.settings} for image in each]


def test_images_of_one_seed(monkeypatch):
    """Those that are sampled before, and the rest of the image's batch."""
    monkeypatch.setattr(inputs, "BATCH_SIZE", 2)
    _, settings = own({"seed": 3, "n": 5}, 5, classes=["a", "a", "b", "b", "c"])
    assert [(s["Batch size"], s["Batch pos"]) for s in settings] == [
        ("2", "0"), ("2", "1"), ("4", "2"), ("4", "3"), ("5", "4"),
    ]  # fmt: skip
    assert [s["Class"] for s in settings] == ["a", "a", "b", "b", "c"]
    assert own({"seed": 3, "n": 1}, 1)[1] == [{"Seed": "3", "Batch size": "1"}]


def test_images_of_seeds(monkeypatch):
    """Those of the image's batch."""
    monkeypatch.setattr(inputs, "BATCH_SIZE", 2)
    _, settings = own({"seeds": "7,3-5,9"}, 5)
    assert settings[2] == {"Seed": "4", "Seeds": "4-5", "Batch pos": "0"}
    assert settings[1] == {"Seed": "3", "Seeds": "7,3", "Batch pos": "1"}
    assert settings[4] == {"Seed": "9", "Batch size": "1"}


def test_images_of_prompts():
    """They are sampled one by one: with seeds each alone."""
    each, settings = own({"seed": 3, "n": 2}, 4, ["a", "b"])
    assert [image.prompts for image in each] == [("a",), ("a",), ("b",), ("b",)]
    assert settings[0] == {"Seed": "3"} and settings[3] == {"Seed": "3", "Batch size": "4", "Batch pos": "3"}
    each, settings = own({"seeds": "5,1"}, 4, ["a", "b"])
    assert settings == [{"Seed": "5"}, {"Seed": "1"}] * 2 and each[2].prompts == ("b",)


def test_options_and_back():
    given = {"guidance": 7.5, "eta": 0.1 + 0.2, "karras": True, "guidance_interval": "100,600", "step": 500}
    whole = parameters(
        given | {"raw": False, "lora": ["x/mine:0.5", "b"], "classifier": Path("/c/d")}, Path("r"), (4, 4), [], ""
    )
    options, position = options_of(whole)
    assert position is None
    assert options == {
        "guidance": "7.5", "eta": repr(0.1 + 0.2), "karras": "True", "guidance_interval": "100,600", "step": "500",
    }  # fmt: skip
    assert files_of(whole) == {"lora": "mine:0.5, b", "classifier": "d"}


def test_seeds_as_text():
    for seeds, text in (([3], "3"), ([0, 1, 2], "0-2"), ([7, 3, 4, 9], "7,3-4,9"), ([2, 1], "2,1")):
        assert inputs.seeds_text(seeds) == text and inputs.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("Euler", "euler"), ("Euler a", "euler_ancestral"), ("Heun", "heun"), ("DDIM", "ddim"), ("PLMS", "pndm"),
        ("UniPC", "unipc"), ("DPM++ 2M", "dpmpp_2m"), ("DPM++ 2M SDE", "dpmpp_2m_sde"), ("DPM++ SDE", "dpmpp_sde"),
    ],
)  # fmt: skip
def test_samplers_of_other_programs(theirs, ours):
    """With the noise levels in the name, or beside it."""

    def read(settings):
        options, _ = options_of(parse(f"a\nNegative prompt: b\nSteps: 20, {settings}, CFG scale: 7"))
        return options["sampler"], options.get("karras")

    assert Sampler(ours).name == ours
    for plain in ("", ", Schedule type: Automatic", ", Schedule type: Uniform"):
        assert read(f"Sampler: {theirs}{plain}") == (ours, None)
    assert read(f"Sampler: {theirs} Karras") == read(f"Sampler: {theirs}, Schedule type: Karras") == (ours, "True")


@pytest.mark.parametrize("name", ["DPM2 a", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "LCM", "euler a", "DPM fast", "ddim"])
def test_samplers_that_stay_as_they_are(name):
    assert options_of(parse(f"Steps: 3, Sampler: {name}"))[0]["sampler"] == name
    options, _ = options_of(parse(f"Steps: 3, Sampler: {name}, Schedule type: Exponential"))
    assert options["sampler"] == f"{name} Exponential"
    assert "sampler" not in options_of(parse("Steps: 3"))[0]
