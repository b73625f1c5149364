"""minidiff export."""

from pathlib import Path

import numpy as np
import pytest
from small_commands import SMALL, bytes_of

import minidiff as md
from minidiff.errors import MinidiffError
from minidiff.formats import networks, weights
from minidiff.training import loop, state


def test_export(done, refused, trained):
    """The averaged weights, as the run's own folder has them; or the raw ones, which the state has."""
    assert done("export", "run", "average").startswith("Wrote average, of step ")
    done("export", "run", "raw", "--raw")
    for name in (
        "unet/config.json",
        f"unet/{networks.WEIGHTS}",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ):
        assert bytes_of(f"average/{name}") == bytes_of(f"run/{name}")
    raw = md.load_unet("raw", "numpy").state_dict()
    for name, a in state.open_run(Path("run")).unet.state_dict().items():
        np.testing.assert_array_equal(raw[name], a)
    assert bytes_of(f"raw/unet/{networks.WEIGHTS}") != bytes_of(f"average/unet/{networks.WEIGHTS}")
    refused("export", "run", "average", match="average: is there already; choose a new folder")
    refused("export", "raw", "again", match="raw: holds no run")


def test_export_of_float16_weights(done, refused, trained):
    done("export", "run", "full")
    done("export", "run", "half", "--half")
    assert (
        Path(f"half/unet/{networks.WEIGHTS}").stat().st_size
        < 0.6 * Path(f"full/unet/{networks.WEIGHTS}").stat().st_size
    )
    half = md.load_unet("half", "numpy").state_dict()
    for name, a in md.load_unet("full", "numpy").state_dict().items():
        np.testing.assert_array_equal(half[name], a.astype(np.float16))
    assert bytes_of("half/unet/config.json") == bytes_of("full/unet/config.json")


def test_a_weight_beyond_float16_is_refused(trained):
    (path,) = trained.glob("run/unet/*.safetensors")
    arrays, metadata = weights.open_safetensors(path)
    large = {name: a.read() for name, a in arrays.items()}
    large["conv_in.bias"][0] = 65520  # rounds to infinity
    weights.write_safetensors(path, large, metadata)
    before = bytes_of(path)
    with pytest.raises(MinidiffError, match="conv_in.bias has values beyond float16's 65504"):
        weights.to_float16(trained / "run" / "unet")
    assert bytes_of(path) == before


def test_the_best_checkpoint_can_be_exported(done, refused, trained, monkeypatch):
    losses = iter([0.2, 0.1, 0.3])
    monkeypatch.setattr(loop, "validation_loss", lambda run, dataset: next(losses))
    out = done("train", "data", "--out", "new", "--steps", 6, "--checkpoint-every", 2, "--keep", 1, *SMALL)
    assert "step 4: loss" in out and ", loss of the averaged weights on fixed images 0.1000; saved" in out
    assert done("export", "new", "best", "--best") == "Wrote best, of step 4\n"
    assert bytes_of(f"best/unet/{networks.WEIGHTS}") != bytes_of(f"new/unet/{networks.WEIGHTS}")
    assert {path.name for path in Path("new/training").iterdir()} == {
        "best.safetensors", "state.safetensors", "state-000006.safetensors",
    }  # fmt: skip
    (trained / "run" / "training" / "best.safetensors").unlink()
    refused("export", "run", "none", "--best", match="run: holds no training/best.safetensors")


def test_an_export_that_fails_leaves_nothing(refused, trained, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minidiff.formats.networks.write_json", full)
    refused("export", "run", "out", match="No space left on device")
