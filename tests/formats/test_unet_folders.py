"""Networks and schedules as folders of files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import network, refused, tree, unet_of

import minidiff as md
from minidiff.errors import MinidiffError
from minidiff.formats.networks import WEIGHTS, load_unet, save_unet
from minidiff.formats.weights import open_safetensors

CONFIGS = {
    "plain": network(),
    "grey, not square, attention": network(
        sample_size=(4, 8), block_out_channels=(8, 12), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, add_attention=True,
    ),
    "labels, colours": network(num_class_embeds=11, in_channels=3, out_channels=3, sample_size=None),
}  # fmt: skip


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


def test_weights_that_are_replaced_while_they_are_read(tmp_path):
    """As those of a run in training are: arrays of two checkpoints are not mixed."""
    unet = unet_of(CONFIGS["plain"])
    save_unet(unet, tmp_path)
    stored, _ = open_safetensors(tmp_path / WEIGHTS)
    first, second, *_ = stored.values()
    first.read()
    save_unet(unet, tmp_path)
    refused(second.read, match=f"{WEIGHTS}: was replaced while it was read; try again")
