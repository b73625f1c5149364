"""minidiff sample with a prompt: a small Stable Diffusion folder, and folders that are not what they should be."""

import json
import os
import shutil

import numpy as np
import pytest
import small_pipeline
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_runs import refused as refused_call
from small_runs import tree

from minidiff.data.imaging import to_uint8
from minidiff.engine.torch_generator import torch_generator
from minidiff.formats.networks import load_sampler
from minidiff.formats.tokenizer_files import load_tokenizer
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import decode, image_to_image, inpaint, text_to_image

QUICK = ("--steps", 2, "--threads", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_pipeline.saved(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of one's own, as `sd` in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "sd")
    return tmp_path / "sd"


@pytest.fixture
def refused(run, tmp_path):
    def refused(*arguments, match):
        before = tree(tmp_path)
        code, _, err = run(*arguments)
        assert code == 2 and err.startswith("minidiff: ") and err.count("\n") == 1
        assert match in err, err
        assert tree(tmp_path) == before

    return refused


def test_a_picture_of_a_text(run, folder):
    """The very picture of the function, whatever the words around it."""
    code, out, err = run("sample", "sd", "--prompt", "a black cat", "--negative-prompt", "blurred", "--guidance", 3,
                         "--height", 32, "--width", 48, "--noise", "torch", "--npz", "all.npz", *QUICK)  # fmt: skip
    assert (code, err) == (0, "") and "Wrote sheet.png and all.npz" in out
    want = text_to_image(open_pipeline(folder), ["a black cat"], "blurred", 3, 2, torch_generator(0), (32, 48))
    with np.load("all.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], to_uint8(want))
    with Image.open("sheet.png") as image:
        assert image.width / image.height == 1.5


def test_several_pictures_differ_and_an_empty_text_is_a_text(run, folder):
    code, out, err = run("sample", "sd", "--prompt", "", "--n", 2, "--npz", "all.npz", *QUICK)
    assert (code, err) == (0, "") and "4/4" in out
    with np.load("all.npz") as file:
        first, second = file["arr_0"]
    assert first.shape == (32, 32, 3) and (first != second).any()


def test_prompts_of_any_length(run, folder):
    """Neither prompts nor negative prompts are truncated."""
    images = []
    for prompt in ("cat " * 75, "cat " * 75 + "black", "cat " * 300):
        code, _, err = run("sample", "sd", "--prompt", prompt, "--guidance", 50, "--npz", "all.npz", *QUICK)
        assert (code, err) == (0, "")
        with np.load("all.npz") as file:
            images.append(file["arr_0"].tobytes())
    code, _, err = run("sample", "sd", "--prompt", "cat", "--negative-prompt", "a " * 80, "--npz", "all.npz", *QUICK)
    assert (code, err) == (0, "") and len(set(images)) == 3


@pytest.mark.parametrize(
    "prompt, match",
    [
        ("a (black cat", "the prompt 'a (black cat' has ( that is not closed; write \\( for the character"),
        ("a black) cat", "has ) without (; write \\) for the character"), ("a [black) cat", "has ) without ("),
        ("a [black cat", "has [ that is not closed"), ("a (cat:nan)", "has a weight beyond 100"),
        ("(" * 3 + "cat:1e200" + ":1e200)" * 2 + ")", "has a weight beyond 100"),
        ("(cat:1e999)", "has a weight beyond 100"), ("(" * 5000 + "a" + ")" * 5000, "has a weight beyond 100"),
    ],
)  # fmt: skip
def test_weights_that_are_refused(refused, folder, prompt, match):
    refused("sample", "sd", "--prompt", prompt, *QUICK, match=match)
    refused("sample", "sd", "--prompt", "a", "--negative-prompt", prompt, *QUICK, match=match)


@pytest.mark.parametrize("command", [("sample", "sd"), ("explain", "sd", "--out", "x")])
def test_words_that_are_not_utf8(refused, folder, command):
    for option in ("--prompt", "--negative-prompt", "--to"):
        if option[2] != ("t" if command[0] == "sample" else "n"):
            more = ["--prompt", "a"] if option != "--prompt" else []
            refused(
                *command, *more, option, os.fsdecode(b"caf\xe9"), match=rf"{option} 'caf\udce9': is not valid UTF-8"
            )


def test_options_that_do_not_go_together(run, refused, folder):
    refused("sample", "sd", match="sd: holds a text-conditional U-Net, which needs a prompt; give --prompt")
    for option in ("--negative-prompt", "--height", "--width"):
        (folder / "model_index.json").rename(folder / "no_index.json")
        refused("sample", "sd", option, "8", match=f"{option} needs a prompt: give --prompt too")
        (folder / "no_index.json").rename(folder / "model_index.json")
    for more in (["--class", "cat"], ["--gif", "walk.gif"]):
        refused("sample", "sd", "--prompt", "a", *more, match="--class and --gif do not go with a prompt")
    for more in (["--height", "34"], ["--width", "0"], ["--width", "-8"], ["--height", "99999996"]):
        match = "pixels: give multiples of 4 up to 65536, such"
        refused("sample", "sd", "--prompt", "a", *more, *QUICK, match=match)
    for guidance in ("-1", "nan", "inf"):
        refused("sample", "sd", "--prompt", "a", "--guidance", guidance, *QUICK, match="guidance must be a number")
        assert "sampling" not in run("sample", "sd", "--prompt", "a", "--guidance", guidance, *QUICK)[1]
    refused("sample", "sd", "--prompt", "a", "--steps", 1001, match="steps must be an integer from 1 to the schedule's")


def index_with(**changes):
    def change(folder):
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def config_with(part, name="config.json", **changes):
    def change(folder):
        path = folder / part / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def settings_with(**changes):
    return config_with("tokenizer", "tokenizer_config.json", **changes)


def model_of(model):
    return config_with("tokenizer", "tokenizer.json", model=model)


def pickled(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def without(name):
    def change(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def narrower(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(path)
    arrays["encoder.conv_in.weight"] = arrays["encoder.conv_in.weight"][:, :2].copy()
    save_file(arrays, path)


BAD = {
    "is of a 'StableDiffusionXLPipeline', and only StableDiffusionPipeline":
        index_with(_class_name="StableDiffusionXLPipeline"),
    "is of a 'FluxPipeline', and only StableDiffusionPipeline": index_with(_class_name="FluxPipeline"),
    "model_index.json: unet is None, and only UNet2DConditionModel": index_with(unet=None),
    "text_encoder is ['transformers', 'T5EncoderModel'], and only CLIPTextModel":
        index_with(text_encoder=["transformers", "T5EncoderModel"]),
    "model_index.json: must be keys and values": lambda folder: (folder / "model_index.json").write_text("[]"),
    "has no model_index.json; give a Stable Diffusion folder": without("model_index.json"),
    "vae: no such folder; the pipeline is not whole": without("vae"),
    "text_encoder: no such folder": without("text_encoder"),
    "scheduler: no such folder": without("scheduler"),
    "tokenizer: no tokenizer.json and no vocab.json": without("tokenizer"),
    "unet/config.json: No such file": without("unet/config.json"),
    "diffusion_pytorch_model.bin: is a pickle, which can run any code": pickled,
    "model.safetensors: no such file": without("text_encoder/model.safetensors"),
    "encoder.conv_in.weight has shape (8, 3, 3, 2), not (8, 3, 3, 3)": narrower,
    "addition_embed_type = 'text_time' is not supported": config_with("unet", addition_embed_type="text_time"),
    "class_embed_type = 'timestep' is not supported": config_with("unet", class_embed_type="timestep"),
    "the key is not known": config_with("unet", surprise=1),
    "attention_head_dim = 3 is not supported: 3 heads do not divide 8": config_with("unet", attention_head_dim=3),
    "attention_head_dim = (4,) is not supported": config_with("unet", attention_head_dim=[4]),
    "down_block_types = ('DownBlock2D',) is not supported": config_with("unet", down_block_types=["DownBlock2D"]),
    "_class_name = 'VQModel' is not supported: only AutoencoderKL": config_with("vae", _class_name="VQModel"),
    "shift_factor = 0.1 is not supported: only None": config_with("vae", shift_factor=0.1),
    "norm_num_groups = 5 is not supported: it must divide every width": config_with("vae", norm_num_groups=5),
    "scaling_factor = nan is not supported": config_with("vae", scaling_factor=float("nan")),
    "model_type = 'bert' is not supported": config_with("text_encoder", model_type="bert"),
    "hidden_act = 'relu' is not supported: give 'quick_gelu' or 'gelu'": config_with("text_encoder", hidden_act="relu"),
    "num_attention_heads = 3 is not supported: it must divide 16": config_with("text_encoder", num_attention_heads=3),
    "parts do not fit: there are 99 tokens a text": settings_with(model_max_length=99),
    "special token '<pad>' is not in the vocabulary": settings_with(pad_token="<pad>"),
    "sample_size = (8,) is not supported: give an integer from 1 to 65536, or a list of two of them":
        config_with("unet", sample_size=[8]),
    "sample_size = (8, 8, 8) is not supported": config_with("vae", sample_size=[8, 8, 8]),
    "tokenizer: cannot convert float infinity to integer; copy": settings_with(model_max_length=-float("inf")),
    "is not a byte-pair encoding": model_of({"type": "WordPiece"}),
    "must map tokens to ids": model_of({"type": "BPE", "vocab": {"a": "b"}}),
    "has the merge ['a'], which is not a pair of tokens":
        model_of({"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}),
}  # fmt: skip


@pytest.mark.parametrize("match", BAD)
def test_a_folder_that_is_not_whole(refused, folder, match):
    BAD[match](folder)
    refused("sample", "sd", "--prompt", "a cat", *QUICK, match=match)


def test_an_inpainting_network_has_other_latents(tmp_path):
    small_pipeline.pipeline({"in_channels": 9}).save_pretrained(tmp_path)
    refused_call(open_pipeline, tmp_path, match="parts do not fit: there are latents of 4 channels")


def test_sixteen_bits_are_widened(folder):
    theirs = small_pipeline.pipeline()
    theirs.to(torch.float16).save_pretrained("half")
    ours = open_pipeline("half", "numpy")
    for net, its in ((ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.text_encoder, theirs.text_encoder)):
        name, p = next(iter(net.named_parameters()))
        want = its.state_dict()[name].float().numpy()
        np.testing.assert_array_equal(p.numpy(), np.moveaxis(want, 1, -1) if want.ndim == 4 else want)


def test_a_large_picture_is_decoded_in_tiles(folder, monkeypatch):
    from minidiff.sampling import text_to_image

    ours, z = open_pipeline(folder, "numpy"), np.random.default_rng(0).standard_normal((1, 8, 12, 4), np.float32)
    whole = decode(ours, z)
    monkeypatch.setattr(text_to_image, "MAX_UNTILED_PIXELS", 32 * 32)
    tiled = decode(ours, z)
    scaled = z / np.float32(ours.vae.config.scaling_factor)
    np.testing.assert_array_equal(tiled, ours.vae.decode_in_tiles(scaled))
    assert tiled.shape == whole.shape and (tiled != whole).any()


def test_pictures_and_masks_that_do_not_go(folder):
    ours, x0 = open_pipeline(folder, "numpy"), np.zeros((1, 32, 32, 3), np.float32)
    refused_call(image_to_image, ours, ["a"], x0[:, :30], match="30x32 pixels: give multiples")
    refused_call(image_to_image, ours, ["a", "b"], x0, match="1 images and 2 prompts")
    refused_call(lambda: image_to_image(ours, ["a"], x0, steps=0), match="steps must be an integer from 1")
    refused_call(inpaint, ours, ["a"], x0, np.ones((32, 32), bool), match=r"the mask has shape \(32, 32\)")
    refused_call(image_to_image, ours, ["a"], x0, 1.5, match="strength must be from 0 to 1, not 1.5")
    euler = load_sampler(folder / "scheduler", "euler")
    between = dict(steps=7, sampler=type(euler)("euler", "linspace", clip=None))
    refused_call(
        lambda: inpaint(ours, ["a"], x0, np.ones((32, 32, 1), bool), **between),
        match="has noise levels between whole timesteps",
    )


def test_openai_s_list_of_merges(tmp_path):
    import gzip

    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress(b'"bpe_simple_vocab_16e6.txt#version: 0.2\nc a\nca t</w>\n'))
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("cat!") == [tokenizer.vocab["cat</w>"], tokenizer.vocab["!</w>"]] == [513, 256]
    for damaged in (b"", b"no gzip", path.read_bytes()[:20]):
        path.write_bytes(damaged)
        refused_call(load_tokenizer, path, match="bpe.txt.gz: is no list of merges|has the merge")


def test_vocabulary_and_merges_in_two_files(folder):
    """As transformers saved them before there was tokenizer.json."""
    saved = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(saved["vocab"]))
    refused_call(load_tokenizer, folder / "tokenizer", match="merges.txt: No such file")
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, saved["merges"])))
    assert load_tokenizer(folder / "tokenizer")(["a black cat"])[0][:5].tolist() == [519, 320, 517, 513, 520]
