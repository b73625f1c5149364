"""LoRA: gradients equal PEFT's, and our files and theirs give the same images in diffusers."""

import numpy as np
import pytest
import small_pipeline
import torch
from against_torch import nchw, rms_error
from one_thread import one_thread  # noqa: F401  for all tests of this module

from minidiff.data.imaging import to_uint8
from minidiff.engine.losses import mse
from minidiff.engine.torch_generator import torch_generator
from minidiff.formats.lora_files import LORA_WEIGHTS, load_lora, pipeline_layers, save_lora
from minidiff.models.lora import ATTENTION, Update, add_updates
from minidiff.sampling.adapted import merged_loras
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image

peft = pytest.importorskip("peft", reason="needs peft: pip install 'minidiff[test]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers on torch
    pytest.mark.filterwarnings("ignore:.*adapter:UserWarning:peft"),
]

RANK, ALPHA = 3, 6
# What is updated: the attention projections, as `minidiff tune` does; all of the transformers, as kohya's scripts do.
CHOSEN = {"attention": ATTENTION.search, "transformers": lambda name: "attentions" in name or "encoder.layers" in name}
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}  # fmt: skip


@pytest.fixture
def theirs():
    return small_pipeline.pipeline()


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "pipeline")
    return open_pipeline(tmp_path / "pipeline")


def drawn(layers, chosen, alpha=ALPHA):
    """Updates of the chosen layers, large enough that every image shows them."""
    rng, updates = np.random.default_rng(0), {}
    for name in filter(chosen, layers):
        O, *rest = layers[name].weight.shape
        A, B = (rng.standard_normal(shape).astype(np.float32) / 4 for shape in ((RANK, *rest), (O, RANK)))
        updates[name] = Update(A, B, alpha)
    return updates


def with_peft(pipeline, updates):
    """Give diffusers' networks these updates, as PEFT has them."""
    for part, targets in TARGETS.items():
        network = getattr(pipeline, part)
        peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), network)
        for name, p in network.named_parameters():
            layer, _, matrix = name.removesuffix(".default.weight").rpartition(".")
            if matrix in ("lora_A", "lora_B"):
                p.data[...] = torch.tensor(getattr(updates[f"{part}.{layer}"], matrix[-1]))


def peft_gradients(pipeline, x_t, eps, t, ids):
    """The gradients of every A and B, by name."""
    x_t, eps = (nchw(torch.tensor(a)).to(pipeline.dtype) for a in (x_t, eps))
    pipeline.unet.zero_grad(), pipeline.text_encoder.zero_grad()
    eps_hat = pipeline.unet(x_t, torch.tensor(t), pipeline.text_encoder(torch.tensor(ids)).last_hidden_state).sample
    torch.nn.functional.mse_loss(eps_hat, eps).backward()
    return {
        f"{part}.{name.removesuffix('.default.weight')}": p.grad.numpy().copy()
        for part in TARGETS
        for name, p in getattr(pipeline, part).named_parameters()
        if p.requires_grad
    }


@pytest.mark.filterwarnings("ignore:.*float32")  # of diffusers, on .to(torch.float64)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_gradients_equal_those_of_peft(backend, theirs, ours):
    """Of every A and B, from one batch, B not zero; nothing else gets a gradient.

    All together to PEFT's in float32, and each to PEFT's in float64: rounding errors are of the size of what is summed,
    and some are sums that cancel, so each is measured by the root mean square of all gradients.
    """
    ours = ours.to(backend)
    updates = drawn(pipeline_layers(ours), ATTENTION.search)
    with_peft(theirs, updates)
    added = {
        f"{part}.{name}": layer
        for part in TARGETS
        for name, layer in add_updates(getattr(ours, part), RANK, ALPHA, None).items()
    }
    assert added.keys() == updates.keys()
    for name, layer in added.items():
        layer.A.data[...], layer.B.data[...] = updates[name].A, updates[name].B
    rng = np.random.default_rng(1)
    x_t, eps = rng.standard_normal((2, 2, 8, 8, 4), dtype=np.float32)
    t, ids = np.array([3, 700]), ours.tokenizer(["a black cat", "cats"])

    mse(ours.unet(x_t, t, ours.text_encoder(ids)), eps).backward()
    got = {f"{name}.lora_{matrix}": getattr(layer, matrix).grad for name, layer in added.items() for matrix in "AB"}
    want, exact = (peft_gradients(theirs.to(dtype), x_t, eps, t, ids) for dtype in (torch.float32, torch.float64))
    assert got.keys() == want.keys()
    together = [np.concatenate([gradients[name].ravel() for name in want]) for gradients in (got, want)]
    assert rms_error(*together) <= 1e-5
    size = np.sqrt(np.square(together[1]).mean())
    for name, gradient in exact.items():
        assert np.sqrt(np.square(got[name] - gradient).mean()) <= 1e-5 * size, name
    trained = {id(p) for layer in added.values() for p in (layer.A, layer.B)}
    for network in (ours.unet, ours.text_encoder):
        assert all(p.grad is None for p in network.parameters() if id(p) not in trained)


def image_of(pipeline):
    generator = torch.Generator().manual_seed(3)
    return pipeline("a black cat", num_inference_steps=4, guidance_scale=4.0, generator=generator, output_type="np")[0]


def equal(pipeline, loras, want):
    """At most 1 of 255 off on 99.9 % of the values; and not the image without the LoRA."""
    with merged_loras(pipeline, loras):
        got = to_uint8(text_to_image(pipeline, ["a black cat"], "", 4.0, 4, torch_generator(3)))
    off = np.abs(got.astype(int) - (want * 255).round())
    assert np.mean(off <= 1) >= 0.999
    without = to_uint8(text_to_image(pipeline, ["a black cat"], "", 4.0, 4, torch_generator(3)))
    assert np.mean(got != without) > 0.5


def only(part, updates):
    return updates if part == "both" else {name: update for name, update in updates.items() if name.startswith(part)}


@pytest.mark.parametrize("part", ["unet", "both"])
@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
@pytest.mark.parametrize("chosen", CHOSEN)
def test_our_file_gives_the_same_image_in_diffusers(chosen, kohya, part, theirs, ours, tmp_path):
    updates = only(part, drawn(pipeline_layers(ours), CHOSEN[chosen]))
    save_lora(tmp_path / LORA_WEIGHTS, updates, kohya)
    theirs.load_lora_weights(str(tmp_path), weight_name=LORA_WEIGHTS)
    equal(ours, [(load_lora(tmp_path, ours), 1.0)], image_of(theirs))


def test_two_at_once_with_weights(theirs, ours, tmp_path):
    """Of the U-Net: of text encoders, transformers 5.24 loads LoRAs with PEFT 0.21, and refuses `set_adapters`."""
    layers = {name: layer for name, layer in pipeline_layers(ours).items() if name.startswith("unet.")}
    first, second = drawn(layers, CHOSEN["attention"]), drawn(layers, CHOSEN["transformers"], 2)
    for name, updates in (("first", first), ("second", second)):
        save_lora(tmp_path / f"{name}.safetensors", updates, kohya=True)
        theirs.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    theirs.set_adapters(["first", "second"], adapter_weights=[0.5, -0.75])
    equal(ours, [(first, 0.5), (second, -0.75)], image_of(theirs))


def test_their_file_gives_the_same_image_here(theirs, ours, tmp_path):
    """With alpha in the metadata, as diffusers' training scripts save it."""
    from diffusers.training_utils import _collate_lora_metadata

    with_peft(theirs, drawn(pipeline_layers(ours), ATTENTION.search))
    parts = {part: getattr(theirs, part) for part in TARGETS}
    theirs.save_lora_weights(
        str(tmp_path),
        **{f"{part}_lora_layers": peft.get_peft_model_state_dict(network) for part, network in parts.items()},
        **_collate_lora_metadata(parts),
    )
    lora = load_lora(tmp_path, ours)
    assert {update.alpha for update in lora.values()} == {ALPHA}
    equal(ours, [(lora, 1.0)], image_of(theirs))
