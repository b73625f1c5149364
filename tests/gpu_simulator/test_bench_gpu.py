"""minidiff bench --backend cupy without a GPU: our kernels in the simulator, torch on the CPU, no CUDA graphs."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from small_runs import network

from minidiff.bench import cases, gpu, rival
from minidiff.cli import app

CASES = {
    "step": lambda batch: [cases.training_step("tiny", network(), 2)],
    "conv": lambda batch: list(cases.convolution(1, 4, 4, 4, 3)),
}


@pytest.fixture
def bench(capsys, monkeypatch):
    """bench(*arguments) -> exit code, what was printed, what was printed on stderr."""
    monkeypatch.setattr(cases, "FAMILIES", CASES)
    monkeypatch.setattr(rival, "KINDS", {name: replace(kind, device="cpu") for name, kind in rival.KINDS.items()})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "simulated GPU")
    monkeypatch.setattr(gpu, "_recorded_by_cupy", lambda run, cupy: run)
    monkeypatch.setattr(gpu, "_recorded_by_torch", lambda run, torch: run)
    monkeypatch.setattr(gpu, "peaks", lambda backend: {"FLOP": 1e12, "B": 1e12})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minidiff", "bench", *arguments])
        with pytest.raises(SystemExit) as caught:
            app.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


@pytest.mark.parametrize("backend, peer", [("cupy", "float32"), ("cupy-tf32", "tf32")])
def test_table_and_file(bench, tmp_path, backend, peer):
    code, out, _ = bench("--backend", backend, "--rounds", "1", "--json", str(tmp_path / "numbers.json"))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert code == 0 and "simulated GPU" in out and numbers["finished"]
    assert [row["family"] for row in numbers["rows"]] == ["step", "conv", "conv", "conv"]
    for row in numbers["rows"]:
        assert row["rival"] == peer and set(row["seconds"]) == {"ours", "float32", "tf32", "bfloat16"}


def test_torch_s_tf32_setting():
    settings = []
    for tf32 in (True, False):
        gpu._in_precision(lambda: settings.append(torch.backends.cudnn.allow_tf32), torch, tf32)()
    assert settings == [True, False]


def test_without_a_gpu_for_torch(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = bench("--backend", "cupy")
    assert code == 2 and err == "minidiff: this torch sees no GPU: install one for CUDA, from pytorch.org\n"


def test_another_backend_is_refused(bench):
    code, _, err = bench("--backend", "numpy")
    assert code == 2 and "Invalid value for '--backend': 'numpy' is not one of" in err
