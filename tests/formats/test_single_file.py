"""Single-file checkpoints: the names, what is read from shapes, round trips, and files that are refused."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from small_runs import refused, tree
from small_single_file import arrays_of, raw, saved, write_raw
from small_text import new_text_run

import minidiff as md
from minidiff.errors import MinidiffWarning
from minidiff.formats.networks import file_shape
from minidiff.formats.single_file.configs import infer_configs
from minidiff.formats.single_file.keys import places, shape_in_file
from minidiff.formats.single_file.reading import open_single_file
from minidiff.formats.single_file.writing import export_single_file, import_single_file
from minidiff.formats.tokenizer_files import clip_tokenizer
from minidiff.formats.weights import copy_arrays, open_safetensors
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.vae import VAE

WIDTHS = (128, 256, 512, 512)
AUTOENCODER = VAEConfig(
    block_out_channels=WIDTHS, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
    up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
REAL = {  # Stable Diffusion's own sizes, as in its folders
    "1": (
        TextUNetConfig(cross_attention_dim=768, sample_size=64),
        TextEncoderConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    ),
    "2": (
        TextUNetConfig(
            cross_attention_dim=1024, sample_size=64, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        TextEncoderConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
        ),
    ),
}


def real_shapes(version):
    """Key -> shape of each network of a file of real size."""
    unet, text = REAL[version]
    networks = (TextUNet(unet, None, "numpy"), VAE(AUTOENCODER, None, "numpy"), TextEncoder(text, None, "numpy"))
    found = []
    for network in networks:
        shapes = {name: file_shape(p.shape) for name, p in network.named_parameters()}
        found.append({})
        for key, names in places(network).items():
            first, *rest = shapes[names[0]]
            found[-1][key] = shape_in_file(key, (first * len(names), *rest))
    return found


# Arrays of v1-5-pruned-emaonly.safetensors and v2-1_512-ema-pruned.safetensors, one of each kind
PUBLISHED = {
    "1": {
        "model.diffusion_model.time_embed.2.weight": (1280, 1280),
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.input_blocks.5.1.proj_in.weight": (640, 640, 1, 1),
        "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "model.diffusion_model.middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.mid.block_2.norm1.weight": (512,),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.norm_out.weight": (128,),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    },
    "2": {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": (320, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.token_embedding.weight": (49408, 1024),
        "cond_stage_model.model.ln_final.bias": (1024,),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": (3072,),
        "cond_stage_model.model.transformer.resblocks.0.attn.out_proj.weight": (1024, 1024),
        "cond_stage_model.model.transformer.resblocks.0.ln_1.weight": (1024,),
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_proj.bias": (1024,),
    },
}


@pytest.mark.parametrize("version", REAL)
def test_names_and_shapes_of_published_files(version):
    unet, vae, text = real_shapes(version)
    every = unet | vae | text
    assert {key: every.get(key) for key in PUBLISHED[version]} == PUBLISHED[version]
    assert (len(unet), len(vae), len(text)) == (686, 248, {"1": 196, "2": 23 * 12 + 4}[version])


@pytest.mark.parametrize("version", REAL)
def test_the_sizes_are_read_from_the_shapes(version):
    unet, vae, text = real_shapes(version)
    configs = infer_configs(unet | vae | text, "epsilon")
    heads = REAL[version][0].heads
    assert configs["unet"].heads == heads
    assert (configs["unet"], configs["text_encoder"]) == REAL[version] and configs["vae"] == AUTOENCODER
    large = infer_configs(unet | vae | text, "v_prediction")
    assert (large["unet"].sample_size, large["vae"].sample_size) == {"1": (64, 512), "2": (96, 768)}[version]


@pytest.fixture(scope="module", params=["1", "2"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def made(version, tmp_path_factory):
    """A folder, and the single file of it."""
    folder = saved(tmp_path_factory.mktemp("made") / "folder", version)
    assert export_single_file(folder, folder.parent / "one.safetensors")
    return folder, folder.parent / "one.safetensors"


@pytest.fixture
def one(made, tmp_path):
    """A copy of the file, to be changed."""
    return Path(shutil.copy(made[1], tmp_path))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A file of 1.x."""
    folder = saved(tmp_path_factory.mktemp("first") / "folder", "1")
    export_single_file(folder, folder.parent / "one.safetensors")
    return folder.parent / "one.safetensors"


def in_dtype(folder, dtype):
    """The same folder, its weights cut to the upper half of float32 or rounded to float16."""
    for path in folder.rglob("*.safetensors"):
        arrays = {}
        for name, (_, shape, data) in arrays_of(path).items():
            a = np.frombuffer(data, np.float32)
            a = a.astype(np.float16) if dtype == "F16" else (a.view(np.uint32) >> 16).astype(np.uint16)
            arrays[name] = (dtype, shape, a.tobytes())
        write_raw(path, arrays)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_from_a_folder_to_a_file_and_back(version, dtype, tmp_path):
    folder = saved(tmp_path / "folder", version)
    if dtype != "F32":
        in_dtype(folder, dtype)
    assert export_single_file(folder, tmp_path / "one.safetensors")
    file = import_single_file(tmp_path / "one.safetensors", tmp_path / "again")
    assert file.left_out == [] and file.version == f"{version}.x"
    for path in sorted(folder.rglob("*.*")):
        again = tmp_path / "again" / path.relative_to(folder)
        if path.suffix == ".safetensors":
            assert arrays_of(again) == arrays_of(path)
            assert {entry[0] for entry in arrays_of(again).values()} == {dtype}
        elif path.suffix == ".json":
            assert json.loads(again.read_text()) == json.loads(path.read_text())
        else:
            assert again.read_bytes() == path.read_bytes()
    assert {p.name for p in folder.rglob("*")} == {p.name for p in (tmp_path / "again").rglob("*")}


def test_a_file_opens_as_its_folder_does(made):
    folder, path = made
    pipelines = md.open_pipeline(folder, "numpy"), md.open_pipeline(path, "numpy")
    for part in ("unet", "vae", "text_encoder"):
        first, second = (getattr(pipeline, part) for pipeline in pipelines)
        assert first.config == second.config
        for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            np.testing.assert_array_equal(a.data, b.data, err_msg=name, strict=True)
    first, second = pipelines
    assert (first.sampler, first.tokenizer.special) == (second.sampler, second.tokenizer.special)
    np.testing.assert_array_equal(first.schedule.betas, second.schedule.betas)


def test_what_training_leaves_in_a_file_is_left_out(one, version):
    extra = {
        "model_ema.decay": ("F32", [], bytes(4)),
        "model_ema.num_updates": ("I32", [], bytes(4)),
        "model_ema.diffusion_modeltime_embed0weight": ("F32", [2], bytes(8)),
        "alphas_cumprod": ("F64", [2], bytes(16)),
        "sqrt_one_minus_alphas_cumprod": ("F32", [2], bytes(8)),
        "sqrt_recipm1_alphas_cumprod": ("F32", [2], bytes(8)),
        "posterior_mean_coef1": ("F32", [2], bytes(8)),
        "first_stage_model.loss.discriminator.main.0.weight": ("F32", [2], bytes(8)),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", [1, 77], bytes(8 * 77)),
        "cond_stage_model.model.text_projection": ("F32", [2], bytes(8)),
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": ("F32", [2], bytes(8)),
        "cond_stage_model.logit_scale": ("F32", [], bytes(4)),
    }
    arrays = arrays_of(one)
    write_raw(one, extra | arrays, {"modelspec.prediction_type": "epsilon"})
    assert sorted(open_single_file(one).left_out) == sorted(extra)  # and no warning, which would be an error
    write_raw(one, arrays | {"embedding_manager.a": extra["model_ema.decay"]}, {"modelspec.prediction_type": "epsilon"})
    with pytest.warns(
        MinidiffWarning, match=r"one.safetensors: left out 1 of \d+ arrays, of unknown names: embedding_manager.a$"
    ):
        assert open_single_file(one).left_out == ["embedding_manager.a"]


def test_arrays_that_are_missing_surplus_or_of_another_shape_are_named_and_counted(first, tmp_path):
    path, arrays = tmp_path / "one.safetensors", arrays_of(first)
    some = [name for name in arrays if ".output_blocks.2.0." in name]
    write_raw(path, {name: a for name, a in arrays.items() if name not in some})
    match = rf"one.safetensors: {len(some)} of {len(arrays)} arrays missing: model.diffusion_model.output_blocks.2.0"
    refused(open_single_file, path, match=match + f".* and {len(some) - 3} more; copy it again")
    surplus = "model.diffusion_model.label_emb.0.0.weight"
    write_raw(path, arrays | {surplus: ("F32", [1], bytes(4))})
    refused(open_single_file, path, match=rf"1 of \d+ arrays are of no layer of Stable Diffusion: {surplus}; give")
    name = "model.diffusion_model.output_blocks.0.0.in_layers.2.weight"
    write_raw(path, arrays | {name: ("F32", [1, 2], bytes(8))})
    refused(
        open_single_file,
        path,
        match=rf"1 of \d+ arrays have another shape: {name} \(1, 2\), not \(64, 128, 3, 3\); copy",
    )


@pytest.mark.parametrize(
    "names, match",
    [
        (
            ["lora_unet_mid_block_attentions_0.lora_down.weight"],
            r"is a LoRA; sample with it: minidiff sample MODEL --lo",
        ),
        (["unet.mid_block.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
        (["model.diffusion_model.a", "conditioner.embedders.0.transformer.b"], "is Stable Diffusion XL, which is not"),
        (["model.diffusion_model.joint_blocks.0.x_block.a"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.proj.weight"], "is Flux"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "is one network of a diffusers folder; give"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "is one network of a diffusers folder; give the folder"),
        (
            ["first_stage_model.encoder.conv_in.weight"],
            r"has no U-Net \(no model.diffusion_model..*\), but first_stage",
        ),
        (["model.diffusion_model.out.2.bias"], r"has no autoencoder \(no first_stage_model"),
        (["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"], "has no text encoder"),
        ([], "has no U-Net .*but nothing; give a whole Stable Diffusion 1.x or 2.x checkpoint"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, names, match):
    write_raw(tmp_path / "other.safetensors", {name: ("F32", [1], bytes(4)) for name in names})
    refused(open_single_file, tmp_path / "other.safetensors", match=f"other.safetensors: {match}")


@pytest.mark.parametrize(
    "inputs, kind", [(9, "an inpainting model"), (8, "an image editing model"), (3, "another kind of model")]
)
def test_other_inputs_are_refused_by_name(first, tmp_path, inputs, kind):
    path, name = tmp_path / "one.safetensors", "model.diffusion_model.input_blocks.0.0.weight"
    write_raw(path, arrays_of(first) | {name: ("F32", [32, inputs, 3, 3], bytes(32 * inputs * 36))})
    refused(open_single_file, path, match=f"its U-Net takes {inputs} channels: it is {kind}, and only text-to-image")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file(first, tmp_path, keep):
    path, data = tmp_path / "one.safetensors", first.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    before = tree(tmp_path)
    refused(import_single_file, path, tmp_path / "out", match="one.safetensors: damaged or not safetensors")
    assert tree(tmp_path) == before


def test_a_file_that_shrinks_while_it_is_imported_leaves_nothing(first, tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    path.write_bytes(first.read_bytes())
    file = open_single_file(path)
    path.write_bytes(first.read_bytes()[:-1000])
    monkeypatch.setattr("minidiff.formats.single_file.writing.open_single_file", lambda *_: file)
    before = tree(tmp_path)
    refused(import_single_file, path, tmp_path / "out", match="damaged or not safetensors")
    assert tree(tmp_path) == before


HOSTILE = {
    "conv": "model.diffusion_model.input_blocks.1.0.out_layers.3.weight",
    "depth": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "tokens": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "levels": "first_stage_model.encoder.conv_in.weight",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("shape", [[], [0], [1], [2**40, 0, 3, 3], [2**40, 0], [0, 2**62], [16384, 0, 1, 1], [0] * 64])
def test_sizes_that_a_file_claims_take_no_memory(first, tmp_path, name, shape):
    path = tmp_path / "one.safetensors"
    write_raw(path, arrays_of(first) | {name: ("F32", shape, bytes(4 * int(np.prod(shape, dtype=object))))})
    tracemalloc.start()
    refused(open_single_file, path, match="one.safetensors: ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "x", "", "0.0.0"])
def test_names_with_absurd_numbers(first, tmp_path, number):
    extra = {
        f"model.diffusion_model.input_blocks.{number}.0.op.weight": ("F32", [1], bytes(4)),
        f"first_stage_model.encoder.down.{number}.block.0.conv1.weight": ("F32", [1], bytes(4)),
    }
    write_raw(tmp_path / "one.safetensors", arrays_of(first) | extra)
    refused(open_single_file, tmp_path / "one.safetensors", match="one.safetensors: ")


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    for function in (open_single_file, md.open_pipeline):
        refused(function, tmp_path / "model.ckpt", match="model.ckpt: is a pickle, .*a .ckpt by from_single_file")


def test_names_without_text_model_and_attention_of_linear_layers(first, tmp_path):
    """As some programs write them."""
    arrays = {}
    for name, (dtype, shape, data) in arrays_of(first).items():
        linear = ".attn_1." in name and len(shape) == 4
        arrays[name.replace(".text_model.", ".")] = (dtype, shape[:2] if linear else shape, data)
    write_raw(tmp_path / "one.safetensors", arrays)
    assert arrays.keys() != arrays_of(first).keys()
    theirs, ours = (md.open_pipeline(path, "numpy") for path in (first, tmp_path / "one.safetensors"))
    for part in ("vae", "text_encoder"):
        for a, b in zip(getattr(theirs, part).parameters(), getattr(ours, part).parameters(), strict=True):
            np.testing.assert_array_equal(a.data, b.data)


def test_the_prediction_type(one, version, made, tmp_path):
    arrays = arrays_of(one)
    predicted = lambda **options: open_single_file(one, **options).scheduler.value["prediction_type"]  # noqa: E731
    assert raw(one)[0]["__metadata__"]["modelspec.prediction_type"] == "epsilon"
    assert predicted() == "epsilon" and predicted(prediction_type="v_prediction") == "v_prediction"
    write_raw(one, arrays, {"modelspec.prediction_type": "v"})
    assert predicted() == "v_prediction" and predicted(prediction_type="epsilon") == "epsilon"
    assert predicted(config=made[0]) == "epsilon"
    assert predicted(config=made[0], prediction_type="v_prediction") == "v_prediction"
    write_raw(one, arrays)
    if version == "1":
        assert predicted() == "epsilon"
    else:
        with pytest.warns(
            MinidiffWarning, match="Stable Diffusion 2.x, and nothing in it says whether it predicts eps"
        ):
            assert predicted() == "epsilon"
    import_single_file(one, tmp_path / "out", prediction_type="v_prediction")
    assert md.load_schedule(tmp_path / "out").prediction_type == "v_prediction"
    assert export_single_file(tmp_path / "out", tmp_path / "two.safetensors")
    assert raw(tmp_path / "two.safetensors")[0]["__metadata__"]["modelspec.prediction_type"] == "v"


def test_in_float16(made, tmp_path):
    folder, path = made
    export_single_file(folder, tmp_path / "half.safetensors", half=True)
    whole, half = arrays_of(path), arrays_of(tmp_path / "half.safetensors")
    assert whole.keys() == half.keys()
    for name, (dtype, shape, data) in half.items():
        want = np.frombuffer(whole[name][2], np.float32).astype(np.float16)
        assert (dtype, shape, data) == ("F16", whole[name][1], want.tobytes())


def test_an_export_never_overwrites_its_input_and_leaves_nothing_when_it_fails(version, tmp_path):
    folder = saved(tmp_path / "folder", version)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    refused(export_single_file, folder, path, match="cannot write .*: it is the input")
    refused(export_single_file, folder, folder, match="cannot write .*: it is a folder")
    refused(export_single_file, folder, tmp_path / "none" / "one.safetensors", match="cannot write .*: no such folder")
    arrays = arrays_of(path)
    dtype, shape, data = arrays["conv_in.bias"]
    arrays["conv_in.bias"] = (dtype, shape, np.float32(65520).tobytes() + data[4:])
    write_raw(path, arrays)
    before = tree(tmp_path)
    match = "conv_in.bias|input_blocks.0.0.bias has values beyond float16's 65504"
    refused(lambda: export_single_file(folder, tmp_path / "one.safetensors", half=True), match=match)
    assert tree(tmp_path) == before
    refused(export_single_file, path, tmp_path / "one.safetensors", match="is a file already; give a Stable Diffusion")
    arrays.pop("conv_in.bias")
    write_raw(path, arrays)
    refused(export_single_file, folder, tmp_path / "one.safetensors", match="weights do not fit: missing conv_in.bias")


def test_projections_of_several_dtypes_are_not_joined(tmp_path):
    folder = saved(tmp_path / "folder", "2")
    path = folder / "text_encoder" / "model.safetensors"
    arrays, name = arrays_of(path), "text_model.encoder.layers.1.self_attn.k_proj.bias"
    arrays[name] = ("F16", arrays[name][1], bytes(len(arrays[name][2]) // 2))
    write_raw(path, arrays)
    one = tmp_path / "one.safetensors"
    refused(export_single_file, folder, one, match="resblocks.1.attn.in_proj_bias is of several dtypes")
    export_single_file(folder, one, half=True)


def test_a_file_of_other_sizes_needs_the_folder(first, tmp_path):
    """A small vocabulary, which is not CLIP's, and four norm groups."""
    new_text_run(tmp_path / "run", latent=True)
    assert not export_single_file(tmp_path / "run", tmp_path / "one.safetensors")
    refused(open_single_file, tmp_path / "one.safetensors", match="one.safetensors: .*--config FOLDER")
    import_single_file(tmp_path / "one.safetensors", tmp_path / "again", tmp_path / "run")
    theirs, ours = (md.open_pipeline(tmp_path / name, "numpy") for name in ("run", "again"))
    assert theirs.tokenizer.vocab == ours.tokenizer.vocab
    for a, b in zip(theirs.unet.parameters(), ours.unet.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    refused(import_single_file, first, tmp_path / "out", tmp_path / "run", match="first.*: .* missing|another shape")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_on_pixels_has_no_single_file(tmp_path):
    new_text_run(tmp_path / "run")
    refused(export_single_file, tmp_path / "run", tmp_path / "one.safetensors", match="run: its U-Net works on pixels")


def test_copying_holds_one_array_at_a_time(tmp_path):
    size = 1 << 20
    arrays = {f"a{i}": ("F32", [size // 4], bytes(size)) for i in range(32)}
    write_raw(tmp_path / "from.safetensors", arrays)
    stored, _ = open_safetensors(tmp_path / "from.safetensors")
    tracemalloc.start()
    copy_arrays(tmp_path / "to.safetensors", {name: [a] for name, a in stored.items()}, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert arrays_of(tmp_path / "to.safetensors") == arrays
    assert peak <= 2.5 * size


def test_arrays_of_16_bits_come_last(tmp_path):
    """So that float32 begins at multiples of four bytes, as readers that map the file expect."""
    arrays = {"a": ("F16", [1], bytes(2)), "b": ("F32", [1], bytes(4)), "c": ("BF16", [3], bytes(6))}
    write_raw(tmp_path / "from", arrays)
    stored, _ = open_safetensors(tmp_path / "from")
    copy_arrays(tmp_path / "to", {name: [a] for name, a in stored.items()}, {"k": "v"})
    header, _ = raw(tmp_path / "to")
    assert list(header) == ["__metadata__", "b", "a", "c"] and header["__metadata__"] == {"k": "v"}
    assert arrays_of(tmp_path / "to") == arrays


def test_clips_vocabulary():
    """Ids as CLIP's own tokenizer gives them."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer.vocab) == 49408 and tokenizer.length == 77
    assert tokenizer(["a black  cat!"])[0, :7].tolist() == [49406, 320, 1449, 2368, 256, 49407, 49407]
    assert clip_tokenizer("!")(["a black cat"])[0, :7].tolist() == [49406, 320, 1449, 2368, 49407, 0, 0]
