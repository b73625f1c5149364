"""float16 weights of large networks stay float16 in memory: half of it, the same images, and not for training."""

import numpy as np
import pytest
import torch
from small_pipeline import pipeline

import minidiff as md
from minidiff.engine.nn import Linear
from minidiff.engine.tensor import Tensor
from minidiff.formats import networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Stable Diffusion folder with weights in float16."""
    folder = tmp_path_factory.mktemp("half")
    pipeline().to(torch.float16).save_pretrained(folder)
    return folder


def opened(folder, monkeypatch, least, backend="numba"):
    monkeypatch.setattr(networks, "KEPT_HALF", least)
    return md.open_pipeline(folder, backend)


def dtypes(pipeline):
    parts = (pipeline.unet, pipeline.text_encoder, pipeline.vae)
    return {p.data.dtype for part in parts for p in part.parameters()}


def test_only_large_networks_stay_half(folder, monkeypatch):
    assert dtypes(opened(folder, monkeypatch, 0)) == {np.dtype(np.float16)}
    assert dtypes(opened(folder, monkeypatch, 50_000_000)) == {np.dtype(np.float32)}
    assert dtypes(opened(folder, monkeypatch, 0).to("numpy")) == {np.dtype(np.float16)}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_images_are_the_same(folder, monkeypatch, backend):
    """Bit for bit: widening rounds nothing."""
    kept, widened = (opened(folder, monkeypatch, least, backend) for least in (0, 50_000_000))
    first, second = (
        md.text_to_image(p, ["a black cat"], steps=2, rng=np.random.default_rng(0)) for p in (kept, widened)
    )
    np.testing.assert_array_equal(first, second)


def test_half_weights_are_not_for_training():
    layer = Linear(3, 2, np.random.default_rng(0))
    layer.weight.hold_half(layer.weight.data.astype(np.float16))
    x = Tensor(np.ones((1, 3), np.float32), layer.backend, requires_grad=True)
    layer(x).backward(np.ones((1, 2), np.float32))
    assert layer.weight.grad is None and layer.bias.grad is not None
    np.testing.assert_allclose(x.grad[0], layer.weight.data.astype(np.float32).sum(0), rtol=1e-6)


def test_other_weights_replace_them_in_float32():
    layer = Linear(3, 2, np.random.default_rng(0))
    state = layer.state_dict()
    layer.weight.hold_half(layer.weight.data.astype(np.float16))
    layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.weight.data, state["weight"], strict=True)
