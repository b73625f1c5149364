"""Networks and schedules as folders of files, and files that are written whole or not at all."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_runs import network, tree

import minidiff as md
from minidiff.errors import MinidiffError
from minidiff.runs import checkpoint
from minidiff.runs.checkpoint import WEIGHTS, load_unet, save_pipeline, save_unet
from minidiff.runs.files import LARGEST_JSON, read_json, replace_file

CONFIGS = {
    "plain": network(),
    "grey, not square, attention": network(
        sample_size=(4, 8), block_out_channels=(8, 12), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, add_attention=True,
    ),
    "labels, colours": network(num_class_embeds=11, in_channels=3, out_channels=3, sample_size=None),
}  # fmt: skip


def unet_of(config, seed=0, backend="numpy"):
    return md.UNet(config, np.random.default_rng(seed), backend)


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder."""
    save_unet(unet_of(network()), tmp_path / "net" / "unet")
    save_pipeline(tmp_path / "net", md.cosine_schedule(20, "v_prediction"))
    return tmp_path / "net"


def refused(function, *args, match):
    with pytest.raises(MinidiffError, match=match) as caught:
        function(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(tmp_path, name, backend):
    unet = unet_of(CONFIGS[name], backend=backend.name)
    md.save_unet(unet, tmp_path)
    again = md.load_unet(tmp_path, backend.name)
    assert again.config == unet.config
    assert again.backend is backend
    for key, a in unet.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], a)
    md.save_unet(again, str(tmp_path / "twin"))
    assert tree(tmp_path / "twin") == {k: a for k, a in tree(tmp_path).items() if not k.startswith("twin")}


def test_numba_is_the_default(folder):
    assert load_unet(folder).backend.name == "numba"


def test_convolutions_stand_as_oihw(tmp_path):
    unet = unet_of(network(in_channels=3))
    save_unet(unet, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors["conv_in.weight"].shape == (8, 3, 3, 3)
    own = unet.state_dict()
    np.testing.assert_array_equal(tensors["conv_in.weight"][5, 2], own["conv_in.weight"][5, :, :, 2])
    np.testing.assert_array_equal(tensors["time_embedding.linear_1.weight"], own["time_embedding.linear_1.weight"])


def test_other_weights_can_be_saved(tmp_path):
    unet = unet_of(network())
    doubled = {key: 2 * a for key, a in unet.state_dict().items()}
    save_unet(unet, tmp_path, doubled)
    np.testing.assert_array_equal(load_unet(tmp_path, "numpy").conv_in.bias.numpy(), doubled["conv_in.bias"])


def test_a_folder_may_be_the_pipeline_or_its_part(folder):
    whole, part = load_unet(folder, "numpy"), load_unet(folder / "unet", "numpy")
    np.testing.assert_array_equal(whole.conv_in.weight.numpy(), part.conv_in.weight.numpy())
    for place in (folder, folder / "scheduler", str(folder)):
        schedule = md.load_schedule(place)
        assert (len(schedule), schedule.prediction_type, schedule.name) == (20, "v_prediction", "squaredcos_cap_v2")


@pytest.mark.parametrize("load", [load_unet, md.load_schedule])
def test_no_such_folder(tmp_path, load):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file", tmp_path / "file" / "below"):
        refused(load, place, match=f"{place}: no (unet|scheduler)/.*give a run or a diffusers folder")


def test_weights_are_missing(folder):
    (folder / "unet" / WEIGHTS).unlink()
    refused(load_unet, folder, match=f"{WEIGHTS}: no such file")
    (folder / "unet" / WEIGHTS).mkdir()
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_truncated_weights(folder, keep):
    path = folder / "unet" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors.*copy or train it again")


@pytest.mark.parametrize("length", [2**20, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header(folder, length):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors")


def test_pickle_is_not_read(folder):
    """A PyTorch checkpoint under the name of a safetensors one."""
    (folder / "unet" / WEIGHTS).write_bytes(b"\x80\x04\x95" + bytes(1000))
    refused(load_unet, folder, match="damaged or not safetensors")


def raw(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "dtype, size", [("BF16", 2), ("F16", 2), ("F64", 8), ("I32", 4), ("F8_E4M3", 1), ("BOOL", 1), ("C64", 8)]
)
def test_other_numbers_are_named(folder, dtype, size):
    header = {"conv_in.bias": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
    (folder / "unet" / WEIGHTS).write_bytes(raw(header, bytes(2 * size)))
    refused(load_unet, folder, match=f"conv_in.bias is {dtype}, and only F32 is read")


@pytest.mark.parametrize(
    "shape, size", [([2**62, 2**62, 0], 0), ([1] * 70, 4), ([2**40], 4), ([-1], 4), ([1.5], 4), ([0], 0), ([], 4)]
)
def test_absurd_shapes(folder, shape, size):
    header = {"conv_in.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    (folder / "unet" / WEIGHTS).write_bytes(raw(header, bytes(size)))
    refused(load_unet, folder, match="damaged or not safetensors|copy both files again")


def change_weights(folder, change):
    tensors = load_file(folder / "unet" / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / "unet" / WEIGHTS)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda tensors: tensors.pop("conv_in.weight"), "weights do not fit: missing conv_in.weight"),
        (lambda tensors: tensors.update(extra=np.zeros(1, np.float32)), "surplus extra"),
        (
            lambda tensors: tensors.update({"conv_in.bias": np.zeros(9, np.float32)}),
            r"conv_in.bias has shape \(9,\), not \(8,\)",
        ),
        (
            lambda tensors: tensors.update({"conv_in.weight": np.zeros((8, 1, 3, 5), np.float32)}),
            "conv_in.weight has shape",
        ),
    ],
)
def test_weights_of_another_network(folder, change, match):
    change_weights(folder, change)
    refused(load_unet, folder, match=f"{WEIGHTS}: .*{match}")


def change_config(folder, **changes):
    path = folder / "unet" / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    "name, value",
    [
        ("block_out_channels", [7]), ("block_out_channels", 8), ("block_out_channels", []), ("in_channels", "1"),
        ("in_channels", 0), ("in_channels", True), ("layers_per_block", 1.0), ("layers_per_block", 10**6),
        ("norm_num_groups", 3), ("norm_eps", -1), ("norm_eps", float("nan")), ("dropout", 2),
        ("attention_head_dim", "8"), ("sample_size", [4, 4, 4]), ("sample_size", -4), ("freq_shift", float("inf")),
        ("act_fn", "mish"), ("center_input_sample", True), ("time_embedding_type", "fourier"),
        ("down_block_types", ["SkipDownBlock2D"]), ("down_block_types", [["DownBlock2D"]]), ("unheard_of", 1),
        ("_class_name", "UNet2DConditionModel"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_supported_is_named(folder, name, value):
    change_config(folder, **{name: value})
    refused(load_unet, folder, match=f"config.json: U-Net configuration: {name if name[0] != 'b' else '.*'}")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 64},
        {"num_class_embeds": 1_000_000},
        {
            "block_out_channels": [16384] * 12,
            "down_block_types": ["DownBlock2D"] * 12,
            "up_block_types": ["UpBlock2D"] * 12,
        },
    ],
)
def test_a_network_beyond_its_weights_is_not_built(folder, changes, monkeypatch):
    """The largest of these would take terabytes."""
    change_config(folder, **changes)
    monkeypatch.setattr(checkpoint, "UNet", None)
    refused(load_unet, folder, match="config.json: tells of [0-9]+ weights or more")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"nan?", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"[]", b"null", b'"x"']
)
@pytest.mark.parametrize("part, file", [("unet", "config.json"), ("scheduler", "scheduler_config.json")])
def test_damaged_configs(folder, part, file, content):
    (folder / part / file).write_bytes(content)
    refused(load_unet if part == "unet" else md.load_schedule, folder, match=f"{file}: ")


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_train_timesteps", 0), ("num_train_timesteps", 10**9), ("beta_schedule", "laplace"),
        ("prediction_type", "flow"), ("variance_type", "learned_range"), ("trained_betas", [2.0]),
        ("rescale_betas_zero_snr", "yes"),
    ],
)  # fmt: skip
def test_a_scheduler_value_that_is_not_supported_is_named(folder, name, value):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    refused(md.load_schedule, folder, match=f"scheduler_config.json: .*({name}|betas)")


def test_a_huge_config_is_not_read(folder):
    with open(folder / "unet" / "config.json", "wb") as file:
        file.truncate(LARGEST_JSON + 1)
    refused(load_unet, folder, match="config.json: larger than any configuration")


def test_json_errors(tmp_path):
    refused(read_json, tmp_path / "missing.json", dict, match="missing.json: No such file")
    refused(read_json, tmp_path, dict, match="Is a directory|Permission denied")


@given(data=st.data())
def test_any_damage_is_refused_or_harmless(tmp_path_factory, data):
    """Some bytes of the weights' header, or of config.json, are others."""
    folder = tmp_path_factory.mktemp("damaged")
    save_unet(unet_of(network()), folder)
    path = folder / data.draw(st.sampled_from([WEIGHTS, "config.json"]))
    damaged = bytearray(path.read_bytes())
    limit = min(len(damaged), 4000)
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, limit - 1), st.integers(0, 255)), min_size=1, max_size=3)
    ):
        damaged[place] = byte
    path.write_bytes(damaged)
    try:
        load_unet(folder, "numpy")
    except MinidiffError as error:
        assert "\n" not in str(error)


# Files whole or not at all


def test_replace_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in ("one", "two"):
        replace_file(path, lambda part, content=content: part.write_text(content))
        assert tree(tmp_path) == {"new": None, "new/folder": None, "new/folder/file": content.encode()}


def test_a_leftover_part_is_written_over(tmp_path):
    (tmp_path / ".file.part").write_text("much longer than what comes")
    replace_file(tmp_path / "file", lambda part: part.write_text("short"))
    assert tree(tmp_path) == {"file": b"short"}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    def write(part):
        part.write_text("half")
        if call == "write":
            full()

    if call != "write":
        monkeypatch.setattr(os, call, full)
    refused(replace_file, path, write, match="file: cannot be written .*No space left on device")
    assert tree(tmp_path) == {"file": b"before"}


def test_an_interruption(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, write)
    assert tree(tmp_path) == {"file": b"before"}


@pytest.mark.parametrize("place", ["file/below", "file/below/deeper", "folder", "x" * 300])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("before")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    before = tree(tmp_path)
    refused(replace_file, tmp_path / place, lambda part: part.write_text("x"), match="cannot be written")
    assert tree(tmp_path) == before


def test_saving_over_a_file(tmp_path):
    (tmp_path / "net").write_text("mine")
    refused(save_unet, unet_of(network()), tmp_path / "net", match="cannot be written")
    assert tree(tmp_path) == {"net": b"mine"}


@pytest.mark.parametrize("name", ["a b", "[bold]", "é ☃ 猫", "new\nline", "-n", "%s", "'\"", "x" * 200])
def test_odd_names(tmp_path, name):
    save_unet(unet_of(network()), tmp_path / name)
    assert load_unet(tmp_path / name, "numpy").config == network()
    shutil.rmtree(tmp_path / name / "none", ignore_errors=True)
    (tmp_path / name / WEIGHTS).write_bytes(b"")
    with pytest.raises(MinidiffError, match="damaged"):
        load_unet(Path(tmp_path / name), "numpy")
