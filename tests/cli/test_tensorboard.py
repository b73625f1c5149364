"""minidiff train --tensorboard: the events hold what metrics.csv holds."""

import csv
import struct
import sys
from pathlib import Path

import numpy as np
from small_commands import QUICK


def events(folder):
    """The scalars of event files by name, each a dictionary by step, and the step at which each file starts."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found, starts = {}, []
    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        while data:  # length, checksum, event, checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:
                starts.append(event.step)
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found, starts


def test_the_events_are_the_log(done):
    start = ("train", "line", "--out", "run", "--checkpoint-every", 2, "--tensorboard", *QUICK)
    done(*start, "--steps", 4, "--batch-size", 8)
    done("train", "--out", "run", "--resume", "--steps", 6, "--tensorboard")
    found, starts = events("run/tensorboard")
    assert starts == [1, 5]
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    columns = {"loss": "loss", "grad_norm": "grad_norm"}
    columns |= {f"loss_by_noise_level/q{k}": f"loss_q{k}" for k in (1, 2, 3, 4)}
    for name, column in columns.items():
        want = {int(row["step"]): float(np.float32(row[column])) for row in rows if row[column]}
        assert found[name] == want
    losses = csv.DictReader(Path("run/checkpoints.csv").read_text().splitlines())
    assert found["validation_loss"] == {int(row["step"]): float(np.float32(row["loss"])) for row in losses}


def test_without_the_library_nothing_is_started(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused(
        "train", "line", "--out", "run", "--tensorboard", match=r"--tensorboard.*pip install 'minidiff\[tensorboard\]'"
    )
