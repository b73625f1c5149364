"""minidiff tune, sample --lora and export --kohya on a small pipeline."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_commands import QUICK, bytes_of, noises, pipeline, stop_after
from small_text import new_text_run

from minidiff.cli import training_bar
from minidiff.training import prior
from minidiff.training.kinds import frozen_pipeline_run

SAMPLE = ("--steps", 2, "--guidance", 2, *QUICK)


@pytest.fixture(autouse=True)
def quick_sheets(monkeypatch):
    monkeypatch.setattr(frozen_pipeline_run, "SHEET_PROMPTS", 1)


@pytest.fixture
def tuned(done, tmp_path):
    """A pipeline in base, images in data, a LoRA in lora; tuned(*options) trains it."""
    new_text_run(tmp_path / "base")
    data = tmp_path / "data"
    data.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 16), colour).save(data / f"{i}.png")
    (data / "captions.csv").write_text("file_name,text\n0.png,red zib\n1.png,zib\n2.png,a zib\n")

    def tuned(*options):
        return done("tune", "base", "data", "--out", "lora", "--steps", 3, "--rank", 2, "--lr", 0.05, *options, *QUICK)

    return tuned


def images(run, *options):
    code, _, err = run("sample", "base", "--prompt", "zib", "--npz", "all.npz", *options, *SAMPLE)
    assert (code, err) == (0, "")
    with np.load("all.npz") as file:
        return file["arr_0"].astype(int)


def test_from_images_to_an_image(run, done, tuned):
    out = tuned()
    assert "minidiff sample base --lora lora --prompt 'red zib'" in out.replace(os.getcwd() + "/", "")
    assert bytes_of("lora/metrics.csv").count(b"\n") == 4 and os.path.exists("lora/samples/step-000003.png")
    without, with_lora = images(run), images(run, "--lora", "lora")
    assert (without != with_lora).any()
    np.testing.assert_array_equal(images(run, "--lora", "lora:0"), without)
    np.testing.assert_array_equal(images(run, "--lora", "lora:0.5", "--lora", "lora:0.5"), with_lora)
    file = "lora/pytorch_lora_weights.safetensors"
    np.testing.assert_array_equal(images(run, "--lora", f"{file}:1"), with_lora)
    done("export", "lora", "web", "--kohya")
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in load_file(f"web/{os.path.basename(file)}"))
    np.testing.assert_array_equal(images(run, "--lora", "web"), with_lora)
    assert {a.dtype for a in load_file(file).values()} == {np.dtype(np.float16)}


def test_a_path_with_a_colon(run, tuned):
    tuned()
    os.rename("lora", "of:2")
    assert (images(run, "--lora", "of:2") != images(run)).any()
    np.testing.assert_array_equal(images(run, "--lora", "of:2:0"), images(run))


def test_ctrl_c_saves_and_resume_goes_on(run, tuned, done, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(training_bar, "stoppable", stop_after(2))
        tuned_arguments = ("--out", "lora", "--steps", 4, "--rank", 2, *QUICK)
        code, out, _ = run("tune", "base", "data", *tuned_arguments)
    assert code == 130 and "Saved at step 2. To resume: minidiff train --out lora --resume" in out
    assert "Done: step 4" in done("tune", "--out", "lora", "--resume")


WORD = ("--method", "textual-inversion", "--word", "<zib>", "--initial-word", "red")


@pytest.fixture
def word_tuned(done, tuned, tmp_path):
    """The same images, with <zib> in the captions; word_tuned(*options) trains the word."""
    captions = tmp_path / "data" / "captions.csv"
    captions.write_text(captions.read_text().replace("zib", "<zib>"))

    def word_tuned(*options):
        return done("tune", "base", "data", "--out", "word", "--steps", 3, "--lr", 0.5, *WORD, *options, *QUICK)

    return word_tuned


def test_a_new_word(run, done, tuned, word_tuned):
    """From images to an image; the folder of the model knows nothing of it."""
    out = word_tuned()
    assert "minidiff sample base --embedding word --prompt 'red <zib>'" in out.replace(os.getcwd() + "/", "")
    assert bytes_of("word/metrics.csv").count(b"\n") == 4 and os.path.exists("word/samples/step-000003.png")
    options = ("--prompt", "<zib>")
    without, known = images(run, *options), images(run, *options, "--embedding", "word")
    assert (without[1] != known[1]).any() and (without[0] == known[0]).all()
    file = Path("word/learned_embeds.safetensors")
    assert list(load_file(file)) == ["<zib>"]
    save_file({"emb_params": load_file(file)["<zib>"]}, "<zab>.safetensors")
    options = ("--prompt", "<zab>", "--embedding", "<zab>.safetensors", "--embedding", file)
    np.testing.assert_array_equal(images(run, *options)[1], images(run, "--prompt", "<zib>", *options[2:])[1])
    tuned()  # a LoRA goes with it
    assert (images(run, *options, "--lora", "lora")[1] != images(run, *options)[1]).any()
    done("export", "word", "exported", "--half")
    assert os.path.exists("exported/learned_embeds.safetensors")


def test_a_new_word_resumed(run, word_tuned, done, refused, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(training_bar, "stoppable", stop_after(2))
        code, out, _ = run("tune", "base", "data", "--out", "word", "--steps", 4, *WORD, *QUICK)
    assert code == 130 and "Saved at step 2. To resume: minidiff train --out word --resume" in out
    refused("tune", "--out", "word", "--resume", "--word", "<zab>", match="was started with --word <zib>, not <zab>")
    refused("tune", "--out", "word", "--resume", "--method", "lora", match="a run of textual inversion, not of a LoRA")
    assert "Done: step 4" in done("tune", "--out", "word", "--resume", *WORD[:4])


def test_what_is_wrong_with_a_new_word(refused, word_tuned):
    """One line, and nothing is written."""
    new = ("tune", "base", "data", "--out", "new", *QUICK)
    refused(*new, *WORD[:4], match="needs --initial-word: give one, such as --initial-word robot")
    refused(*new, *WORD[:2], *WORD[4:], match="needs --word: give one, such as --word '<robot>'")
    refused(*new, *WORD, "--rank", 3, match="--rank is for --method lora: leave it out, or give that")
    refused(*new, *WORD[2:], match="--word is for --method textual-inversion")
    refused(*new, *WORD, "--prior-prompt", "a", match="leave the options of a prior out")
    refused(*new, *WORD[:3], "red", *WORD[4:], match="--word: 'red' is in the model's vocabulary")
    refused(*new, *WORD[:3], "<zab>", *WORD[4:], match="the caption 'red <zib>' is without <zab>")
    refused(*new, *WORD[:5], "", match="--initial-word '': has 0 tokens")
    assert not os.path.exists("new/training")
    word_tuned()
    refused("sample", "word", "--prompt", "a", match="word: is the run of a textual inversion, which samples with its")
    refused("tune", "word", "data", "--out", "new", match="word: is the run of a textual inversion")


def test_what_is_wrong_with_an_embedding(refused, tuned, word_tuned, tmp_path):
    """One line, and no image."""
    tuned()
    word_tuned()
    refused("sample", "base", "--embedding", "word", match="--embedding needs a prompt")
    pipeline(tmp_path / "unet")
    refused("sample", "unet", "--prompt", "a", "--embedding", "word", match="unet: holds a U-Net that takes no prompt")
    sample = ("sample", "base", "--out", "new.png", *SAMPLE, "--prompt", "<zib>", "--embedding")
    refused(*sample, "word", "--embedding", "word", match="<zib> is the word of another file too")
    refused(*sample, "lora", match="lora/learned_embeds.safetensors: no such file")
    file = Path("word/learned_embeds.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(*sample, file, match="damaged or not safetensors")
    save_file({"<zib>": np.zeros((1, 768), np.float32)}, file)
    refused(*sample, file, match=r"vectors \(1, 768\) are not of 8 values, as those of base; it is for another model")
    assert not os.path.exists("new.png")


def test_dreambooth(run, done, tuned, monkeypatch):
    """The result is a model of its own, which samples, is tuned again, and resumes."""
    monkeypatch.setattr(prior, "SAMPLES", 3)
    monkeypatch.setattr(prior, "STEPS", 2)
    tuned()
    booth = ("tune", "base", "data", "--method", "dreambooth", "--out", "booth", "--lr", 0.01, *QUICK)
    out = done(*booth, "--steps", 3, "--prior-prompt", "red bar")
    assert "minidiff sample booth --prompt 'red zib'" in out and len(os.listdir("booth/prior")) == 4
    assert "Done: step 4" in done("tune", "--out", "booth", "--resume", "--steps", 4)
    code, _, err = run("sample", "booth", "--prompt", "zib", "--npz", "all.npz", *SAMPLE)
    assert (code, err) == (0, "")
    done("tune", "booth", "data", "--out", "again", "--steps", 2, *QUICK)


def test_a_prior(run, tuned, done, refused, monkeypatch):
    """Of a folder, of prompts and of a file of them; a run goes on with its own."""
    monkeypatch.setattr(prior, "SAMPLES", 3)
    monkeypatch.setattr(prior, "STEPS", 2)
    tuned()
    losses = {bytes_of("lora/metrics.csv")}
    Path("prompts.txt").write_text("green bar\n\nred bar\n")
    given = (("data",), ("prompts.txt", "--prior-prompt", "blue bar"), ("data", "--prior-weight", 3))
    for i, options in enumerate(given):
        tuned("--prior", *options, "--out", f"{i}")
        assert len(os.listdir(f"{i}/prior")) == 4
        losses.add(bytes_of(f"{i}/metrics.csv"))
    assert len(losses) == 4
    captions = {line.partition(",")[2] for line in bytes_of("1/prior/captions.csv").decode().splitlines()[1:]}
    assert captions == {"blue bar", "green bar", "red bar"}
    refused("tune", "--out", "2", "--resume", "--prior", "data", match="leave --prior and --prior-prompt out")
    refused("tune", "--out", "2", "--resume", "--prior-weight", 2, match="with --prior-weight 3.0, not 2.0")
    assert "Done: step 4" in done("tune", "--out", "2", "--resume", "--steps", 4)
    new = ("tune", "base", "data", "--out", "new", *QUICK)
    refused(*new, "--prior", "data", "--prior-weight", 0, match="--prior-weight 0 disables prior preservation")
    refused(*new, "--prior", "data", "--prior-prompt", "a", match="--prior data has captions of its own")
    refused(*new, "--prior", "none", match="none: no such folder")


def test_without_images_of_a_prior(tuned):
    """The model's own predictions take their place, unless the weight is 0."""
    losses = set()
    for name, options in (("default", ()), ("none", ("--prior-weight", 0)), ("two", ("--prior-weight", 2))):
        tuned(*options, "--out", name)
        assert not os.path.exists(f"{name}/prior")
        losses.add(bytes_of(f"{name}/metrics.csv"))
    assert len(losses) == 3


def test_what_is_wrong_with_the_call(refused, tuned, tmp_path):
    tuned()
    noises(tmp_path / "bare")
    refused("tune", "--out", "new", match="RUN is missing")
    refused("tune", "base", "--out", "new", match="DATA is missing")
    refused("tune", "base", "--out", "lora", "--resume", match="--resume continues with the RUN and DATA of lora")
    refused("tune", "--out", "lora", "--resume", "--rank", 3, match="was started with --rank 2, not 3")
    refused("tune", "base", "data", "--out", "lora", match="lora: holds a run already")
    refused(
        "tune", "base", "bare", "--out", "new", *QUICK, match="bare: its images have no captions; add a captions.csv"
    )
    refused("tune", "base", "cats_dogs", "--out", "new", *QUICK, match="cats_dogs: its images have no captions")
    refused("tune", "lora", "data", "--out", "new", match="lora: is the run of a LoRA, which samples with its model")
    refused("sample", "lora", "--prompt", "a", match="lora: is the run of a LoRA, which samples with its model")
    refused("sample", "base", "--lora", "lora", match="--lora needs a prompt")
    refused("export", "base", "new", "--kohya", match="base: is no run of minidiff tune")
    for weight in ("nan", "inf"):
        refused("sample", "base", "--prompt", "a", "--lora", f"lora:{weight}", *SAMPLE, match="must be finite")
    refused("sample", "base", "--prompt", "a", "--lora", "none:0.5", *SAMPLE, match="none: no such file")
    for path in ("", ":0.5"):
        refused("sample", "base", "--prompt", "a", "--lora", path, *SAMPLE, match=f"--lora '{path}': has no path")
    refused("sample", "base", "--prompt", "a", "--embedding", "", *SAMPLE, match="'--embedding': it is empty")


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual-inversion"])
def test_images_that_are_all_the_same(method, refused, word_tuned, tmp_path):
    for i in range(3):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / f"{i}.png")
    options = WORD if method == "textual-inversion" else ("--method", method)
    refused("tune", "base", "data", "--out", "new", *options, *QUICK, match="data: its 3 images are all the same")


def test_a_lora_of_another_model(refused, tuned):
    """One line, and nothing is written."""
    tuned()
    file = "lora/pytorch_lora_weights.safetensors"
    arrays = load_file(file)
    save_file({name: np.zeros((2, 320), np.float32) if "lora_A" in name else a for name, a in arrays.items()}, file)
    refused(
        "sample", "base", "--prompt", "a", "--lora", "lora", *SAMPLE, match="do not fit the weight .* another model"
    )
    save_file({name.replace("blocks.0", "blocks.7"): a for name, a in arrays.items()}, file)
    refused(
        "sample", "base", "--prompt", "a", "--lora", "lora", *SAMPLE, match="keys are of no layer of base: .* more;"
    )
