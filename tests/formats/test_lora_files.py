"""LoRA files: both kinds of keys, there and back, and files that are not what they should be."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import refused
from small_text import ENCODER, SCHEDULE, network, tokenizer

from minidiff.diffusion.sampler import Sampler
from minidiff.formats.lora_files import LORA_WEIGHTS, load_lora, pipeline_layers, save_lora
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.lora import Update
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import Pixels

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.1.self_attn.q_proj"
KOHYA_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def pipeline():
    rng = np.random.default_rng(0)
    return TextPipeline(
        unet=TextUNet(network(8), rng, "numpy"), text_encoder=TextEncoder(ENCODER, rng, "numpy"), tokenizer=tokenizer(),
        vae=Pixels(3), schedule=SCHEDULE, sampler=Sampler(), folder="MODEL",
    )  # fmt: skip


@pytest.fixture
def lora(pipeline):
    """Of a linear layer, a convolution and the text encoder; of a scale that is exact."""
    rng, layers, lora = np.random.default_rng(1), pipeline_layers(pipeline), {}
    for name in (Q, CONV, TEXT):
        O, *rest = layers[name].weight.shape
        A, B = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, *rest), (O, 2)))
        lora[name] = Update(A, B, 4.0)
    return lora


@pytest.fixture
def file(lora, tmp_path):
    """A file with kohya's keys."""
    save_lora(tmp_path / LORA_WEIGHTS, lora, kohya=True)
    return tmp_path / LORA_WEIGHTS


@pytest.fixture
def changed(file):
    """changed(remove, **arrays): the file, with other arrays."""

    def changed(remove=(), metadata=None, **arrays):
        kept = {name: a for name, a in load_file(file).items() if name not in remove}
        save_file({**kept, **arrays}, file, metadata)
        return file

    return changed


@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
def test_there_and_back(kohya, lora, pipeline, tmp_path):
    save_lora(tmp_path / LORA_WEIGHTS, lora, kohya)
    again = load_lora(tmp_path, pipeline)
    assert again.keys() == lora.keys()
    for name, update in lora.items():
        got = again[name]
        np.testing.assert_array_equal(got.product(), update.product())
        assert (got.rank, got.alpha) == (2, 4.0 if kohya else 2.0)  # diffusers' keys have none: B is scaled


def test_the_keys_are_those_of_either(lora, tmp_path):
    keys = []
    for kohya in (False, True):
        save_lora(tmp_path / "lora.safetensors", lora, kohya)
        keys.append({name: a.shape for name, a in load_file(tmp_path / "lora.safetensors").items()})
    assert keys[0][f"{CONV}.lora_A.weight"] == (2, 8, 3, 3) and keys[0][f"{CONV}.lora_B.weight"] == (8, 2, 1, 1)
    assert keys[0][f"{TEXT.replace('encoder.l', 'text_model.encoder.l')}.lora_A.weight"] == (2, 8)
    assert keys[1][f"{KOHYA_Q}.lora_up.weight"] == (8, 2) and keys[1][f"{KOHYA_Q}.alpha"] == ()
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight" in keys[1]


def test_without_alpha_the_scale_is_1(pipeline, changed):
    path = changed(remove=[f"{KOHYA_Q}.alpha"])
    assert load_lora(path, pipeline)[Q].scale == 1


def test_float16_is_read(lora, pipeline, file):
    save_file({name: a.astype(np.float16) for name, a in load_file(file).items()}, file)
    np.testing.assert_allclose(load_lora(file, pipeline)[Q].A, lora[Q].A, rtol=1e-3, atol=1e-6)


def test_unknown_keys_are_counted_and_named(pipeline, changed):
    extra = {f"lora_unet_up_blocks_9_{i}.lora_down.weight": np.zeros((2, 8), np.float32) for i in range(4)}
    names = "lora_unet_up_blocks_9_0.lora_down.weight, .*_1.lora_down.weight, .* and 1 more"
    refused(load_lora, changed(**extra), pipeline, match=f"4 of 13 keys are of no layer of MODEL: {names}; give a LoRA")


def test_a_file_that_is_no_lora(pipeline, file):
    save_file({"conv_in.weight": np.zeros((8, 3), np.float32)}, file)
    refused(load_lora, file, pipeline, match="1 of 1 keys are of no layer of MODEL: conv_in.weight;")


WRONG = {
    "another model": ({"lora_down": (2, 320)}, "A (2, 320) and B (8, 2) do not fit the weight (8, 8) of " + Q),
    "outputs": ({"lora_up": (320, 2)}, "do not fit the weight"),
    "axes": ({"lora_down": (2, 8, 1, 1)}, "do not fit the weight"),
    "rank": ({"lora_up": (8, 3)}, f"{Q} has A of rank 2 and B of rank 3"),
    "rank 0": ({"lora_down": (0, 8), "lora_up": (8, 0)}, "of rank 0"),
    "one axis": ({"lora_down": (8,), "lora_up": (8,)}, "do not fit the weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit(name, pipeline, changed):
    shapes, match = WRONG[name]
    arrays = {f"{KOHYA_Q}.{matrix}.weight": np.zeros(shape, np.float32) for matrix, shape in shapes.items()}
    refused(load_lora, changed(**arrays), pipeline, match=re.escape(match))


def test_half_of_an_update(pipeline, changed):
    refused(load_lora, changed(remove=[f"{KOHYA_Q}.lora_up.weight"]), pipeline, match=f"has no B of {Q}; copy it again")


def test_one_update_by_two_names(pipeline, changed):
    arrays = {f"{Q}.lora_A.weight": np.zeros((2, 8), np.float32)}
    refused(load_lora, changed(**arrays), pipeline, match="by another name too")


def test_values_that_are_not_finite(pipeline, changed):
    arrays = {f"{KOHYA_Q}.lora_up.weight": np.full((8, 2), np.nan, np.float32)}
    refused(load_lora, changed(**arrays), pipeline, match=f"B of {Q} has values that are not finite")


@pytest.mark.parametrize("left", [0, 5, 200, -1])
def test_truncated(left, pipeline, file):
    file.write_bytes(file.read_bytes()[:left])
    refused(load_lora, file, pipeline, match="damaged or not safetensors")


def test_missing_and_pickled(pipeline, tmp_path):
    refused(load_lora, tmp_path, pipeline, match=f"{LORA_WEIGHTS}: no such file")
    refused(load_lora, tmp_path / "lora.safetensors", pipeline, match="no such file")
    (tmp_path / "lora.ckpt").write_bytes(b"")
    refused(load_lora, tmp_path / "lora.ckpt", pipeline, match="is a pickle")


def test_metadata_of_diffusers(lora, pipeline, changed):
    """Its alpha counts where the keys have none; what changes the formula is refused by name."""
    settings = {"unet.lora_alpha": 6, "unet.r": 2, "unet.use_dora": False}
    path = changed([f"{KOHYA_Q}.alpha"], {"lora_adapter_metadata": json.dumps(settings)})
    assert load_lora(path, pipeline)[Q].alpha == 6 and load_lora(path, pipeline)[CONV].alpha == 4
    changed(metadata={"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})})
    refused(load_lora, path, pipeline, match="unet.use_rslora = True, which is not supported")
    for damaged in ("{", "3", '{"unet.lora_alpha": []}', '{"unet.lora_alpha": NaN}'):
        changed(metadata={"lora_adapter_metadata": damaged})
        refused(load_lora, path, pipeline, match="lora_adapter_metadata is damaged")


def test_a_file_without_arrays(pipeline, tmp_path):
    save_file({}, tmp_path / LORA_WEIGHTS)
    refused(load_lora, tmp_path, pipeline, match="holds no arrays; copy it again, or give a LoRA for this model")
