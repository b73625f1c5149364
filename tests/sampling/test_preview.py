"""Previews: the linear map of latents to colours, and the files that are written while sampling."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_text
from PIL import Image

from minidiff.data import imaging
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor
from minidiff.formats.pipeline import Pipeline
from minidiff.sampling import preview
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import decode, encode, text_to_image

EMOJI = Path(__file__).parents[2] / "docs" / "models" / "emoji"


@pytest.fixture
def latent(tmp_path):
    """A small pipeline of latents: 3 channels, half the height and width of images."""
    return small_text.new_text_run(tmp_path / "run", latent=True).pipeline


def test_the_map_of_a_linear_decoder(latent):
    """Found exactly: blocks of 2 x 2 pixels around z W + b, whatever is added to them with mean zero."""
    rng = np.random.default_rng(1)
    W, b = rng.normal(0, 0.3, (3, 3)).astype(np.float32), np.float32([0.1, -0.2, 0.3])
    pattern = np.float32([[0.5, -0.25], [-0.5, 0.25]])[..., None]

    def decoded(z):
        scaled = z * np.float32(0.7)  # the sampling loop's latents
        return Tensor((scaled @ W + b).repeat(2, 1).repeat(2, 2) + np.tile(pattern, (8, 8, 1)), get_backend("numpy"))

    vae = SimpleNamespace(factor=2, config=latent.vae.config, decode=decoded)
    fitted = preview.rgb_map(replace(latent, vae=vae))
    np.testing.assert_allclose(fitted, np.vstack([W, b]), atol=1e-5)


def test_previews_of_latents(latent, tmp_path, monkeypatch):
    """At every fifth step and the last, of the size of images; the images are the same with and without."""
    written = []
    monkeypatch.setattr(imaging, "save_image", lambda image, path: written.append(np.asarray(image)))
    shapes, steps = [], 12

    def sampled(watch):
        return text_to_image(latent, ["red bar"], "", 2.0, steps, np.random.default_rng(0), watch=watch)

    show = preview.previewer(latent, tmp_path / "p.png", steps)
    with_previews = sampled(lambda x0_hat: (shapes.append(x0_hat.shape), show(x0_hat)))
    assert shapes == [(1, 4, 4, 3)] * steps
    assert [image.shape for image in written] == [(96, 96, 3)] * 3
    assert len({image.tobytes() for image in written}) == 3
    np.testing.assert_array_equal(with_previews, sampled(lambda x0_hat: None))


def test_previews_of_pixels(tmp_path):
    """Images as they are, without a map; of every batch, and whatever the values."""
    show = preview.previewer(Pipeline(unet=None, schedule=None, sampler=None), tmp_path / "p.png", 5)
    x0_hat = np.linspace(-1.5, 1.5, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)
    for _ in range(4):
        show(x0_hat)
    assert list(tmp_path.iterdir()) == []
    show(x0_hat)
    with Image.open(tmp_path / "p.png") as image:
        np.testing.assert_array_equal(np.asarray(image), imaging.sheet(imaging.to_uint8(x0_hat), scale=24))
    for _ in range(5):
        show(np.full_like(x0_hat, np.nan))
    with Image.open(tmp_path / "p.png") as image:
        assert np.asarray(image)[8, 8].tolist() == [128, 128, 128]
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_the_map_of_a_trained_autoencoder():
    """The emoji model's, on its own samples: most of the variance, so nearly as much as the best linear map has."""
    pipeline = open_pipeline(EMOJI, "numba")
    prompts = ["red apple", "owl", "blue heart", "sun"]
    x = text_to_image(pipeline, prompts, guidance=4, steps=8, rng=np.random.default_rng(0))
    z = encode(pipeline, x, np.random.default_rng(1))
    means = decode(pipeline, z).reshape(4, 8, 4, 8, 4, 3).mean((2, 4))
    with_one = preview._with_one(z).reshape(-1, 13)
    best, *_ = np.linalg.lstsq(with_one, means.reshape(-1, 3))

    def unexplained(fitted):
        return np.mean((with_one @ fitted - means.reshape(-1, 3)) ** 2) / means.var()

    assert unexplained(preview.rgb_map(pipeline)) < 0.3
