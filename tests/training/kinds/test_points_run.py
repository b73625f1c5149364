"""Runs on points: resumed bit for bit, what lies in their folder, and that they learn."""

import json

import numpy as np
import pytest
from small_runs import contents, go_on, new_points_run, new_run, refused, reopen, tree

from minidiff.data import open_dataset
from minidiff.data.points import CLUSTERS as MIXTURE
from minidiff.errors import MinidiffWarning
from minidiff.formats.pipeline import PointsPipeline
from minidiff.formats.run_state import WrongKind, step_file
from minidiff.formats.weights import open_safetensors
from minidiff.models.mlp import MLPConfig
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds import points_run
from minidiff.training.kinds.points_run import PointsRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.loop import validation_loss
from minidiff.training.recipes import SCHEDULE

LINE, CLUSTERS = open_dataset("line"), open_dataset("two_clusters")


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, backend):
    by_class = dict(data="two_clusters", backend=backend, classes=("cat", "dog"))
    go_on(new_points_run(tmp_path / "whole", **by_class), dataset=CLUSTERS)
    go_on(new_points_run(tmp_path / "run", **by_class), dataset=CLUSTERS, stop_at=5)
    again = reopen(tmp_path / "run")
    assert isinstance(again, PointsRun) and again.step == 5
    go_on(again, dataset=CLUSTERS)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_what_lies_in_its_folder(tmp_path):
    """The averaged weights by name; nothing that diffusers would take for a pipeline."""
    run = new_points_run(tmp_path, "two_moons", classes=("upper", "lower"))
    go_on(run, dataset=open_dataset("two_moons"))
    assert {name.split("/")[0] for name in tree(tmp_path)} == {
        "checkpoints.csv", "classes.json", "metrics.csv", "mlp", "scheduler", "training",
    }  # fmt: skip
    config = json.loads((tmp_path / "mlp/config.json").read_text())
    assert MLPConfig.of(config) == run.mlp.config and config["_class_name"] == "MLP"
    stored, _ = open_safetensors(tmp_path / "mlp/diffusion_pytorch_model.safetensors")
    with run.optimizer.averaged():
        for name, p in run.named_parameters():
            np.testing.assert_array_equal(stored[name].read(), p.numpy())
    assert open_safetensors(state.state_file(tmp_path))[1]["kind"] == "points"


def test_its_network_with_each_choice_of_weights(tmp_path):
    run = new_points_run(tmp_path)
    go_on(run, dataset=LINE)
    for choice, buffer in ((None, run.optimizer.ema), ("raw", run.optimizer.p), (8, run.optimizer.ema)):
        pipeline = open_pipeline(tmp_path, "numpy", choice)
        assert isinstance(pipeline, PointsPipeline) and (pipeline.data, pipeline.step) == ("line", 8)
        weights = [p.numpy().ravel() for p in pipeline.unet.parameters()]
        np.testing.assert_array_equal(np.concatenate(weights), buffer)
    refused(open_pipeline, tmp_path, "numpy", 3, match="keeps no checkpoint of step 3")


def test_refusals(tmp_path):
    new_points_run(tmp_path / "points")
    new_run(tmp_path / "unet")
    match = "points: is a run of an MLP on points, not of a U-Net; give another folder"
    refused(state.open_run, tmp_path / "points", UNetRun, match=match)
    for weights in (None, "raw", 0):
        with pytest.raises(WrongKind, match="unet: is the run of a U-Net that takes no prompt; give a .* on points"):
            open_pipeline(tmp_path / "unet", "numpy", weights, kind="points")
        with pytest.raises(WrongKind, match="points: is the run of an MLP on points, which has no images; give a run"):
            open_pipeline(tmp_path / "points", "numpy", weights, kind=("unet", "text"))
    match = "points: is the run of an MLP on points, which has no images; give a run of minidiff train --text"
    refused(text_to_image, open_pipeline(tmp_path / "points", "numpy"), ["a cat"], match=match)
    refused(new_points_run, tmp_path / "points", match="points: holds a run already")


def test_a_damaged_dataset_name_is_no_dataset(tmp_path):
    """The state is written by other means: a run on images that claims to be one on points."""
    new_points_run(tmp_path, "cats_dogs")
    refused(open_pipeline, tmp_path, "numpy", match="state.safetensors: its metadata is damaged")


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    go_on(new_points_run(tmp_path), checkpoint_every=4, dataset=LINE)
    for path in (state.state_file(tmp_path), step_file(tmp_path, 8)):
        path.unlink()
        path.write_bytes(b"damaged")
    with pytest.warns(MinidiffWarning, match="Going back to step 4, state-000004.safetensors.$"):
        assert open_pipeline(tmp_path, "numpy").step == 4


def test_it_learns_where_cats_and_dogs_are(tmp_path, monkeypatch):
    """Each class has the mean and the standard deviation of its Gaussian, up to what 300 steps leave."""
    config = TrainConfig(
        "two_clusters", steps=300, batch_size=256, lr=5e-3, warmup=20, ema=0.98, flip=False, backend="numpy",
        classes=CLUSTERS.classes,
    )  # fmt: skip
    run = state.new_run(PointsRun, tmp_path, config, MLPConfig(2, 48, 3, 3), SCHEDULE)
    before = validation_loss(run, CLUSTERS)
    go_on(run, 300, dataset=CLUSTERS)
    assert validation_loss(run, CLUSTERS) < 0.5 * before
    drawn = []
    monkeypatch.setattr(points_run, "points_figure", lambda *given: drawn.append(given))
    with run.optimizer.averaged():
        run.sheet(CLUSTERS, CLUSTERS)
    (_, data, trajectories, labels), x = drawn[0], drawn[0][2][-1][:, 0, 0]
    assert data is CLUSTERS and trajectories.shape == (points_run.SHEET_STEPS + 1, points_run.SHEET_POINTS, 1, 1, 2)
    for label, mean in enumerate(MIXTURE.means):
        own = x[labels == label]
        np.testing.assert_allclose(own.mean(0), mean, atol=0.1)
        np.testing.assert_allclose(own.std(0), 0.2, atol=0.05)
