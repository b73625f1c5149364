"""minidiff bench: both sides compute the same, errors and operation counts are right, table and JSON are complete."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import own_process
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from one_thread import one_thread  # noqa: F401  for all tests of this module
from small_runs import network
from small_text import AUTOENCODER
from small_text import network as tiny_text_network
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minidiff.bench import cases, measure, memory, ours, profile, report, rivals
from minidiff.cli import app
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError
from minidiff.models.vae import VAE

NUMBA = get_backend("numba")
FLOAT32 = 1e-5  # above the float32 rounding error of the sums here, below the effect of any mistake


def tiny_network(**changes):
    return network(sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                   up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, **changes)  # fmt: skip


TINY = {
    "step": lambda batch: [cases.training_step("tiny", tiny_network(), batch or 2)],
    "conv": lambda batch: list(cases.convolution(batch or 2, 8, 8, 8, 3)),
}


@pytest.fixture(scope="module", params=["torch", "numpy"])
def rival(request):
    return rivals.open_rival([request.param], 1)


@pytest.fixture
def run(capsys, monkeypatch):
    """run(*arguments) -> exit code, stdout, stderr of minidiff bench with two tiny families."""
    monkeypatch.setattr(cases, "FAMILIES", TINY)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minidiff", "bench", *map(str, arguments), "--threads", "1"])
        with pytest.raises(SystemExit) as caught:
            app.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


# The measurements


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_both_sides_compute_the_same(family, rival, monkeypatch):
    """Every case at batch size 1, with small networks: errors against float64, for float32 and bfloat16."""
    monkeypatch.setattr(cases, "UNET", tiny_network())
    monkeypatch.setattr(cases, "DEMO", network())
    monkeypatch.setattr(cases, "TEXT", tiny_text_network(8))
    monkeypatch.setattr(cases, "STABLE", tiny_text_network(4))
    for case in cases.choose([family], rival.name, batch=1):
        for result, by_side in measure.relative_errors(case.error_case or case, rival, NUMBA).items():
            assert set(by_side) == {"ours", *rival.modes((case.error_case or case).op, False)}
            for side, error in by_side.items():
                assert error < (0.05 if side == "bfloat16" else FLOAT32), f"{case}: {result} of {side}"


def test_a_network_without_a_tape(rival, monkeypatch):
    """The timed operation is accurate too, although errors are reported for another one."""
    monkeypatch.setattr(cases, "UNET", tiny_network())
    monkeypatch.setattr(cases, "STABLE", tiny_text_network(8))
    (case,), (large,) = cases.network(2), cases.stable(2)
    for one in (case, large) if rival.name in large.against else (case,):
        assert (
            measure.relative_errors(one, rival, NUMBA)["y"]["ours"] < 1e-4
        )  # torch makes the sinusoids of t in float32


def test_bfloat16_of_a_network_is_shown_beside_float32(rival, monkeypatch):
    """It is timed in turn, its error is in the table, and it is no rival; a training step has none."""
    monkeypatch.setattr(cases, "UNET", tiny_network())
    (case,) = cases.network(2)
    row = measure.measure(case, rival, rounds=1)
    assert len(row.seconds["ours bfloat16"]) == 1 and "bfloat16" not in row.rival
    found = row.errors["y"]["ours bfloat16"]
    assert 1e-4 < found < 0.05 and "ours bfloat16" not in row.errors["gradient"]
    shown = str(report._errors(row)[-1])
    assert shown.splitlines() == [f"{found:.1e}" if result == "y" else "–" for result in row.errors]
    step = measure.measure(cases.training_step("tiny", tiny_network(), 2), rival, rounds=1)
    assert "ours bfloat16" not in step.seconds and len(report._errors(step)) == 2


def test_a_wrong_kernel_has_a_large_error(rival):
    """One tap of the weights is 0.1 % too large."""

    def wrong(x, w, *rest):
        w = w.copy()
        w[:, 1, 2] *= np.float32(1.001)
        return NUMBA.conv2d(x, w, *rest)

    case = next(cases.convolution(2, 8, 8, 8, 3))
    assert measure.relative_errors(case, rival, NUMBA)["y"]["ours"] < FLOAT32
    found = measure.relative_errors(case, rival, replace(NUMBA, kernels={**NUMBA.kernels, "conv2d": wrong}))["y"]
    assert found.pop("ours") > 1e-4 > min(found.values())


def test_a_wrong_gradient_of_a_network_has_a_large_error(rival):
    """The weight gradient of every convolution is 1 % too large."""

    def wrong(*args, **needed):
        dx, dw, dbias = NUMBA.conv2d_backward(*args, **needed)
        return dx, dw if dw is None else dw * np.float32(1.01), dbias

    case = cases.training_step("tiny", tiny_network(), 2).error_case
    found = measure.relative_errors(case, rival, replace(NUMBA, kernels={**NUMBA.kernels, "conv2d_backward": wrong}))
    assert found["gradient"]["ours"] > 1e-3 and found["y"]["ours"] < FLOAT32


@pytest.mark.parametrize("config", [tiny_network(), tiny_text_network(8)], ids=["tiny", "text"])
def test_both_sides_training_steps_update_the_weights_alike(config, monkeypatch):
    """Two steps from the same weights; for gradients near zero AdamW's update depends on the sign, which may differ."""
    from minidiff.bench import rival

    made = []

    def remember(module, name):
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: made.append(make(*args)) or made[-1])

    remember(ours, "unet")
    remember(rival, "unet")
    case = cases.training_step("tiny", config, 2)
    steps = (
        ours.prepare(NUMBA, case.op, case.inputs(), case.settings),
        rival.prepare("channels_last", case.op, case.inputs(), case.settings),
    )
    mine, theirs = made[0], made[-1]
    before = mine.state_dict()
    for step in 2 * steps:
        step()
    after = mine.state_dict()
    torch_s = {name: p.detach() for name, p in theirs.named_parameters()}
    torch_s = {name: (p.movedim(1, -1) if p.ndim == 4 else p).numpy() for name, p in torch_s.items()}
    update, difference = (np.concatenate([(after[k] - state[k]).ravel() for k in after]) for state in (before, torch_s))
    assert 0 < np.square(difference).mean() < 0.01 * np.square(update).mean()


@pytest.mark.parametrize("config", [tiny_network(), cases.DEMO, tiny_text_network(8)], ids=["tiny", "demo", "text"])
def test_operations_are_counted_as_torch_counts_them(config):
    text = (torch.zeros(1, cases.TOKENS, config.cross_attention_dim),) if hasattr(config, "cross_attention_dim") else ()
    net = (UNet2DConditionModel if text else UNet2DModel)(**dataclasses.asdict(config))
    side, channels = config.sample_size, config.in_channels
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(torch.zeros(1, channels, side, side), torch.zeros(1), *text)
    assert cases.flop(config) == counter.get_total_flops()


def test_an_autoencoder_s_operations_are_counted_as_torch_counts_them():
    z = np.zeros((1, 4, 4, 3), np.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        AutoencoderKL(**dataclasses.asdict(AUTOENCODER)).decode(torch.zeros(1, 3, 4, 4))
    assert cases.counted_flop(VAE(AUTOENCODER, None), lambda vae: vae.decode(z)) == counter.get_total_flops()


@pytest.mark.parametrize("short, runs", [(0.0, "AABB" + "AB" * 3), (60.0, "AABB" * 4)])
def test_rounds_are_interleaved(short, runs, monkeypatch):
    """Two runs of each warm up. Short runs are timed right after another of the same side."""
    monkeypatch.setattr(measure, "SHORT", short)
    order = []
    seconds = measure.in_turn({name: lambda name=name: order.append(name) for name in "AB"}, rounds=3)
    assert order == list(runs)
    assert {name: len(times) for name, times in seconds.items()} == {"A": 3, "B": 3}


def test_the_default_number_of_rounds():
    seconds = measure.in_turn({"A": lambda: None})
    assert measure.MIN_ROUNDS <= len(seconds["A"]) <= measure.MAX_ROUNDS


def test_the_rival_is_the_fastest_in_float32():
    times = {"ours": [2.0, 4.0, 9.0], "NCHW": [8.0], "channels_last": [6.0, 8.0, 7.0], "bfloat16": [1.0]}
    row = measure.Row(cases.training_step("tiny", tiny_network(), 2), times, {})
    assert row.rival == "channels_last"
    assert row.ratio(min) == 3.0 and row.ratio(lambda times: sorted(times)[1]) == 7 / 4
    assert row.rate == row.case.work / 2.0


def test_peaks():
    assert all(math.isfinite(rate) and rate > 0 for rate in measure.peaks().values())


def test_without_the_compiler_peaks_are_refused(monkeypatch):
    monkeypatch.setattr(measure.jit, "ENABLED", False)
    with pytest.raises(MinidiffError, match="NUMBA_DISABLE_JIT is set"):
        measure.peaks()


# Rivals in processes of their own


@pytest.fixture
def fake(monkeypatch):
    """A library that is our reference, in two modes; "bfloat16" prints, and fails for convolutions."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setitem(
        rivals.LIBRARIES, "fake", rivals.Library("fake_rival", ("fake", "fake bfloat16"), ("conv", "training_step"))
    )
    monkeypatch.setattr(rivals, "NAMES", (*rivals.NAMES, "fake"))
    monkeypatch.setattr(rivals, "find_spec", lambda name: name == "fake")
    monkeypatch.setattr(rivals, "_version", lambda name: "1.0")
    monkeypatch.setattr(measure, "PAUSE", 0)


def test_a_rival_in_a_process_of_its_own(fake):
    """Its results are the reference's, it is timed in turn, and it has ended afterwards."""
    both = rivals.open_rival(["torch", *rivals.installed()], 1)
    case = cases.training_step("tiny", tiny_network(), 2)
    assert rivals.installed() == ["fake"] and both.modes("attention", False) == ["float32", "bfloat16"]
    row = measure.measure(case, both, rounds=2)
    assert set(row.seconds) == {"ours", "NCHW", "channels_last", "bfloat16", "fake", "fake bfloat16"}
    assert all(len(times) == 2 and min(times) > 0 for times in row.seconds.values())
    assert row.rival in ("NCHW", "channels_last", "fake")


def test_a_process_answers_until_its_end(fake):
    conv = next(cases.convolution(2, 8, 8, 8, 3))
    sides = measure.sides(conv, rivals.open_rival(["fake"], 1), NUMBA)
    (_, mine), (_, theirs) = next(sides), next(sides)
    run = theirs.run
    np.testing.assert_allclose(run()["y"], mine.run()["y"], rtol=1e-5, atol=1e-5)
    with pytest.raises(MinidiffError, match="^a rival's process ended: ValueError: no such precision$"):
        next(sides)
    theirs.end()
    with pytest.raises(ValueError, match="closed file"):
        run()


def test_only_rivals_that_are_installed(fake):
    with pytest.raises(MinidiffError, match="openvino is not installed: pip install 'minidiff\\[bench\\]'"):
        rivals.open_rival(["openvino"], 1)
    with pytest.raises(MinidiffError, match="unknown rival 'jax': choose from torch, numpy, tensorflow, openvino"):
        rivals.open_rival(["jax"], 1)


@pytest.mark.parametrize("name", rivals.LIBRARIES)
def test_a_library_computes_the_same(name, monkeypatch):
    """In float32 and bfloat16, with small networks, with and without text."""
    if not rivals.find_spec(name):
        pytest.skip(f"needs {name}: pip install 'minidiff[bench]'")
    one = rivals.open_rival([name], 1)
    for config in (tiny_network(), tiny_text_network(8)):
        step = cases.training_step("tiny", config, 2)
        for op in {"network", "network_and_gradient"} & set(rivals.LIBRARIES[name].operations):
            inputs = step.inputs if op == "network_and_gradient" else cases._network_inputs(config, 2, "x_t", "t")
            case = replace(step, op=op, inputs=inputs)
            for result, by_side in measure.relative_errors(case, one, NUMBA).items():
                for side, error in by_side.items():
                    assert error < (0.1 if "bfloat16" in side else FLOAT32), f"{result} of {side}"


# The command


def check_numbers(numbers, against, count):
    assert numbers["finished"] and len(numbers["rows"]) == count
    assert set(numbers["peaks"]) == {"FLOP/s", "B/s"}
    assert numbers["machine"]["threads"] == 1 and "allocator" in numbers["machine"]
    assert ("torch" in numbers["machine"]) == (against == "torch")
    for row in numbers["rows"]:
        sides = ["NCHW", "channels_last", "bfloat16"] if against == "torch" else ["numpy"]
        assert list(row["seconds"]) == ["ours", *sides] and row["rival"] in sides
        assert all(len(times) == 2 and min(times) > 0 for times in row["seconds"].values())
        ours, rival = (min(row["seconds"][side]) for side in ("ours", row["rival"]))
        assert row["ratio_of_minima"] == pytest.approx(rival / ours)
        assert row["share_of_peak"] == pytest.approx(row["rate"] / numbers["peaks"][row["unit"]])
        assert all(set(by_side) == {"ours", *sides} for by_side in row["errors"].values())


@pytest.mark.parametrize("against, count", [("torch", 4), ("numpy", 4)])
def test_table_and_file(run, tmp_path, against, count):
    code, out, err = run("--against", against, "--rounds", 2, "--json", tmp_path / "numbers.json")
    assert (code, err) == (0, "")
    check_numbers(json.loads((tmp_path / "numbers.json").read_text()), against, count)
    assert out.index("peak, measured") < out.index("step, ms") < out.index("conv, ms")
    assert "tiny, batch 2" in out and "3x3 8px 8->8 dw" in out and "…" not in out


def test_a_profile_counts_every_operation():
    """A training step's products are the forward pass's three times, without the gradients by image and sinusoids."""
    config = tiny_network()
    calls, rest = profile.profile(cases.training_step("tiny", config, 2), rounds=2)
    of_op = {op: [call for call in calls if call.op == op] for op in {call.op for call in calls}}
    work = sum(call.work for call in calls if call.unit == "FLOP")
    conv_in, linear_1 = 2 * 2 * 8 * 8 * 9 * 8, 2 * 2 * 8 * 32
    assert work == 3 * 2 * cases.flop(config) - conv_in - linear_1
    fused = sum(call.shapes.startswith("2 x") for call in of_op["group_norm"])  # with a convolution, in two calls
    assert 0 <= len(of_op["conv2d"]) + fused - len(of_op["conv2d_backward"]) <= 3  # not fused: those of attention
    assert len(of_op["adamw"]) == 1
    assert all(call.seconds > 0 for call in calls) and rest > 0


def test_a_profile_s_table(run):
    code, out, err = run("--profile", "--rounds", 1)
    assert (code, err) == (0, "")
    assert "step: tiny, batch 2" in out and "conv2d 3x3 2 x 8 x 8 8->8" in out and "…" not in out
    assert out.count("together") == 4  # a step; conv forward, dx, dw


@pytest.mark.parametrize("option", [("--against", "numpy"), ("--compile",), ("--json", "-"), ("--backend", "cupy")])
def test_a_profile_has_no_rival(run, option):
    code, _, err = run("--profile", *option)
    assert code == 2 and err.startswith("minidiff: --profile prints our times on the CPU") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_peak_memory_of_a_step_grows_with_the_batch():
    """What the tape of the demo's network keeps of an image has 3 to 4 MB; backward needs more."""
    small, large = (memory._in_a_process("ours", list(cases.step(batch))[1], threads=1) for batch in (2, 10))
    assert 8 * 3 < large - small < 8 * 8


def test_memory_is_of_training_steps(run):
    for arguments in (("conv", "--memory"), ("step", "--memory", "--profile"), ("step", "--memory", "--compile")):
        code, _, err = run(*arguments)
        assert code == 2 and err.startswith("minidiff: --") and err.count("\n") == 1


def test_json_to_stdout_and_one_family(run):
    code, out, err = run("conv", "--rounds", 2, "--batch", 3, "--json", "-")
    assert code == 0
    check_numbers(json.loads(out), "torch", 3)
    assert "conv, ms" in err and "step, ms" not in err


def test_ctrl_c_reports_the_results_so_far(run, monkeypatch, tmp_path):
    measured = measure.measure

    def interrupted(case, **settings):
        if case.label.endswith("dx"):
            raise KeyboardInterrupt
        return measured(case, **settings)

    monkeypatch.setattr(measure, "measure", interrupted)
    code, out, err = run("--rounds", 1, "--json", tmp_path / "numbers.json")
    assert (code, err) == (130, "minidiff: stopped\n")
    assert "tiny, batch 2" in out and "3x3 8px 8->8 " in out and "dx  " not in out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert not numbers["finished"] and [row["family"] for row in numbers["rows"]] == ["step", "conv"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("convolve",), "unknown benchmark family 'convolve': choose from step, conv"),
        (
            ("--against", "jax"),
            "Invalid value for '--against': 'jax' is not one of 'torch', 'tensorflow', 'openvino', 'n",
        ),
        (("conv", "--json", "missing/numbers.json"), "cannot write missing/numbers.json: no such folder"),
        (("conv", "--json", "."), "cannot write .: it is a folder"),
        (("conv", "--json", "/dev/null"), "cannot write /dev/null: it is no regular file"),
        (("conv", "--json", ""), "Invalid value for '--json': it is empty; give a path"),
        (("conv", "--batch", 0), "Invalid value for '--batch'"),
    ],
)
def test_an_error_is_one_line(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and err.startswith(f"minidiff: {message}") and err.count("\n") == 1


def test_the_allocator_is_reported(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert report.surroundings()["allocator"] == "default"
    assert report.surroundings()["OPENBLAS_CORETYPE"] == "Haswell"
    monkeypatch.setenv("GLIBC_TUNABLES", report.TUNED_MALLOC)
    assert report.surroundings()["allocator"] == f"tuned: {report.TUNED_MALLOC}"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert report.surroundings()["allocator"] == "glibc.malloc.hugetlb=1"


WAIT_POLICY = """
from minidiff.bench import report, rivals
rivals.open_rival(["RIVAL"], None)
print(report.surroundings().get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    "rival, chosen, want",
    [("numpy", None, "passive"), ("torch", None, "None"), ("torch", "active", "active")],
)
def test_beside_torch_openmp_threads_wait_as_torch_s_do(monkeypatch, rival, chosen, want):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    environment = {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
    assert own_process.run(WAIT_POLICY.replace("RIVAL", rival), **environment)[0].strip() == want


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from minidiff.bench import cases
cases.FAMILIES = {"conv": lambda batch: list(cases.convolution(1, 4, 4, 4, 3))}
from minidiff.cli.app import main
main()
"""


def without_torch(*arguments):
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        WITHOUT_TORCH,
        "bench",
        "--threads",
        "1",
        "--rounds",
        "2",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_without_torch():
    done = without_torch()
    assert done.returncode == 2
    assert done.stderr.startswith("minidiff: torch and diffusers are needed") and done.stderr.count("\n") == 1
    assert "--against numpy" in done.stderr and "pip install torch" in done.stderr
    done = without_torch("--against", "numpy", "--json", "-")
    assert done.returncode == 0, done.stderr
    check_numbers(json.loads(done.stdout), "numpy", 3)


def test_a_rival_without_the_gradients_has_a_dash():
    case = cases.training_step("tiny", tiny_network(), 2)
    row = measure.Row(case, {"ours": [1.0], "OpenVINO": [2.0]}, {"y": {"ours": 1e-7}})
    assert [str(text) for text in report._errors(row)] == ["y 1.0e-07", "–"]
