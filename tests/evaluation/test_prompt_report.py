"""minidiff evaluate of a run that draws texts: prompts of both splits, beside real pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import go_on, refused
from small_text import bars, new_text_run

from minidiff.data import open_dataset
from minidiff.data.dataset import subset
from minidiff.data.imaging import save_image
from minidiff.diffusion.sampler import Sampler
from minidiff.evaluation import feature_classifier, prompt_agreement, report
from minidiff.formats.stable_diffusion import load_pipeline
from minidiff.sampling.text_to_image import text_to_image


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A run on captioned bars, the bars as a folder of two classes, and a judge that learns quickly."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"FEWEST": 10, "MOST": 10, "BATCH": 8, "WORTH": 20}.items():
        monkeypatch.setattr(feature_classifier, name, value)
    monkeypatch.setattr(feature_classifier, "user_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(report, "MIN_IMAGES", 4)
    monkeypatch.setattr(prompt_agreement, "BATCH", 3)
    dataset = bars(50)
    lines = ["file_name,text"]
    for i, (image, caption) in enumerate(zip(dataset.take(np.arange(50)), dataset.captions, strict=True)):
        name = f"{caption.split()[-1]}/{i:02d}.png"
        (tmp_path / "bars" / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(Image.fromarray(image), tmp_path / "bars" / name)
        lines.append(f'{name},"{caption}"')
    (tmp_path / "bars" / "captions.csv").write_text("\n".join(lines))
    go_on(new_text_run(tmp_path / "run"), 2, dataset=dataset)


def test_two_sides_and_real_pictures(run, tmp_path):
    code, out, err = run(
        "evaluate", "run", "--against", "bars", "--n", 16, "--steps", 2, "--guidance", 2, "--out", "new",
        "--backend", "numpy", "--threads", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "16 training captions, 5 test captions of bars, ddim in 2 steps, guidance 2, seed 0\n" in out
    report = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert report["reference"] == {"of": "bars", "n": 45} and report["samples"]["n"]["test captions"] == 5
    assert list(report["figures"]) == ["training captions", "test captions", "real test pictures"]
    for shares in report["figures"].values():  # nobody has a skin tone
        assert set(shares) == {"name"} and f"{100 * shares['name']:.1f} %" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "figures.json", "training_captions.png", "test_captions.png",
    }  # fmt: skip


def test_few_samples_are_not_worth_a_classifier(run, monkeypatch):
    """Asked for by --n; all test captions, without --n, are."""
    evaluation = ("evaluate", "run", "--against", "bars", "--steps", 2, "--backend", "numpy", "--threads", 1)
    monkeypatch.setattr(feature_classifier, "WORTH", 22)
    code, out, err = run(*evaluation, "--n", 16)
    assert code == 2 and "--n 16: 21 samples are too few to train a classifier for; give more, or no --n" in err
    assert "Training" not in out
    assert run(*evaluation)[0] == 0
    assert run(*evaluation, "--n", 16)[0] == 0  # now one is kept


def test_a_flat_folder_with_the_classifier_of_other_data(run, tmp_path):
    """Images in one folder are of one class; what their captions say is found by another set's features."""
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "bars").rglob("*.png"):
        shutil.copy(path, tmp_path / "flat")
    lines = (tmp_path / "bars" / "captions.csv").read_text().splitlines()
    (tmp_path / "flat" / "captions.csv").write_text("\n".join([lines[0], *(line.split("/")[1] for line in lines[1:])]))
    evaluation = ("evaluate", "run", "--against", "flat", "--n", 16, "--steps", 2, "--backend", "numpy", "--threads", 1)
    code, _, err = run(*evaluation)
    assert code == 2 and "flat: has a single class, and a classifier needs two; give --classifier" in err
    code, out, err = run(*evaluation, "--classifier", "bars", "--out", "new")
    assert (code, err) == (0, "") and "16 training captions, 5 test captions of flat" in out
    report = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert report["classifier"]["of"] == "bars" and report["reference"]["of"] == "flat"
    assert all(0 <= side["name"] <= 1 for side in report["figures"].values())


def test_real_pictures_are_taken_for_what_they_are(tmp_path):
    """Drawings that are the training pictures themselves: all right, and in the order of their side."""
    train = bars(40)
    learned = feature_classifier.train_classifier(train, train, "numpy", lambda: None)
    images = train.take(np.arange(40))
    right = prompt_agreement.PromptSamples(train.captions, images)
    wrong = prompt_agreement.PromptSamples(train.captions, np.roll(images, 1, axis=0))  # another colour, the other way
    assert prompt_agreement.figures({"a": wrong, "b": right}, train, learned) == {
        "a": {"name": 0.0},
        "b": {"name": 1.0},
    }


def test_tones_are_looked_for_where_prompts_name_them():
    people = open_dataset("emoji", split="test")
    whole = open_dataset("emoji")
    students = [i for i, caption in enumerate(whole.captions) if caption.startswith("man student,")]
    train = subset(whole, np.array(students))  # in five tones

    class Eyes:
        def classify(self, images):
            return feature_classifier.Classified(
                images, images.reshape(len(images), -1)[:, ::41].astype(float), np.zeros(len(images))
            )

    some = subset(people, np.arange(20))
    shares = prompt_agreement.figures(
        {"real": prompt_agreement.PromptSamples(some.captions, some.take(np.arange(20)))}, train, Eyes()
    )
    assert shares["real"]["tone"] >= 0.9 and set(shares["real"]) == {"name", "tone", "both"}


def test_batches_are_drawn_as_one_after_the_other_from_the_seed(tmp_path):
    parts, way, ticks = load_pipeline(tmp_path / "run", "numpy"), Sampler("ddim"), []
    asked = ["red bar, lying", "blue bar, standing", "green bar, lying", "red bar, standing"]
    drawn = prompt_agreement.sample_prompts(parts, asked, 2.0, 3, way, 5, lambda: ticks.append(1))
    assert drawn.prompts == asked and drawn.images.shape == (4, 8, 8, 3)
    assert len(ticks) == prompt_agreement.num_evaluations(asked, 3) == 6
    rng = np.random.default_rng(5)
    for part, start in ((asked[:3], 0), (asked[3:], 3)):
        again = text_to_image(parts, part, "", 2.0, 3, rng, sampler=way)
        np.testing.assert_array_equal(drawn.images[start : start + len(part)], prompt_agreement.to_uint8(again))


def test_what_does_not_go(tmp_path):
    def texts(against, raw=False):
        report.evaluate(tmp_path / "run", against, n=16, steps=2, raw=raw, backend="numpy", threads=1, seed=0)

    refused(texts, "bars", True, match="run: draws texts by the moving average of its weights; leave --raw out")
    (tmp_path / "bars" / "captions.csv").unlink()
    refused(texts, "bars", match="bars: its pictures have no captions, and .*run draws what captions say")
    refused(texts, "cats_dogs", match="cats_dogs: its images are 32x32, not of size 8")
