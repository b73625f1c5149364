"""Folders that are damaged, malicious or of another kind: refused in one line that names the file and what to do."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_runs import network, refused, unet_of

import minidiff as md
from minidiff.errors import MinidiffError
from minidiff.files import LARGEST_JSON
from minidiff.formats import networks
from minidiff.formats.networks import WEIGHTS, load_unet, save_unet
from minidiff.formats.weights import INDEX


@pytest.mark.parametrize("load", [load_unet, md.load_schedule])
def test_no_such_folder(tmp_path, load):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file", tmp_path / "file" / "below"):
        refused(
            load,
            place,
            match=f"{place}: no (such folder; give a run|(unet|scheduler)/.*give a run or a diffusers folder)",
        )


def test_weights_are_missing(folder):
    (folder / "unet" / WEIGHTS).unlink()
    refused(load_unet, folder, match=f"{WEIGHTS}: no such file")
    (folder / "unet" / WEIGHTS).mkdir()
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors")


def test_weights_from_a_pipe_are_not_waited_for(folder):
    (folder / "unet" / WEIGHTS).unlink()
    os.mkfifo(folder / "unet" / WEIGHTS)
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors .it is no regular file")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(folder, value):
    path = folder / "unet" / WEIGHTS
    arrays = load_file(path)
    arrays["conv_in.weight"].ravel()[-1] = value
    save_file(arrays, path)
    refused(load_unet, folder, match=f"{WEIGHTS}: conv_in.weight has values that are not finite; copy or train it")


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


def test_a_pickle_of_another_name_is_not_read(folder):
    """A PyTorch checkpoint under the name of a safetensors one."""
    (folder / "unet" / WEIGHTS).write_bytes(b"\x80\x04\x95" + bytes(1000))
    refused(load_unet, folder, match="damaged or not safetensors")


def raw(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("dtype, size", [("U16", 2), ("F64", 8), ("I32", 4), ("F8_E4M3", 1), ("BOOL", 1), ("C64", 8)])
def test_other_numbers_are_named(folder, dtype, size):
    header = {"conv_in.bias": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
    (folder / "unet" / WEIGHTS).write_bytes(raw(header, bytes(2 * size)))
    refused(load_unet, folder, match=f"conv_in.bias is {dtype}, and only F32, F16, BF16 are read")


@pytest.mark.parametrize(
    "shape, size", [([2**62, 2**62, 0], 0), ([1] * 70, 4), ([2**40], 4), ([-1], 4), ([1.5], 4), ([0], 0), ([], 4)]
)
def test_absurd_shapes(folder, shape, size):
    header = {"conv_in.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    (folder / "unet" / WEIGHTS).write_bytes(raw(header, bytes(size)))
    refused(load_unet, folder, match="damaged or not safetensors|copy both files again")


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8), "b": entry(4, 12)},  # they overlap
        {"a": entry(0, 8), "b": entry(12, 20)},  # a hole
        {"a": entry(0, 8)},  # surplus data
        {"a": entry(0, 20)},  # longer than its shape
        {"a": entry(0, 8), "b": entry(8, 20, [5], "F16")},
        {"a": entry(20, 0)},
        {"a": entry(-8, 0), "b": entry(0, 20, [5])},
        {"a": entry(0, 20, [True, 5])},
        {"a": entry(0, 20, [5.0])},
        {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20, 20]}},
        {"a": {"dtype": "F32", "shape": [5]}},
        {"a": {"shape": [5], "data_offsets": [0, 20]}},
        {"a": [0, 20]},
        {"a": entry(0, 20, [5]), "__metadata__": ["text"]},
        {"a": entry(0, 20, [5]), "__metadata__": {"step": 3}},
        ["a"],
        {},
    ],
)
def test_headers_that_contradict_themselves_or_the_data(folder, header):
    (folder / "unet" / WEIGHTS).write_bytes(raw(header, bytes(20)))
    refused(load_unet, folder, match=f"{WEIGHTS}: damaged or not safetensors")


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
        ("act_fn", "mish"), ("center_input_sample", 1), ("time_embedding_type", "fourier"),
        ("down_block_types", ["SkipDownBlock2D"]), ("down_block_types", [["DownBlock2D"]]), ("unheard_of", 1),
        ("_class_name", "UNet2DConditionModel"), ("downsample_type", None), ("resnet_time_scale_shift", "spatial"),
        ("mid_block_scale_factor", 0), ("time_embedding_dim", 10**9), ("attn_norm_num_groups", 3),
    ],
)  # fmt: skip
def test_a_value_that_is_not_supported_is_named(folder, name, value):
    change_config(folder, **{name: value})
    refused(load_unet, folder, match=f"config.json: UNet2DModel configuration: {name if name[0] != 'b' else '.*'}")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 64},
        {"num_class_embeds": 1_000_000},
        {"in_channels": 1024},
        {"time_embedding_dim": 65536},
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
    monkeypatch.setattr(networks, "UNet", None)
    refused(load_unet, folder, match="config.json: implies at least [0-9,]+ parameters")


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
        ("prediction_type", "flow"), ("variance_type", "learned"), ("trained_betas", [2.0]),
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


def test_all_sets_are_named_and_long_ones_cut(folder):
    """Thirty weights are missing, a thousand are surplus and two have other shapes."""
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    kept = {name: np.zeros(3, np.float32) for name in ("conv_in.bias", "conv_out.bias")}
    save_file(kept | {f"layer.{i}": np.zeros(9, np.float32) for i in range(1000)}, path)
    own, more = list(unet_of(network()).state_dict()), len(tensors) - 2 - 3
    missing = [name for name in own if name not in kept][:3]
    refused(
        load_unet, folder, match=f"missing {', '.join(missing)} and {more} more; surplus layer.* and 997 more; conv_in"
    )
    refused(load_unet, folder, match=r"conv_in.bias has shape \(3,\), not \(8,\), conv_out.bias has .*; copy it and")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "x" * 10_000, "\u202e"])
def test_odd_names_of_arrays(folder, name):
    change_weights(folder, lambda tensors: tensors.update({name: np.zeros(1, np.float32)}))
    refused(load_unet, folder, match="has an array of the name .{,210}; is it the right file")


# Weights in several files


@pytest.fixture
def shards(folder):
    """The weights in two files, the index beside them."""
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    path.unlink()
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: a for name, a in tensors.items() if weight_map[name] == shard}, folder / "unet" / shard)
    (folder / "unet" / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / "unet"


def change_index(folder, change):
    values = json.loads((folder / INDEX).read_text())
    change(values["weight_map"])
    (folder / INDEX).write_text(json.dumps(values))


def test_shards_are_read(shards):
    for name, a in load_unet(shards, "numpy").state_dict().items():
        np.testing.assert_array_equal(a, unet_of(network()).state_dict()[name])


@pytest.mark.parametrize(
    "shard",
    [
        "../part-0.safetensors", "/etc/passwd", "/part-0.safetensors", "..", ".", "", "a/b.safetensors",
        "..\\part-0.safetensors", "C:\\part-0.safetensors", "part-0.bin", "part\n.safetensors", "~.safetensors",
        "a\0.safetensors", 3, None, ["part-0.safetensors"], "x" * 10_000,
    ],
)  # fmt: skip
def test_a_shard_lies_beside_its_index(shards, shard):
    """Nothing else is even opened."""
    change_index(shards, lambda weight_map: weight_map.update({"conv_in.bias": shard}))
    refused(load_unet, shards, match=f"{INDEX}: names the file .{{,210}}; a name that ends in .safetensors is allowed")


def test_a_shard_is_missing(shards):
    (shards / "part-1.safetensors").unlink()
    refused(load_unet, shards, match="part-1.safetensors: no such file; copy or train it again")


def test_a_shard_is_truncated(shards):
    path = shards / "part-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(load_unet, shards, match="part-1.safetensors: damaged or not safetensors")


def test_an_index_names_what_its_shard_lacks(shards):
    change_index(shards, lambda weight_map: weight_map.update(extra="part-1.safetensors"))
    refused(
        load_unet, shards, match=f"{INDEX}: says that part-1.safetensors holds 'extra', which it does not; copy all"
    )


def test_a_shard_holds_what_its_index_does_not_name(shards):
    change_index(shards, lambda weight_map: weight_map.pop("conv_in.bias"))
    refused(load_unet, shards, match=f"{INDEX}: does not say that part-..safetensors holds conv_in.bias; copy all")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10_000]
)
def test_damaged_indexes(shards, content):
    (shards / INDEX).write_text(content)
    refused(load_unet, shards, match=f"{INDEX}: (not JSON|has no weight_map); copy")


# Anything


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
