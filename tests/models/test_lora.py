"""Low-rank updates of layers: in training, merged, and taken out again."""

import numpy as np
import pytest
from small_text import ENCODER, network

from minidiff.engine.losses import mse
from minidiff.engine.nn import Conv2d, Linear
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.models.lora import TEXT, LoRALayer, Update, add_updates, merged, updatable_layers, without_updates
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet

LAYERS = {
    "linear": (lambda rng: Linear(6, 5, rng), (2, 7, 6)),
    "convolution": (lambda rng: Conv2d(6, 5, 3, rng, stride=2, pad=(0, 1, 0, 1)), (2, 8, 8, 6)),
}


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def update_of(layer, rank=2, alpha=3.0, seed=1):
    rng = np.random.default_rng(seed)
    O, *rest = layer.weight.shape
    return Update(normal(rng, rank, *rest), normal(rng, O, rank), alpha)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_in_training_equals_the_merged_weight(kind, backend):
    """h = W x + (alpha / r) B A x, with what is added to it."""
    make, shape = LAYERS[kind]
    rng = np.random.default_rng(0)
    layer = make(rng).to(backend.name)
    update = update_of(layer)
    training = LoRALayer(layer, 2, 3.0, None)
    training.A.data[...], training.B.data[...] = backend.asarray(update.A), backend.asarray(update.B)
    x = Tensor(normal(rng, *shape), backend)
    add = Tensor(normal(rng, *layer(x).shape), backend)
    got = training(x, add).numpy()
    before = layer(x, add).numpy()
    with merged({"layer": layer}, [({"layer": update}, 1.0)]):
        want = layer(x, add).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.abs(got - before).max() > 0.1


def test_it_starts_as_the_layer_itself():
    layer = Linear(6, 5, np.random.default_rng(0))
    x = Tensor(normal(np.random.default_rng(1), 3, 6), layer.backend)
    added = LoRALayer(layer, 4, 4, np.random.default_rng(2))
    np.testing.assert_array_equal(added(x).numpy(), layer(x).numpy())
    assert added.A.data.std() > 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_unmerging_gives_the_same_bits_back(dtype):
    """After an error in the block too; two updates of one weight add up."""
    layer = Linear(6, 5, np.random.default_rng(0))
    if dtype == np.float16:
        layer.weight.hold_half(layer.weight.data.astype(np.float16))
    data, before = layer.weight.data, layer.weight.data.copy()
    updates = [{"layer": update_of(layer, seed=seed)} for seed in (1, 2)]
    difference = 0.5 * updates[0]["layer"].product() - 2 * updates[1]["layer"].product()
    with pytest.raises(KeyError), merged({"layer": layer}, list(zip(updates, (0.5, -2.0), strict=True))):
        want = (before.astype(np.float32) + difference).astype(dtype)
        np.testing.assert_allclose(layer.weight.data, want, rtol=1e-3 if dtype == np.float16 else 1e-5, atol=1e-6)
        raise KeyError
    assert layer.weight.data is data and data.dtype == dtype
    assert data.tobytes() == before.tobytes()


def test_training_changes_nothing_but_the_updates():
    """The networks' own weights have the same bits after steps of AdamW, and no gradient."""
    rng = np.random.default_rng(0)
    unet, encoder = TextUNet(network(8), rng, "numpy"), TextEncoder(ENCODER, rng, "numpy")
    own = [*unet.parameters(), *encoder.parameters()]
    before = [p.data.tobytes() for p in own]
    names = [set(updatable_layers(net)) for net in (unet, encoder)]
    added = [*add_updates(unet, 2, 2, rng).values(), *add_updates(encoder, 2, 2, rng).values()]
    assert [set(updatable_layers(net)) for net in (unet, encoder)] == names
    optimizer = AdamW([p for layer in added for p in (layer.A, layer.B)], lr=0.01)
    started = optimizer.p.copy()
    x_t, eps, ids = normal(rng, 2, 8, 8, 3), normal(rng, 2, 8, 8, 3), np.ones((2, 10), int)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = mse(unet(x_t, np.array([3, 7]), encoder(ids)), eps)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.numpy()))
    assert losses[-1] < losses[0] and (optimizer.p != started).mean() > 0.9
    assert [p.data.tobytes() for p in own] == before and all(p.grad is None for p in own)


def test_every_attention_projection_gets_one():
    rng = np.random.default_rng(0)
    unet, encoder = TextUNet(network(8), rng, "numpy"), TextEncoder(ENCODER, rng, "numpy")
    in_unet, in_encoder = add_updates(unet, 2, 2, rng), add_updates(encoder, 2, 2, rng)
    assert len(in_unet) == 8 * 4 and len(in_encoder) == 4 * ENCODER.num_hidden_layers  # 4 transformers, 2 x 4 each
    assert isinstance(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0], LoRALayer)


def test_projections_of_the_text():
    rng = np.random.default_rng(0)
    unet, encoder = TextUNet(network(8), rng, "numpy"), TextEncoder(ENCODER, rng, "numpy")
    in_unet, in_encoder = add_updates(unet, 2, 2, rng, TEXT), add_updates(encoder, 2, 2, rng, TEXT)
    assert len(in_unet) == 4 * 4 and all(".attn2.to_" in name for name in in_unet)
    assert len(in_encoder) == 4 * ENCODER.num_hidden_layers


def test_layers_without_their_updates():
    """Within the block, and with them again after an error in it."""
    rng = np.random.default_rng(0)
    layer = Linear(6, 5, rng)
    training, x = LoRALayer(layer, 2, 3.0, rng), Tensor(normal(rng, 3, 6), layer.backend)
    training.B.data[...] = normal(rng, 5, 2)
    after, before = training(x).numpy(), layer(x).numpy()
    with pytest.raises(KeyError), without_updates([training]):
        np.testing.assert_array_equal(training(x).numpy(), before)
        raise KeyError
    np.testing.assert_array_equal(training(x).numpy(), after)
    assert np.abs(after - before).max() > 0.1
