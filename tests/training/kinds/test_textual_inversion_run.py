"""minidiff tune --method textual-inversion: runs of a new word, from the first step to an image."""

import shutil

import numpy as np
import pytest
from small_runs import contents, go_on, refused, reopen, tree
from small_text import bars, new_text_run

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.formats.embedding_files import LEARNED_EMBEDS, load_embedding
from minidiff.sampling.embeddings import with_embeddings
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image, with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun, initial_vectors
from minidiff.training.loop import validation_loss


@pytest.fixture(params=[False, True], ids=["pixels", "latents"])
def base(request, tmp_path):
    """The folder of a text run, which is a pipeline."""
    return new_text_run(tmp_path / "base", latent=request.param).folder


def zibs() -> Dataset:
    dataset, index = bars(), np.arange(10)
    captions = tuple(caption.replace("bar", "<zib>") for caption in dataset.captions)
    return from_arrays("zibs", dataset.take(index), dataset.labels, dataset.classes, captions=captions)


def new_word_run(folder, base, backend="numpy", word="<zib>", initial="red bar", **changes):
    settings = dict(steps=8, batch_size=4, warmup=3, seed=5, flip=False, word=word, initial_word=initial)
    pipeline = with_prompts(open_pipeline(base, backend, kind="text"))
    return state.new_run(
        TextualInversionRun, folder, TrainConfig("bars", backend=backend, **settings | changes), pipeline
    )


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, base, backend):
    before = tree(base)
    for name, stop_at in (("whole", 0), ("run", 5)):
        go_on(new_word_run(tmp_path / name, base, backend, accumulate=2), stop_at=stop_at, dataset=zibs())
    again = reopen(tmp_path / "run")
    assert isinstance(again, TextualInversionRun) and again.step == 5
    go_on(again, dataset=zibs())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert tree(base) == before


def test_it_learns_and_its_pipeline_does_not(tmp_path, base):
    run = new_word_run(tmp_path / "run", base, steps=40, lr=0.1)
    networks = (run.pipeline.unet, run.pipeline.text_encoder)
    own = [p for net in networks for p in net.parameters() if p is not run.vectors]
    before, loss, start = [p.data.tobytes() for p in own], validation_loss(run, zibs()), run.vectors.numpy().copy()
    go_on(run, checkpoint_every=40, dataset=zibs())
    assert [p.data.tobytes() for p in own] == before and all(p.grad is None for p in own)
    assert (np.abs(run.vectors.numpy() - start).max(1) > 0.1).all()
    assert validation_loss(run, zibs()) < loss


def test_it_starts_from_the_tokens_of_the_initial_word(tmp_path, base):
    run = new_word_run(tmp_path / "run", base)
    pipeline = with_prompts(open_pipeline(base, "numpy", kind="text"))
    ids = pipeline.tokenizer.encode("red bar")
    table = pipeline.text_encoder.embeddings.token_embedding.weight.numpy()
    np.testing.assert_array_equal(run.vectors.numpy(), table[ids])
    np.testing.assert_array_equal(initial_vectors(pipeline, "red bar"), table[ids])


def test_its_file_gives_the_image_of_the_run(tmp_path, base):
    run = new_word_run(tmp_path / "run", base, lr=0.1)
    go_on(run, dataset=zibs())
    arguments = dict(guidance=2.0, steps=3)
    with run.optimizer.averaged():
        want = text_to_image(run.pipeline, ["red <zib>"], rng=np.random.default_rng(0), **arguments)
    pipeline = with_prompts(open_pipeline(base, "numpy"))
    without = text_to_image(pipeline, ["red <zib>"], rng=np.random.default_rng(0), **arguments)
    known = with_embeddings(pipeline, [tmp_path / "run"])
    np.testing.assert_array_equal(text_to_image(known, ["red <zib>"], rng=np.random.default_rng(0), **arguments), want)
    assert np.abs(want - without).max() > 1e-3
    assert load_embedding(tmp_path / "run", pipeline)[1].shape == (len(pipeline.tokenizer.encode("red bar")), 8)


@pytest.mark.parametrize(
    ("word", "initial", "match"),
    [
        ("red", "bar", "--word: 'red' is in the model's vocabulary; give another word, such as <red>"),
        ("two  words", "bar", "--word: 'two  words' is no word"),
        ("", "bar", "--word: '' is no word"),
        ("<z\tb>", "bar", r"--word: '<z\\tb>' is no word"),
        ("<zib>", " ", "--initial-word ' ': has 0 tokens; give 1 to 75"),
        ("<zib>", "a " * 76, "--initial-word 'a a .*: has 76 tokens; give 1 to 75"),
    ],
)
def test_words_that_are_none(tmp_path, base, word, initial, match):
    """And nothing is written."""
    refused(lambda: new_word_run(tmp_path / "run", base, word=word, initial=initial), match=match)
    assert not (tmp_path / "run").exists()


def test_another_pipeline_in_its_place_is_refused(tmp_path, base):
    new_word_run(tmp_path / "run", base)
    run = new_text_run(tmp_path / "other", latent=(base / "vae").is_dir())
    run.pipeline.unet.conv_out.bias.data[...] = 1
    state.export(run, raw=True)
    shutil.rmtree(base)
    shutil.copytree(run.folder, base)
    refused(state.open_run, tmp_path / "run", match="base: is not the pipeline that .*run was started with")


def test_a_folder_that_holds_a_word_is_left_alone(tmp_path, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LEARNED_EMBEDS).write_bytes(b"")
    refused(new_word_run, tmp_path / "run", base, match="holds a learned_embeds.safetensors that is not of a run")
