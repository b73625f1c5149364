"""A folder of diffusers, tuned here, opens in diffusers again: DreamBooth's pipeline, textual inversion's word."""

import numpy as np
import pytest
import small_pipeline
import torch
from diffusers import StableDiffusionPipeline
from one_thread import one_thread  # noqa: F401  for all tests of this module
from PIL import Image
from small_runs import go_on

from minidiff.data.imaging import to_uint8
from minidiff.engine.torch_generator import torch_generator
from minidiff.sampling.embeddings import with_embeddings
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image
from minidiff.training.start_tuning import start_dreambooth, start_textual_inversion

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch

GUIDANCE, STEPS = 10.0, 4
GIVEN = dict(steps=3, batch_size=2, backend="numpy", lr=0.02)


@pytest.fixture
def base(tmp_path):
    return small_pipeline.saved(tmp_path / "base")


@pytest.fixture
def data(tmp_path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    for i, colour in enumerate(("red", "green")):
        Image.new("RGB", (40, 32), colour).save(folder / f"{i}.png")
    (folder / "captions.csv").write_text("file_name,text\n0.png,a <zib> cat\n1.png,<zib>\n")
    return str(folder)


def image_of(theirs):
    theirs.set_progress_bar_config(disable=True)
    arguments = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
    return theirs("a <zib>", generator=torch.Generator().manual_seed(3), **arguments).images


def equal(ours, theirs):
    """At most 1 of 255 off on 99.9 % of the values."""
    got = to_uint8(text_to_image(ours, ["a <zib>"], "", GUIDANCE, STEPS, torch_generator(3)))
    assert np.mean(np.abs(got.astype(int) - (image_of(theirs) * 255).round()) <= 1) >= 0.999


def test_dreambooth(base, data, tmp_path):
    run, dataset = start_dreambooth(base, tmp_path / "run", data, dict(GIVEN), (), 1)
    go_on(run, dataset=dataset)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "run")
    equal(open_pipeline(tmp_path / "run", as_diffusers=True), theirs)


def test_textual_inversion(base, data, tmp_path):
    words = dict(word="<zib>", initial_word="black cat")
    run, dataset = start_textual_inversion(base, tmp_path / "run", data, GIVEN | words, 1)
    go_on(run, dataset=dataset)
    theirs = StableDiffusionPipeline.from_pretrained(base)
    theirs.load_textual_inversion(str(tmp_path / "run"))
    equal(with_embeddings(open_pipeline(base, as_diffusers=True), [tmp_path / "run"]), theirs)
