"""Chapter 12's solution against the arrays that text_to_image makes."""

import numpy as np
import pytest
import small_text

from minidiff.data.imaging import to_uint8
from minidiff.diffusion import reverse
from minidiff.learn.chapters.stable_diffusion import stages
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.sampling import text_to_image as sampling
from minidiff.sampling.opening import open_pipeline


@pytest.fixture
def pipeline(tmp_path):
    small_text.new_text_run(tmp_path / "run", latent=True)
    return open_pipeline(tmp_path / "run", "numpy")


def test_the_stages_are_text_to_image_s(pipeline, monkeypatch):
    found = {}  # name -> shape, in the order of the first calls

    def recorded(function, name, shape_of_input=False):
        def call(*args, **kwargs):
            if shape_of_input:
                found.setdefault(name, list(args[1].shape))
            result = function(*args, **kwargs)
            if not shape_of_input:
                found.setdefault(name, list(result.shape))
            return result

        return call

    class Noise:
        standard_normal = staticmethod(recorded(np.random.default_rng(0).standard_normal, "noise"))

    encode = recorded(TextEncoder.__call__, "text embeddings")
    monkeypatch.setattr(TextEncoder, "__call__", recorded(encode, "token ids", shape_of_input=True))
    monkeypatch.setattr(TextUNet, "__call__", recorded(TextUNet.__call__, "U-Net input", shape_of_input=True))
    monkeypatch.setattr(reverse, "evaluate", recorded(reverse.evaluate, "guided prediction"))
    monkeypatch.setattr(sampling, "last_x_t", recorded(sampling.last_x_t, "latents"))
    image = to_uint8(sampling.text_to_image(pipeline, ["red bar", "blue bar", "bar"], guidance=3, steps=2, rng=Noise()))
    found["image"] = list(image.shape)

    size, _, channels = pipeline.image_shape
    latents = pipeline.vae.config.latent_channels
    expected = stages(3, size, pipeline.tokenizer.length, 8, pipeline.vae.factor, latents)
    assert channels == 3
    assert [[name, shape] for name, shape in found.items()] == expected
