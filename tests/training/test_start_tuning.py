"""What a run that tunes a pipeline starts from: DreamBooth its weights, textual inversion its embeddings' scale."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import contents, go_on, refused, reopen, tree
from small_text import new_text_run

from minidiff.data import Dataset
from minidiff.formats.weights import to_float16
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image, with_prompts
from minidiff.training import prior, state
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.start_tuning import INVERSION_RATE, start_dreambooth, start_textual_inversion

GIVEN = dict(steps=6, batch_size=2, backend="numpy")


@pytest.fixture
def base(tmp_path):
    return new_text_run(tmp_path / "base", latent=True).folder


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (10, 8), colour).save(folder / f"{i}.png")
    (folder / "captions.csv").write_text("file_name,text\n0.png,a <zib>\n1.png,<Zib>\n2.png,red <zib>\n")
    return folder


def dreambooth(tmp_path, base, data, name="run", prior=(), **given) -> tuple[TextRun, Dataset]:
    return start_dreambooth(base, tmp_path / name, str(data), GIVEN | given, prior, 1)


def sampled(pipeline):
    return text_to_image(with_prompts(pipeline), ["red bar"], guidance=2, steps=3, rng=np.random.default_rng(0))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_dreambooth_starts_as_the_pipeline(tmp_path, base, data, half, monkeypatch):
    """At step 0 its folder samples what the pipeline does; float16 weights are widened, and trained."""
    if half:
        to_float16(base / "unet")
        monkeypatch.setattr("minidiff.formats.networks.KEPT_HALF", 0)
    run, dataset = dreambooth(tmp_path, base, data)
    np.testing.assert_array_equal(
        sampled(open_pipeline(tmp_path / "run", "numpy")), sampled(open_pipeline(base, "numpy"))
    )
    assert run.config.lr == 1e-4 and run.config.size == 8 and len(dataset) == 3
    before = run.optimizer.p.copy()
    go_on(run, dataset=dataset)
    now, was = map(run.optimizer.split, (run.optimizer.p, before))
    assert all((a != b).any() for a, b in zip(now, was, strict=True))


def test_a_stopped_dreambooth_goes_on_bit_for_bit(tmp_path, base, data, monkeypatch):
    """With its prior, sampled by the pipeline before it is trained; the pipeline's folder stays as it is."""
    monkeypatch.setattr(prior, "SAMPLES", 3)
    monkeypatch.setattr(prior, "STEPS", 2)
    before = tree(base)
    for name, stop_at in (("whole", 0), ("run", 3)):
        run, dataset = dreambooth(tmp_path, base, data, name, ["red bar"], lr=0.01)
        go_on(run, stop_at=stop_at, dataset=dataset)
    again = reopen(tmp_path / "run")
    assert isinstance(again, TextRun) and again.step == 3 and again.config.prior_weight == 1
    go_on(again, dataset=dataset)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole") and tree(base) == before
    assert (sampled(open_pipeline(tmp_path / "run", "numpy")) != sampled(open_pipeline(base, "numpy"))).any()


def test_nothing_is_written_without_a_start(tmp_path, base, data):
    """A prior that cannot be read, or a weight without one."""
    refused(lambda: dreambooth(tmp_path, base, data, prior="none"), match="none: no such folder")
    refused(lambda: dreambooth(tmp_path, base, data, prior_weight=2.0), match="--prior-weight needs images of a prior")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_prior_is_left_alone(tmp_path, base, data):
    (tmp_path / "run" / "prior").mkdir(parents=True)
    refused(lambda: dreambooth(tmp_path, base, data), match="holds a prior that is not of a run")


def test_textual_inversion_starts_at_the_scale_of_the_embeddings(tmp_path, base, data):
    given = GIVEN | dict(word="<zib>", initial_word="bar")
    run, dataset = start_textual_inversion(base, tmp_path / "run", str(data), dict(given), 1)
    table = run.pipeline.text_encoder.embeddings.token_embedding.table.weight.numpy()
    assert run.config.lr == pytest.approx(INVERSION_RATE * table.std(), rel=1e-5)
    go_on(run, dataset=dataset)
    other, _ = start_textual_inversion(base, tmp_path / "other", str(data), given | dict(lr=0.5), 1)
    assert other.config.lr == 0.5
    (data / "captions.csv").write_text("file_name,text\n0.png,a <zib>\n1.png,zib\n2.png,<zib>\n")
    refused(
        lambda: start_textual_inversion(base, tmp_path / "new", str(data), dict(given), 1),
        match="data: the caption 'zib' is without <zib>; write it in",
    )
    assert not (tmp_path / "new").exists()


def test_a_run_of_dreambooth_is_one_of_text(tmp_path, base, data):
    """So every command that takes a run of train --text takes it."""
    dreambooth(tmp_path, base, data)
    assert isinstance(state.open_run(tmp_path / "run"), TextRun)
