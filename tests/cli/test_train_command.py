"""minidiff train and train-vae: options, data, resuming, checkpoints, Ctrl-C."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK, SMALL, bytes_of, noises, process
from small_runs import idx_set, rows, tree

import minidiff as md
from minidiff import compilation
from minidiff.cli import training_bar
from minidiff.formats import networks
from minidiff.formats.run_lock import lock_run
from minidiff.training import start, state

NUMBERS = {
    "steps": ("0", "-5", "x", "1.5", "1e3", "99999999999"), "batch-size": ("0", "-1", "100000", "nan"),
    "lr": ("0", "-0.1", "1", "nan", "inf", "big"), "threads": ("0", "-1", "4097", "1000000"),
    "seed": ("-1", "1.5", "99999999999999999999"), "checkpoint-every": ("0", "-1", "x"),
    "size": ("0", "-32", "5000", "8", "big"), "backend": ("cuda", "", "numba "),
}  # fmt: skip


@pytest.mark.parametrize("option, value", [(option, value) for option, values in NUMBERS.items() for value in values])
def test_numbers_for_train(refused, data, option, value):
    name = "|".join({option, option.replace("-", "_")})
    refused("train", data, "--out", "run", f"--{option}", value, match=name)


def test_objectives_that_there_are_not(refused, data):
    refused(
        "train",
        data,
        "--out",
        "run",
        "--objective",
        "eps",
        match="'--objective': 'eps' is not one of 'epsilon', 'sample'",
    )
    refused("train", data, "--out", "run", "--min-snr", 0, match="min_snr = 0.0: give a number above 0, such as 5")


@pytest.mark.parametrize("objective", ["epsilon", "sample", "v_prediction", "edm", "flow"])
def test_objectives(done, refused, data, objective):
    out = done("train", data, "--out", "run", "--steps", 3, "--objective", objective, "--min-snr", 5, *SMALL)
    assert ("weight min(SNR, 5), in place of EDM's own SNR + 4." in out) == (objective == "edm")
    assert md.load_schedule("run").prediction_type == objective
    weighted = rows(Path("run"))
    done("train", data, "--out", "plain", "--steps", 3, "--objective", objective, *SMALL)
    assert weighted != rows(Path("plain"))
    other = "sample" if objective == "epsilon" else "epsilon"
    match = f"was started with --objective {objective}, not {other}"
    refused("train", data, "--out", "run", "--resume", "--objective", other, match=match)
    refused("train", data, "--out", "run", "--resume", "--min-snr", 4, match="was started with --min-snr 5.0, not 4.0")
    done("train", data, "--out", "run", "--steps", 4, "--resume", "--objective", objective, *QUICK)


@pytest.mark.parametrize("option", ["--learned-variance", "--importance-sampling"])
def test_options_of_improved_ddpm(done, refused, data, option):
    name = option.removeprefix("--").replace("-", "_")
    train = ("train", data, "--out", "run", option)
    for objective in ("v_prediction", "sample", "edm", "flow"):
        match = f"{option} is for the prediction type epsilon, not {objective}: add --objective epsilon"
        refused(*train, "--objective", objective, match=match)
    refused(*train, match=f"{option} is for the prediction type epsilon, not v_prediction")
    refused(*train, "--text", match=f"{option} does not go with --text: leave it out")
    refused(*train, "--objective", "epsilon", "--min-snr", 5, match=f"min_snr and {name} weight the loss in different")
    done(*train, "--objective", "epsilon", "--steps", 2, *SMALL)
    assert getattr(state.open_run(Path("run")).config, name)
    done("train", data, "--out", "run", "--resume", option, "--steps", 3)
    done("train", data, "--out", "plain", "--objective", "epsilon", "--steps", 2, *SMALL)
    refused("train", data, "--out", "plain", "--resume", option, match=f"was started without {option}; leave it out")


def test_stratified_timesteps(done, refused, data):
    done("train", data, "--out", "plain", "--steps", 2, *SMALL)
    done("train", data, "--out", "run", "--stratified", "--steps", 2, *SMALL)
    assert state.open_run(Path("run")).config.stratified
    assert bytes_of(f"run/unet/{networks.WEIGHTS}") != bytes_of(f"plain/unet/{networks.WEIGHTS}")
    done("train", data, "--out", "run", "--resume", "--stratified", "--steps", 3)
    match = "was started without --stratified; leave it out"
    refused("train", data, "--out", "plain", "--resume", "--stratified", match=match)
    both = ("--stratified", "--importance-sampling", "--objective", "epsilon")
    refused("train", data, "--out", "both", *both, match="stratified and importance_sampling draw t in different ways")


def test_a_run_with_a_learned_variance_is_sampled(done, data):
    """By its own sampler, ddpm, or by another, which ignores the variance; with guidance or without."""
    done(
        "train",
        data,
        "--by-class",
        "--objective",
        "epsilon",
        "--learned-variance",
        "--out",
        "run",
        "--steps",
        2,
        *SMALL,
    )
    assert md.load_unet("run", "numpy").config.out_channels == 2
    assert md.load_sampler("run") == md.Sampler("ddpm", variance="learned_range")
    for more in (
        ("--steps", 3),
        ("--steps", 3, "--sampler", "ddim"),
        ("--steps", 3, "--guidance", 2),
        ("--steps", 3, "--sampler", "ddim", "--guidance", 2),
    ):
        done("sample", "run", "--n", 2, "--steps", 3, *more, "--backend", "numpy")


def test_no_data(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing_fits").mkdir()
    (tmp_path / "nothing_fits" / "a.txt").write_text("x")
    (tmp_path / "file.tar").write_text("x")
    for name, match in {
        "missing": "missing: no such folder or file", "empty": "empty: holds no image",
        "nothing_fits": "holds no image", "file.tar": "file.tar: is a file", "": "no built-in dataset",
    }.items():  # fmt: skip
        refused("train", name, "--out", "run", match=match)


def test_damaged_data(refused, data, tmp_path):
    images = data / "train-images-idx3-ubyte"
    good = images.read_bytes()
    for content in (b"", good[:10], good[:-1], good + b"x"):
        images.write_bytes(content)
        refused("train", data, "--out", "run", match="train-images-idx3-ubyte")
    images.write_bytes(good)
    (data / "train-labels-idx1-ubyte").unlink()
    refused("train", data, "--out", "run", match="train-labels-idx1-ubyte")


def test_damaged_pictures(refused, tmp_path):
    (tmp_path / "data").mkdir()
    Image.effect_noise((8, 8), 50).save(tmp_path / "data" / "a.png")
    good = (tmp_path / "data" / "a.png").read_bytes()
    for content in (b"", b"not a picture", good[:-30]):
        (tmp_path / "data" / "b.png").write_bytes(content)
        refused("train", "data", "--out", "run", match="b.png: cannot be read")
    Image.new("L", (8, 9)).save(tmp_path / "data" / "b.png")
    refused("train", "data", "--out", "run", match="b.png has 8x9 pixels.*--size")


def test_train(done, data, tmp_path):
    out = done("train", "data", "--out", "deep/er/run", "--steps", 4, "--checkpoint-every", 2, "--seed", 3, *SMALL)
    folder = tmp_path / "deep" / "er" / "run"
    assert "data: 10 images, 4x4 grey, 10 classes" in out
    assert "step 2: loss " in out and "step 4: loss " in out
    assert out.splitlines()[-1].endswith("minidiff sample deep/er/run")
    assert [row.split(",")[0] for row in rows(folder)] == ["1", "2", "3", "4"]
    assert set(tree(folder)) == {
        ".lock", "checkpoints.csv", "loss.png", "metrics.csv", "model_index.json", "samples", "samples/step-000002.png",
        "samples/step-000004.png", "scheduler", "scheduler/scheduler_config.json", "training",
        "training/best.safetensors", "training/state-000002.safetensors", "training/state-000004.safetensors",
        "training/state.safetensors", "unet", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(("backend", "cached", "shown"), [("numba", False, 1), ("numba", True, 0), ("numpy", False, 0)])
def test_compilation_is_shown(done, trained, monkeypatch, backend, cached, shown):
    monkeypatch.setattr(compilation.ahead, "missing", lambda launches: [] if cached else ["a kernel", "another"])
    monkeypatch.setattr(compilation.ahead, "compile_ahead", lambda missing, processes, tick: tick() or [-9])
    quick = ("--threads", 1, "--backend", backend)
    outs = [done("train", "data", "--out", "new", "--steps", 1, *quick)]
    outs += [done("sample", "run", "--n", 1, "--steps", 1, *quick)]
    assert [out.count("compiling kernels") for out in outs] == [shown, shown]
    assert [out.count("2/2") for out in outs] == [shown, shown]
    assert [out.count("Processes that compile kernels ended with exit code -9") for out in outs] == [shown, shown]


def test_the_same_choices_give_the_same_run(done, data, tmp_path):
    losses = {}
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        done("train", "data", "--out", name, "--steps", 2, "--seed", seed, *SMALL)
        losses[name] = rows(tmp_path / name)
    assert losses["one"] == losses["two"] != losses["other"]


def test_a_folder_of_pictures(done, tmp_path):
    """Two classes of colour pictures, of odd sizes and not square, cut to 8 pixels."""
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (9 + i, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / kind / f"{i}.png")
    (tmp_path / "pets" / "a.psd").touch()
    (tmp_path / "pets" / "cats" / "no\x1bte").touch()
    out = done("train", "pets", "--size", 8, "--out", "run", "--steps", 1, *SMALL)
    assert "pets: 2 other files ignored: a.psd, cats/no\\x1bte\n" in out
    assert "pets: 6 images, 8x8 RGB, 2 classes" in out
    assert md.load_unet("run", "numpy").image_shape == (8, 8, 3)


def test_choices_of_a_training(done, refused, data, tmp_path):
    """Each does something, is remembered, and can be made once."""
    done("train", "data", "--out", "plain", "--steps", 4, *QUICK, "--batch-size", 4, "--warmup", 2)
    choices = {
        "accumulate": (2, 2, 4), "warmup": (3, 3, 2), "decay": ("none", "none", "cosine"), "pad-crop": (1, 1, 2),
        "optimizer": ("muon", "muon", "adamw"),
        "ema-half-life": (0.3, 0.5 ** (1 / 0.3), 3),
    }  # fmt: skip
    for option, (value, kept, other) in choices.items():
        more = ["--warmup", 2] if option != "warmup" else []
        done("train", "data", "--out", option, "--steps", 4, *QUICK, "--batch-size", 4, f"--{option}", value, *more)
        name = {"ema-half-life": "ema"}.get(option, option.replace("-", "_"))
        assert getattr(state.open_run(Path(option)).config, name) == kept
        same = bytes_of(f"{option}/unet/{networks.WEIGHTS}") == bytes_of(f"plain/unet/{networks.WEIGHTS}")
        assert not same
        match = f"was started with --{option} {value}, not {other}"
        refused("train", "data", "--out", option, "--resume", f"--{option}", other, match=match)
        done("train", "data", "--out", option, "--resume", f"--{option}", value)
    for option, value, match in (
        ("accumulate", 3, "accumulate = 3: must divide batch_size = 32"),
        ("decay", "linear", "'linear' is not one of 'cosine', 'none'"),
        ("optimizer", "sgd", "'sgd' is not one of 'adamw', 'muon'"),
        ("pad-crop", 4, "--pad-crop 4: give less than the 4 pixels"), ("pad-crop", -1, "pad_crop = -1"),
        ("ema-half-life", 0, "--ema-half-life 0: give 0.1 to 1e9 steps"), ("ema-half-life", "nan", "half-life nan"),
        ("ema-half-life", "50,x", "--ema-half-life 50,x: give .* several with commas"),
        ("ema-half-life", ",", "half-life ,"), ("ema-half-life", "50,0", "half-life 50,0"),
        ("ema-half-life", "50,7,50", "EMA half-lives 50 and 50: must differ"),
        ("warmup", -1, "warmup = -1"), ("keep", 0, "'--keep'"),
    ):  # fmt: skip
        refused("train", "data", "--out", "no", f"--{option}", value, *QUICK, match=match)


def test_several_averages(done, refused, data):
    """Kept from start to sample and evaluation; resumed with the same list or none, and refused with another."""
    emas = ("--ema-half-life", "0.2,0.9,0.5")
    done("train", "data", "--out", "run", "--steps", 6, *SMALL, *emas)
    config = state.open_run(Path("run")).config
    assert (config.ema, config.further_emas) == (0.5**5, (0.9, 0.5))
    done("train", "--out", "run", "--resume", "--steps", 7, *emas)
    done("train", "--out", "run", "--resume", "--steps", 8)
    for other in ("0.2", "0.2,0.5,0.9", "0.2,0.9", "1,0.9,0.5", "0.2,0.9,0.5,9"):
        match = f"run: was started with --ema-half-life 0.2,0.9,0.5, not {other}; leave it out, or start a new run$"
        refused("train", "--out", "run", "--resume", "--ema-half-life", other, match=match)
    sampled = {}
    for ema in (0.2, 0.9, 0.5, None):
        chosen = () if ema is None else ("--ema", ema)
        done("sample", "run", *chosen, "--n", 2, "--steps", 2, "--npz", "a.npz", *QUICK)
        sampled[ema] = bytes_of("a.npz")
    assert len({*sampled.values()}) == 3 and sampled[None] == sampled[0.2]
    out = done("sample", "run", "--ema", 0.7, "--n", 2, "--steps", 2, *QUICK)
    assert re.search(
        "(?m)^EMA of half-life 0.7, combined from 0.2, 0.9, 0.5 at . checkpoints: profile error [0-9.e-]+ %$", out
    )
    refused("sample", "run", "--ema", 0.5, "--raw", *QUICK, match="--raw and --ema choose different weights")
    refused("sample", "run", "--ema", "x", *QUICK, match="'--ema'")
    refused("sample", "run", "--ema", 0, *QUICK, match="--ema 0: give 0.1 to 1e9 steps")


@pytest.mark.parametrize("command", ["train", "train-vae"])
def test_images_need_not_be_mirrored(done, refused, tmp_path, command):
    noises(tmp_path / "pets", size=8)
    for name, more in (("plain", []), ("same", ["--no-flip"])):
        done(command, "pets", "--out", name, "--steps", 2, *SMALL, *more)
        assert state.open_run(Path(name)).config.flip == (name == "plain")
    assert rows(tmp_path / "plain") != rows(tmp_path / "same")
    refused(
        command, "pets", "--out", "plain", "--resume", "--no-flip", match="plain: was started without --no-flip; leave"
    )
    for more in ([], ["--no-flip"]):  # remembered, and agreed with
        done(command, "pets", "--out", "same", "--resume", *more)
    assert not state.open_run(Path("same")).config.flip
    idx_set(tmp_path / "letters", height=8, width=8)
    done(command, "letters", "--out", "letters run", "--steps", 1, *SMALL)  # they are never mirrored
    done(command, "letters", "--out", "letters run", "--resume", "--no-flip")


def test_a_network_of_another_width_and_depth(done, refused, data):
    """Without a recipe; a run that is resumed has its own, and says so."""
    done("train", "data", "--out", "run", "--steps", 1, "--width", 8, "--depth", 2, *SMALL)
    assert md.load_unet("run", "numpy").config.block_out_channels == (8, 16)
    resume = ("train", "data", "--out", "run", "--resume", "--steps", 2, *QUICK)
    refused(*resume, "--width", 16, match="run: was started with --width 8, not 16; leave it out")
    refused(*resume, "--depth", 1, match="run: was started with --depth 2, not 1; leave it out")
    assert "Done: step 2" in done(*resume, "--width", 8, "--depth", 2)
    new = ("train", "data", "--out", "new")
    refused(*new, "--width", 12, match="^minidiff: width 12: give a multiple of 8")
    refused(*new, "--depth", 4, match="^minidiff: depth 4: does not go with 4x4 pixels; give 1 to 3 levels")
    refused(
        *new,
        "--depth",
        1,
        "--recipe",
        "small-cpu",
        match="--depth does not go with a recipe: leave it or --r",
    )


def test_bad_pictures_are_named_and_left_out(done, refused, tmp_path):
    noises(tmp_path / "pets")
    done("train", "pets", "--out", "run", "--steps", 2, *SMALL)
    (tmp_path / "pets" / "2.png").write_text("no picture")
    refused("train", "pets", "--out", "new", *SMALL, match="pets/2.png: cannot be read as an image")
    refused("train", "pets", "--out", "run", "--resume", "--steps", 3, match="pets/2.png: cannot be read as an image")
    out = done("train", "pets", "--out", "new", "--steps", 2, "--skip-bad", *SMALL)
    assert "left out: pets/2.png: cannot be read as an image" in out and "pets: 3 images" in out
    assert "left out: pets/2.png" in done("train", "pets", "--out", "new", "--resume", "--steps", 3)  # remembered
    out = done("train", "pets", "--out", "run", "--resume", "--steps", 3, "--skip-bad")
    assert out.count("left out") == 1 and "Done: step 3" in out
    (tmp_path / "pets" / "3.png").write_text("no picture either")
    assert done("train", "pets", "--out", "run", "--resume", "--steps", 4).count("left out") == 2


def test_checkpoints_are_measured_on_pictures_held_out(done, refused, data, tmp_path):
    assert "measured on 10 of the training images" in done("train", "data", "--out", "one", "--steps", 1, *SMALL)
    idx_set(tmp_path / "test", n=7)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / "test" / f"train-{kind}-ubyte").rename(data / f"t10k-{kind}-ubyte")
    assert "measured on 7 of the test split" in done("train", "data", "--out", "two", "--steps", 1, *SMALL)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert bytes_of("one/checkpoints.csv") != bytes_of("two/checkpoints.csv")
    shutil.rmtree(tmp_path / "test")
    idx_set(tmp_path / "test", height=8).joinpath("train-images-idx3-ubyte").rename(data / "t10k-images-idx3-ubyte")
    (tmp_path / "test" / "train-labels-idx1-ubyte").rename(data / "t10k-labels-idx1-ubyte")
    code = "data: its test images are (8, 4, 1), the others (4, 4, 1)"
    with pytest.raises(md.MinidiffError, match=re.escape(code)):
        start.validation_set(state.open_run(Path("one")), md.open_dataset("data"))


def test_a_run_beside_other_data(done, data):
    out = done("train", "data", "--out", "data/run", "--steps", 1, *SMALL)
    assert "1/1 loss" in out and "images/s" not in out  # a single step has no speed
    done("train", "data", "--out", "data/run", "--resume", "--steps", 2)


def test_disk_for_checkpoints(done, refused, trained, monkeypatch):
    go_on = ("train", "data", "--out", "run", "--resume", "--steps", 4)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: (10**9, 10**9, 0))
        match = "run: its checkpoints take .* GB of disk, 0.0 GB are free; free space"
        refused(*go_on, "--keep", 100, "--checkpoint-every", 1, match=match)
    monkeypatch.setattr(training_bar, "LARGE", 10**6)
    assert "Checkpoints take up to 0.0 GB of disk." in done(*go_on)


def test_a_run_is_there(refused, trained):
    refused("train", "data", "--out", "run", match="run: holds a run already; continue it with --resume")


def test_no_run_is_there(refused, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for name in ("run", "mine", "data"):
        refused("train", "data", "--out", name, "--resume", match=f"{name}: holds no run")


def test_a_pipeline_is_not_overwritten(refused, trained):
    shutil.rmtree(trained / "run" / "training")
    refused("train", "data", "--out", "run", match="run: holds a .* that is not of a run; choose another folder")


def test_another_process_trains_here(refused, trained):
    with lock_run(trained / "run"):
        for more in ((), ("--resume",)):
            refused("train", "data", "--out", "run", *more, match="run: another process is training here")


@pytest.mark.parametrize("out", ["data/train-images-idx3-ubyte", "data/train-images-idx3-ubyte/run", "x" * 300])
def test_a_place_that_cannot_be_written(refused, data, out):
    refused("train", "data", "--out", out, match="choose a folder that can be written")


@pytest.mark.parametrize("out", ["pets", "pets/run", "pets/a/run", "pets/../pets/run"])
def test_a_run_among_its_pictures(done, refused, tmp_path, out):
    noises(tmp_path / "pets")
    match = f"{out}: lies among the images of pets; choose another --out"
    refused("train", "pets", "--out", out, *SMALL, match=match)


@pytest.fixture
def bad_answers(monkeypatch):
    """bad_answers(first, last): in those steps the network's answers are no numbers."""

    def spoil(first, last):
        def spoilt(model, schedule, optimizer, *rest, **options):
            def answer(*args, **kwargs):
                y = model(*args, **kwargs)
                if first <= optimizer.step_count + 1 <= last:
                    y.data[...] = np.nan
                return y

            return train_step(answer, schedule, optimizer, *rest, **options)

        train_step = md.train_step
        monkeypatch.setattr("minidiff.training.kinds.unet_run.train_step", spoilt)

    return spoil


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_a_gradient_that_is_no_number_is_told_and_the_run_goes_on(done, data, tmp_path, bad_answers):
    bad_answers(3, 4)
    out = done("train", "data", "--out", "run", "--steps", 6, *SMALL)
    assert [line for line in out.splitlines() if "skipped" in line] == [
        f"step {step}: skipped, gradient is not finite (loss nan)" for step in (3, 4)
    ]
    assert re.search(r"step 6: loss 0\.\d+, loss of the averaged weights on fixed images 0\.\d+; saved", out)
    assert [row.split(",")[1] == "nan" for row in rows(tmp_path / "run")] == [False, False, True, True, False, False]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_too_many_of_them_stop_it(run, data, tmp_path, bad_answers):
    bad_answers(3, 50)
    code, _, err = run("train", "data", "--out", "run", "--steps", 50, "--checkpoint-every", 2, *SMALL)
    assert code == 2
    assert re.fullmatch("minidiff: step 12: .*--lr; the checkpoint of step 10 is kept in run\n", err)
    assert len(rows(tmp_path / "run")) == 12


def test_a_training_overwrites_no_images(refused, data, tmp_path):
    for name in ("loss.png", "samples"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).mkdir()
        for command in ("train", "train-vae"):
            refused(command, data, "--out", name[:4], *SMALL, match=f"holds a {name} that is not of a run; choose")


def test_training_outlives_its_reader(data, tmp_path):
    """As under `| head -1`; what it would have printed is dropped."""
    child = process("train", "data", "--out", "run", "--steps", 30, *SMALL)
    assert child.stdout.readline() == "data: 10 images, 4x4 grey, 10 classes\n"
    with child:
        child.stdout.close()
        assert (child.stderr.read(), child.wait(100)) == ("", 0)
    assert len(rows(tmp_path / "run")) == 30 and state.open_run(tmp_path / "run").step == 30
    assert (tmp_path / "run" / "samples" / "step-000030.png").is_file()


def test_a_damaged_test_split_is_found_before_there_is_a_run(refused, data, tmp_path):
    idx_set(tmp_path / "test", n=7).joinpath("train-images-idx3-ubyte").rename(data / "t10k-images-idx3-ubyte")
    for command in (["train", "data", "--out", "run", *SMALL], ["train-vae", "data", "--out", "run", *SMALL]):
        refused(*command, match="neither t10k-labels-idx1-ubyte nor")
