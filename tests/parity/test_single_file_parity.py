"""Single-file checkpoints beside diffusers': its conversion of a file gives the same networks, and the same images."""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import small_pipeline
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from one_thread import one_thread  # noqa: F401  for all tests of this module
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

from minidiff.cli.app import app
from minidiff.data.imaging import to_uint8
from minidiff.engine.torch_generator import torch_generator
from minidiff.formats.networks import file_shape
from minidiff.formats.single_file.keys import places, shape_in_file
from minidiff.formats.single_file.writing import export_single_file, import_single_file
from minidiff.formats.tokenizer_files import clip_tokenizer
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import VAE
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers on torch
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module", params=["1", "2"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(version):
    """A pipeline of diffusers in the layout of Stable Diffusion 1.x or 2.x."""
    if version == "1":
        return small_pipeline.pipeline()
    made = small_pipeline.pipeline({"use_linear_projection": True, "attention_head_dim": [2, 4]})
    config = CLIPTextConfig(**made.text_encoder.config.to_dict() | {"hidden_act": "gelu"})
    made.text_encoder = CLIPTextModel(config).eval()
    return made


@pytest.fixture(scope="module")
def made(theirs, tmp_path_factory):
    """Its folder, and our single file of that."""
    folder = tmp_path_factory.mktemp("single") / "folder"
    theirs.save_pretrained(folder)
    export_single_file(folder, folder.parent / "one.safetensors")
    return folder, folder.parent / "one.safetensors"


def states(pipeline):
    return {f"{part}.{name}": a for part in PARTS for name, a in getattr(pipeline, part).state_dict().items()}


def equal(first, second):
    assert first.keys() == second.keys()
    for name, a in first.items():
        assert a.dtype == second[name].dtype and torch.equal(a, second[name]), name


def test_our_file_in_diffusers(theirs, made):
    folder, path = made
    opened = StableDiffusionPipeline.from_single_file(str(path), config=str(folder))
    equal(states(theirs), states(opened))


def test_our_folder_of_the_file_is_what_diffusers_makes_of_it(theirs, made, tmp_path):
    folder, path = made
    import_single_file(path, tmp_path / "again", folder)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again")
    equal(states(StableDiffusionPipeline.from_single_file(str(path), config=str(folder))), states(again))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(theirs, tmp_path, dtype):
    """A file is of the dtype of its folder, and so is the folder of a file."""
    half = copy.deepcopy(theirs).to(dtype)
    half.save_pretrained(tmp_path / "folder")
    export_single_file(tmp_path / "folder", tmp_path / "one.safetensors")
    assert {a.dtype for a in load_file(tmp_path / "one.safetensors").values()} == {dtype}
    import_single_file(tmp_path / "one.safetensors", tmp_path / "again", tmp_path / "folder")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again", torch_dtype=dtype)
    equal(states(half), states(again))


def test_the_same_image(made, monkeypatch, tmp_path):
    """By diffusers of the file, by the folder that is imported from it, and from the command line."""
    folder, path = made
    opened = StableDiffusionPipeline.from_single_file(str(path), config=str(folder))
    opened.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    want = opened("a black cat", num_inference_steps=4, generator=generator, output_type="np").images
    want = (want * 255).round().astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    run = lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)  # noqa: E731
    assert run("import", path, "--out", "again", "--config", folder).exit_code == 0
    got = to_uint8(text_to_image(open_pipeline("again"), ["a black cat"], steps=4, rng=torch_generator(3)))
    off = np.abs(got.astype(int) - want)
    assert want.std() > 10 and np.mean(off <= 1) >= 0.999 and off.max() <= 3
    arguments = "sample again --prompt".split()
    assert run(*arguments, "a black cat", *"--steps 4 --seed 3 --noise torch --npz x.npz".split()).exit_code == 0
    with np.load("x.npz") as file:
        off = np.abs(file["arr_0"].astype(int) - want)
    assert np.mean(off <= 1) >= 0.999 and off.max() <= 3


SIZES = {
    "1": (dict(cross_attention_dim=768), dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)),
    "2": (
        dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23, hidden_act="gelu"),
    ),
}


def on_meta(network):
    """The arrays of a network in the file, without their values; and its parameters, name -> shape in a folder."""
    shapes = {name: file_shape(p.shape) for name, p in network.named_parameters()}
    arrays = {}
    for key, names in places(network).items():
        first, *rest = shapes[names[0]]
        arrays[key] = torch.empty(shape_in_file(key, (first * len(names), *rest)), device="meta")
    return arrays, shapes


@pytest.mark.slow
@pytest.mark.parametrize("version", SIZES)
def test_names_at_real_size(version):
    """diffusers' conversion of the names that we write gives the names of a folder; its U-Net has just these."""
    unet_changes, text_changes = SIZES[version]
    unet_arrays, unet_shapes = on_meta(TextUNet(TextUNetConfig(**unet_changes), None, "numpy"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_changes)
    converted = convert_ldm_unet_checkpoint(unet_arrays, unet.config)
    assert {name: tuple(a.shape) for name, a in converted.items()} == unet_shapes
    assert {name: tuple(a.shape) for name, a in unet.state_dict().items()} == unet_shapes
    levels = 4
    vae_config = VAEConfig(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * levels, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip
    vae_arrays, vae_shapes = on_meta(VAE(vae_config, None, "numpy"))
    converted = convert_ldm_vae_checkpoint(vae_arrays, vae_config.to_dict())
    assert {name: tuple(a.shape) for name, a in converted.items()} == vae_shapes
    text_arrays, text_shapes = on_meta(TextEncoder(TextEncoderConfig(**text_changes), None, "numpy"))
    if version == "1":
        converted = convert_ldm_clip_checkpoint(text_arrays)
    else:
        model = type("Model", (), {"config": type("Config", (), {"hidden_size": 1024})})
        converted = convert_open_clip_checkpoint(model, text_arrays)
    converted = {name.removeprefix("text_model."): tuple(a.shape) for name, a in converted.items()}
    assert converted == text_shapes


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_clips_tokenizer(pad):
    """transformers' with the same vocabulary, of 1.x and 2.x."""
    ours = clip_tokenizer(pad)
    theirs = CLIPTokenizer(ours.vocab, list(ours.ranks), pad_token=pad, model_max_length=77)
    texts = ["A black  cat!", "an owl, 3 red apples; l'été à Zürich 日本", "", "wow!! that's it " * 20]
    want = theirs(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(ours(texts), want)
