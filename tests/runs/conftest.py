"""What all tests of runs share."""

import pytest
from one_thread import one_thread  # noqa: F401  for all of them
from small_runs import network, unet_of

import minidiff as md
from minidiff.runs.checkpoint import save_pipeline, save_unet


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder."""
    save_unet(unet_of(network()), tmp_path / "net" / "unet")
    save_pipeline(tmp_path / "net", md.cosine_schedule(20, "v_prediction"))
    return tmp_path / "net"
