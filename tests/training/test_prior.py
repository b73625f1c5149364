"""Prior preservation: its images, its loss, its runs."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from small_runs import contents, go_on, refused, reopen
from small_text import SCHEDULE, bars, new_text_run, tokenizer

from minidiff.data.dataset import from_arrays
from minidiff.diffusion.loss import training_loss
from minidiff.engine.optim import AdamW
from minidiff.models.tokenizer import Tokenizer, vocabulary
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training import prior, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.prior import (
    given_prior,
    image_weights,
    open_prior,
    random_texts,
    sample_prior,
    save_prior,
    with_prior,
    words_of,
)  # fmt: skip
from minidiff.training.step import train_step


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "SAMPLES", 6)
    monkeypatch.setattr(prior, "STEPS", 2)
    return with_prompts(open_pipeline(new_text_run(tmp_path / "base").folder, "numpy", kind="text"))


def test_samples_of_the_prompts_in_turn(pipeline):
    sampled = sample_prior(pipeline, ["red bar", "green bar"], seed=1, batch_size=4)
    assert sampled.captions == ("red bar", "green bar") * 3 and sampled.shape == (8, 8, 3)
    assert len(sample_prior(pipeline, [f"{i}" for i in range(7)], seed=1, batch_size=4)) == 7
    again = sample_prior(pipeline, ["red bar", "green bar"], seed=1, batch_size=4)
    other = sample_prior(pipeline, ["red bar", "green bar"], seed=2, batch_size=4)
    index = np.arange(6)
    np.testing.assert_array_equal(sampled.take(index), again.take(index))
    assert (sampled.take(index) != other.take(index)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back(tmp_path, channels):
    captions = ("a, b", 'the "red" one', "one\ntwo", "ünï", "=1+1")
    images = bars(5, channels).take(np.arange(5))
    saved = from_arrays("prior", images, np.zeros(5), ("prior",), captions=captions)
    save_prior(tmp_path, saved)
    again = open_prior(tmp_path, saved.shape)
    np.testing.assert_array_equal(again.take(np.arange(5)), images)
    assert again.captions == captions and not again.mirrors


def test_a_prior_that_does_not_fit(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    refused(given_prior, str(tmp_path), (8, 8, 3), match="the images of a prior need captions")
    (tmp_path / "captions.csv").write_text("file_name,text\n0.png,a\n")
    assert given_prior(str(tmp_path), (16, 16, 3)).shape == (16, 16, 3)
    refused(
        given_prior, str(tmp_path), (8, 16, 3), match=r"its images have the shape \(8, 8, 3\), and the model's \(8, 16"
    )
    refused(open_prior, tmp_path, (8, 8, 3), match="prior: no such folder")


def test_at_most_so_many_images(tmp_path, monkeypatch):
    save_prior(tmp_path, bars(10))
    monkeypatch.setattr(prior, "MOST", 4)
    assert given_prior(str(tmp_path / "prior"), (8, 8, 3)).captions == tuple(bars(10).captions[i] for i in (0, 3, 6, 9))


def batch(n, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 8, 8, 3)).astype(np.float32), tokenizer()(["red bar"] * n)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_loss_is_the_papers(tmp_path, accumulate):
    """Mean over the images, plus lambda times the mean over those of the prior, and so is its gradient."""
    run, weight = new_text_run(tmp_path), 0.3
    x0, ids = with_prior(lambda step: batch(4, step), lambda step: batch(4, step + 1))(7)
    assert (x0[4:] == batch(4, 8)[0]).all() and x0.shape == (8, 8, 8, 3) and ids.shape == (8, 10)
    weights = image_weights(8, weight)
    optimizer = AdamW([p for _, p in run.named_parameters()], lr=1e-9)
    rng = partial(np.random.default_rng, 3)
    stats = train_step(run.model, SCHEDULE, optimizer, x0, rng(), ids, accumulate=accumulate, image_weights=weights)
    got = optimizer.g.copy()

    draws = rng()
    t, eps = SCHEDULE.sample_t(draws, 8), draws.standard_normal(x0.shape, dtype=np.float32)
    optimizer.zero_grad()
    halves = [training_loss(run.model, SCHEDULE, x0[h], t[h], eps[h], ids[h]) for h in (slice(4), slice(4, 8))]
    halves[0].backward(np.float32(1))
    halves[1].backward(np.float32(weight))
    assert stats.loss == pytest.approx(float(halves[0].data) + weight * float(halves[1].data), rel=1e-5)
    assert np.linalg.norm(got - optimizer.g) <= 1e-5 * np.linalg.norm(optimizer.g)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, pipeline):
    """And the first half of a batch is that of a run without a prior."""

    def new_run(folder, **changes):
        config = TrainConfig("bars", steps=8, batch_size=4, warmup=3, seed=5, flip=False, backend="numpy", **changes)
        fresh = with_prompts(open_pipeline(pipeline.folder, "numpy", kind="text"))
        sampled = sample_prior(fresh, ["red bar"], 5, 4)
        return state.new_run(LoRARun, folder, config, fresh, begin=lambda run: save_prior(run.folder, sampled))

    for name, stop_at in (("whole", 0), ("run", 5)):
        go_on(new_run(tmp_path / name, prior_weight=0.5, accumulate=2), stop_at=stop_at, dataset=bars())
    go_on(reopen(tmp_path / "run"), dataset=bars())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    x0, ids = reopen(tmp_path / "run").batches(bars())(1)
    without = new_run(tmp_path / "without").batches(bars())(1)
    assert len(x0) == 8 and (x0[:4] == without[0]).all() and (ids[:4] == without[1]).all()


def test_a_run_that_lost_its_prior(tmp_path, pipeline):
    config = TrainConfig("bars", steps=8, batch_size=4, flip=False, backend="numpy", prior_weight=1.0)
    run = state.new_run(LoRARun, tmp_path / "run", config, pipeline)
    refused(run.batches, bars(), match="run/prior: no such folder")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), "1", 1e7, True])
def test_its_weight_is_checked(weight):
    refused(partial(TrainConfig, "bars", prior_weight=weight), match="prior_weight = .*: give a number above 0")


def test_random_texts():
    assert words_of(tokenizer()) == ["red"]
    rng = np.random.default_rng(0)
    texts = random_texts(["one", "two"], 1000, 0.1, rng)
    counts = np.bincount([len(text.split()) for text in texts])
    assert len(counts) == 5 and abs(counts[0] - 100) < 40 and (counts[1:] > 150).all()
    assert set(" ".join(texts).split()) == {"one", "two"}
    assert words_of(Tokenizer(vocabulary([]), [])) == [""]
