"""minidiff export."""

from pathlib import Path

import numpy as np
from small_commands import SMALL, bytes_of

import minidiff as md
from minidiff.formats import networks
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
