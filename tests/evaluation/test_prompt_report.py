"""minidiff evaluate of a text-conditional run: prompts of both splits, beside real images."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import go_on, refused
from small_text import bars, new_text_run

from minidiff.cli import evaluate as command
from minidiff.data import open_dataset
from minidiff.data.dataset import subset
from minidiff.data.imaging import save_image, to_uint8
from minidiff.evaluation import feature_classifier, prompt_agreement, report
from minidiff.formats.embedding_files import save_embedding
from minidiff.formats.lora_files import pipeline_layers, save_lora
from minidiff.models.lora import Update
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A run on captioned bars, the bars as a folder of two classes, and a feature classifier of ten steps."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"MIN_STEPS": 10, "MAX_STEPS": 10, "BATCH_SIZE": 8, "MIN_SAMPLES": 20}.items():
        monkeypatch.setattr(feature_classifier, name, value)
    monkeypatch.setattr(feature_classifier, "user_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(report, "MIN_IMAGES", 4)
    monkeypatch.setattr(prompt_agreement, "PROMPT_BATCH_SIZE", 3)
    dataset = bars(50)
    lines = ["file_name,text"]
    for i, (image, caption) in enumerate(zip(dataset.take(np.arange(50)), dataset.captions, strict=True)):
        name = f"{caption.split()[-1]}/{i:02d}.png"
        (tmp_path / "bars" / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(Image.fromarray(image), tmp_path / "bars" / name)
        lines.append(f'{name},"{caption}"')
    (tmp_path / "bars" / "captions.csv").write_text("\n".join(lines))
    go_on(new_text_run(tmp_path / "run"), 2, dataset=dataset)


def test_both_splits_and_real_images(run, tmp_path):
    code, out, err = run(
        "evaluate", "run", "--against", "bars", "--n", 16, "--steps", 2, "--guidance", 2, "--out", "new",
        "--backend", "numpy", "--threads", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "16 training captions, 5 test captions of bars, ddim in 2 steps, guidance 2, seed 0\n" in out
    report = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert report["reference"] == {"of": "bars", "n": 45} and report["samples"]["n"]["test captions"] == 5
    assert list(report["figures"]) == ["training captions", "test captions", "real test pictures"]
    for name, figures in report["figures"].items():  # no caption has a skin tone
        assert set(figures) == ({"name"} if name == "real test pictures" else {"name", "frechet"})
        assert f"{100 * figures['name']:.1f} %" in out
        assert "frechet" not in figures or f"{figures['frechet']:.2f}" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "figures.json", "training_captions.png", "test_captions.png",
    }  # fmt: skip


def test_a_lora_and_a_word(run, tmp_path):
    """They change the samples, and stand beside the weights in figures.json."""
    opened, rng = open_pipeline("run", "numpy"), np.random.default_rng(0)
    name, layer = next((n, layer) for n, layer in pipeline_layers(opened).items() if n.endswith("attn2.to_v"))
    (O, I), sheets = layer.weight.shape, {}
    A, B = rng.standard_normal((2, I)), rng.standard_normal((O, 2))
    save_lora(tmp_path / "lora.safetensors", {name: Update(A.astype(np.float32), B.astype(np.float32), 2.0)})
    save_embedding(tmp_path / "word.safetensors", "bar", 5 * rng.standard_normal((1, 8)).astype(np.float32))
    for out, options in {
        "a": (),
        "b": ("--lora", "lora.safetensors:3"),
        "c": ("--embedding", "word.safetensors"),
    }.items():
        code, _, err = run(
            "evaluate", "run", "--against", "bars", "--n", 16, "--steps", 2, "--guidance", 9, "--out", out, *options,
            "--backend", "numpy", "--threads", 1,
        )  # fmt: skip
        assert (code, err) == (0, "")
        weights = json.loads((tmp_path / out / "figures.json").read_text())["samples"]["weights"]
        assert weights == " + ".join(["moving average", *options[1:]])
        sheets[out] = (tmp_path / out / "test_captions.png").read_bytes()
    assert len(set(sheets.values())) == 3


def test_few_samples_train_no_classifier_for_prompts(run, monkeypatch):
    """With --n; the default, all test captions, trains one."""
    evaluation = ("evaluate", "run", "--against", "bars", "--steps", 2, "--backend", "numpy", "--threads", 1)
    monkeypatch.setattr(feature_classifier, "MIN_SAMPLES", 22)
    code, out, err = run(*evaluation, "--n", 16)
    assert code == 2 and "--n 16: 21 samples are too few to train a classifier for; give more, or no --n" in err
    assert "Training" not in out
    assert run(*evaluation)[0] == 0
    assert run(*evaluation, "--n", 16)[0] == 0  # now one is cached


def test_a_flat_folder_with_the_classifier_of_other_data(run, tmp_path):
    """Images in one folder are of one class; their captions are retrieved by features of another dataset."""
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


def test_training_images_agree_with_their_captions(tmp_path):
    """Samples that equal the training images are right, and each side has its own figures."""
    train = bars(40)
    trained = feature_classifier.train_classifier(train, train, "numpy", lambda: None)
    images = train.take(np.arange(40))
    right = prompt_agreement.PromptSamples(train.captions, images)
    wrong = prompt_agreement.PromptSamples(
        train.captions, np.roll(images, 1, axis=0)
    )  # another colour, another orientation
    assert prompt_agreement.figures({"a": wrong, "b": right}, train, trained) == {
        "a": {"name": 0.0},
        "b": {"name": 1.0},
    }


class PixelFeatures:
    """A feature classifier whose features are pixels."""

    def classify(self, images):
        return feature_classifier.Classified(
            images, images.reshape(len(images), -1)[:, ::41].astype(float), np.zeros(len(images))
        )


def test_tones_are_measured_if_prompts_name_them():
    people = open_dataset("emoji", split="test")
    whole = open_dataset("emoji")
    students = [i for i, caption in enumerate(whole.captions) if caption.startswith("man student,")]
    train = subset(whole, np.array(students))  # in five tones

    some = subset(people, np.arange(20))
    fractions = prompt_agreement.figures(
        {"real": prompt_agreement.PromptSamples(some.captions, some.take(np.arange(20)))}, train, PixelFeatures()
    )
    assert fractions["real"]["tone"] >= 0.9 and set(fractions["real"]) == {"name", "tone", "both"}


def test_the_distance_is_to_the_real_images_of_the_same_captions():
    """0 if they are the same; of negatives, whose features have the same covariance, the squared shift of the mean."""
    train = bars(40)
    images = train.take(np.arange(40))
    sides = {
        "same": prompt_agreement.PromptSamples(train.captions, images[::-1], images),
        "negatives": prompt_agreement.PromptSamples(train.captions, 255 - images, images),
    }
    found = prompt_agreement.figures(sides, train, PixelFeatures())
    f, g = (PixelFeatures().classify(a).features for a in (255 - images, images))
    shift = np.sum(((f.mean(0) - g.mean(0)) / np.maximum(g.std(0), 1e-6)) ** 2)
    assert shift > 1
    assert found["same"]["frechet"] == pytest.approx(0, abs=1e-5)
    assert found["negatives"]["frechet"] == pytest.approx(shift, rel=1e-5)


def test_batches_share_one_random_generator(tmp_path):
    pipeline, ticks = open_pipeline(tmp_path / "run", "numpy", sampler="ddim"), []
    prompts = ["red bar, lying", "blue bar, standing", "green bar, lying", "red bar, standing"]
    generated = prompt_agreement.sample_prompts(pipeline, prompts, 2.0, 3, 5, lambda: ticks.append(1))
    assert generated.shape == (4, 8, 8, 3)
    assert len(ticks) == prompt_agreement.num_sampling_steps(prompts, 3) == 6
    rng = np.random.default_rng(5)
    for part, start in ((prompts[:3], 0), (prompts[3:], 3)):
        again = text_to_image(pipeline, part, "", 2.0, 3, rng)
        np.testing.assert_array_equal(generated[start : start + len(part)], to_uint8(again))


def test_what_is_refused(tmp_path):
    def evaluate_prompts(against, raw=False):
        command.evaluate(tmp_path / "run", against, n=16, steps=2, raw=raw, backend="numpy", threads=1, seed=0)

    refused(
        evaluate_prompts,
        "bars",
        True,
        match="run: is text-conditional, evaluated by the averaged weights only; leave --raw out",
    )
    (tmp_path / "bars" / "captions.csv").unlink()
    refused(evaluate_prompts, "bars", match="bars: its images have no captions, which .*run is conditioned on")
    refused(evaluate_prompts, "cats_dogs", match="cats_dogs: its images are 32x32, not of size 8")
