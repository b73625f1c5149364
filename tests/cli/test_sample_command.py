"""minidiff sample without a prompt: samplers, classes, output files, damaged folders."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_commands import COLOURS, QUICK, SMALL, bytes_of, pipeline
from small_runs import rows, tree

import minidiff as md
from minidiff.cli.sampling import sample
from minidiff.diffusion.sampler import SAMPLERS
from minidiff.formats import networks
from minidiff.formats.schedulers import WITHOUT_CLASS
from minidiff.sampling import inputs


@pytest.mark.parametrize(
    "option, value, match",
    [
        ("n", "0", "'--n'"), ("n", "-3", "'--n'"), ("n", "100001", "'--n'"), ("steps", "0", "steps"),
        ("steps", "-1", "steps"), ("steps", "1001", "steps must be .* 1 to the schedule's 1000"), ("eta", "2", "eta"),
        ("eta", "-0.1", "eta"), ("eta", "nan", "eta"), ("seed", "-1", "'--seed'"), ("threads", "0", "0 threads"),
        ("threads", "9999", "9999 threads"), ("backend", "tpu", "'--backend': 'tpu' is not one of 'numba', 'numpy'"),
        ("sampler", "eulr", "'--sampler': 'eulr' is not one of 'ddpm', 'ddim'"),
    ],
)  # fmt: skip
def test_numbers_for_sample(refused, trained, option, value, match):
    refused("sample", "run", "--out", "sheet.png", f"--{option}", value, match=match)


def test_eta_is_for_ddim(refused, trained):
    refused("sample", "run", "--sampler", "ddpm", "--eta", "0.5", match="eta = 0.5 is for the ddim sampler: ddpm")


def test_sample(done, trained):
    """Nine pictures of 4x4, drawn four at a time, on a sheet three wide."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inputs, "BATCH_SIZE", 4)
        out = done("sample", "run", "--out", "sheet.png", "--n", 9, "--steps", 3, "--gif", "walk.gif", *QUICK)
    assert out.endswith("Wrote sheet.png and walk.gif\n")
    with Image.open("sheet.png") as sheet, Image.open("walk.gif") as walk:
        assert sheet.size[0] == sheet.size[1]
        assert walk.n_frames == 3
        pixels = np.asarray(sheet)
    assert len(np.unique(pixels)) > 9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_its_pictures_in_a_file(run, trained, sampler):
    code, out, err = run("sample", "run", "--n", 3, "--steps", 4, "--sampler", sampler, "--npz", "drawn.npz", *QUICK)
    assert code == 0 and out.endswith("Wrote sheet.png and drawn.npz\n")
    warning = "^minidiff: heun is inaccurate in 4 steps from sigma 20291: .* --karras"
    assert re.search(warning if sampler == "heun" else "^$", err)
    with np.load("drawn.npz") as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    assert images.shape == (3, 4, 4, 1) and images.dtype == np.uint8 and len(np.unique(images)) > 1


def test_without_a_sampler_the_folders_own_is_taken(done, tmp_path):
    """And ddpm takes all of the schedule's steps, which no walk of another length equals."""
    pipeline("net")
    networks.save_pipeline("net", md.linear_schedule(20), md.Sampler("ddpm", "leading", variance="fixed_large"))

    def drawn(*more):
        done("sample", "net", "--n", 2, "--npz", "drawn.npz", *QUICK, *more)
        with np.load("drawn.npz") as file:
            return file["arr_0"].tobytes()

    own = drawn()
    assert own == drawn("--steps", 20) == drawn("--sampler", "ddpm") == drawn("--spacing", "leading")
    assert (
        len({own, drawn("--steps", 10), drawn("--steps", 10, "--spacing", "trailing"), drawn("--noise", "torch")}) == 4
    )


def test_places_for_pictures_are_looked_at_first(refused, trained):
    Path("folder").mkdir()
    for npz in ("folder", ".", "/"):
        refused("sample", "run", "--npz", npz, *QUICK, match="is a folder; give the name of a file")
    refused("sample", "run", "--npz", "no/such.npz", *QUICK, match="no/such.npz: no such folder")
    refused("sample", "run", "--npz", "a.png", *QUICK, match="a.png: is to be a NumPy archive; give a name that ends")
    Path("a.npz").symlink_to("a.gif")
    Path("same").symlink_to(".")
    for places in ("a.gif", "--gif", "a.gif"), ("a.gif", "--gif", "same/a.gif"), ("a.gif", "--npz", "a.npz"):
        refused("sample", "run", "--out", *places, *QUICK, match=f"{places[2]}: is given for two files")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in WITHOUT_CLASS])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_steps_of_a_short_schedule(done, tmp_path, name, spacing):
    """Not given, they are as many as the schedule and the sampler allow."""
    pipeline("net")
    clip = 1.0 if name in ("ddpm", "ddim", "heun") else None
    networks.save_pipeline("net", md.linear_schedule(12), md.Sampler(name, spacing, offset=1, clip=clip))
    done("sample", "net", "--n", 1, *QUICK)


def test_a_class_on_demand(done, refused, data):
    """Asked for by name, class by class, insisted on; and the run goes on as it was, its labels with it."""
    done("train", data, "--out", "run", "--steps", 3, "--by-class", *SMALL)
    assert json.loads(Path("run/classes.json").read_text()) == [str(k) for k in range(10)]
    assert not Path("run/model_index.json").exists()  # no pipeline of diffusers draws by class
    assert md.load_unet("run", "numpy").config.num_class_embeds == 11

    def drawn(*more):
        done("sample", "run", "--steps", 2, "--npz", "drawn.npz", *QUICK, *more)
        with np.load("drawn.npz") as file:
            return file["arr_0"]

    threes, sevens = drawn("--n", 4, "--class", 3), drawn("--n", 4, "--class", 7)
    assert len(threes) == 4 and np.any(threes != sevens)
    assert np.any(drawn("--n", 4, "--class", 3, "--guidance", 3) != threes)
    assert len(drawn("--n", 25, "--class", "all")) == 25  # two or three of each
    with Image.open("sheet.png") as sheet:
        assert sheet.size[1] > 3 * sheet.size[0]  # a row a class
    np.testing.assert_array_equal(drawn("--n", 25), drawn("--n", 25, "--class", "all"))
    refused("sample", "run", "--class", "cat", *QUICK, match="run: has no class 'cat'; choose from 0, 1, .*, 9, or all")
    for guidance in ("nan", "inf", -1):
        refused("sample", "run", "--guidance", guidance, *QUICK, match="--guidance .*: give a number from 0 to 100")
    for names, match in (
        ("[1]", "classes.json: must be a list of names"),
        (json.dumps(["a"] * 12), "names more classes"),
    ):
        Path("run/classes.json").write_text(names)
        refused("sample", "run", *QUICK, match=match)
    Path("run/classes.json").unlink()
    refused("sample", "run", "--class", 3, "--guidance", 2, *QUICK, match="run: has no classes.json of all its classes")
    done("train", data, "--out", "run", "--steps", 5, "--resume", *QUICK)
    assert len(rows(Path("run"))) == 5


@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_what_is_done_with_continuous_times(done, refused, data, drawing_to_edit, objective):
    done("train", data, "--out", "run", "--steps", 2, "--objective", objective, "--by-class", *SMALL)
    for sampler in ("heun", "ddim", "dpmpp_2m"):
        done("sample", "run", "--n", 2, "--steps", 3, "--sampler", sampler, "--guidance", 2, *QUICK)
    done("redraw", "run", "picture.png", "--n", 2, "--steps", 4, *QUICK)
    done("fill", "run", "picture.png", "mask.png", "--n", 2, "--steps", 4, *QUICK)
    done("export", "run", "exported")
    done("sample", "exported", "--n", 2, "--steps", 3, *QUICK)
    refused("sample", "run", "--steps", 1001, *QUICK, match="steps must be an integer from 1 to 1000")
    refused("sample", "run", "--karras", *QUICK, match=f"karras is for schedules over whole timesteps: {objective}")


def test_what_no_class_can_be_asked_of(refused, trained):
    refused("sample", "run", "--class", "cat", *QUICK, match="run: was not trained by class; leave --class out")
    refused("sample", "run", "--class", os.fsdecode(b"\xff"), *QUICK, match="--class '.udcff': is not valid UTF-8")
    refused("sample", "run", "--guidance", 2, *QUICK, match="--guidance 2 is for networks that were trained by class")
    refused("train", "data", "--out", "run", "--resume", "--by-class", match="run: was started without --by-class")


def test_what_sample_cannot_do(refused, trained):
    refused("sample", "run", "--noise", "jax", *QUICK, match="'--noise': 'jax' is not one of 'numpy', 'torch'")
    refused("sample", "run", "--churn", 40, *QUICK, match="churn = 40 is for euler and heun: ddim has none")
    refused("sample", "run", "--sampler", "heun", "--churn", -1, *QUICK, match="churn must be a number from 0")
    refused("sample", "run", "--karras", *QUICK, match="karras is for euler, heun, dpmpp_2m, .* not for ddim")
    refused("sample", "run", "--spacing", "even", *QUICK, match="'--spacing': 'even' is not one of 'trailing'")


@pytest.mark.parametrize("more", [(), ("--sampler", "ddpm"), ("--eta", 1)])
def test_the_seed_decides(done, trained, more):
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        done("sample", "run", "--out", name, "--n", 3, "--steps", 3, "--seed", seed, *QUICK, *more)
    assert bytes_of("one.png") == bytes_of("two.png") != bytes_of("other.png")


def test_both_backends_draw_the_same(done, trained):
    for backend in ("numpy", "numba"):
        done("sample", "run", "--out", f"{backend}.png", "--n", 2, "--steps", 2, "--backend", backend, "--threads", 1)
    with Image.open("numpy.png") as one, Image.open("numba.png") as two:
        difference = np.abs(np.asarray(one, int) - np.asarray(two, int))
    assert difference.max() <= 1  # a float32's last bits may fall on either side of a rounding


@pytest.mark.parametrize("changes", [{}, COLOURS, {"sample_size": (2, 6)}, {**COLOURS, "sample_size": (5, 3)}])
def test_pictures_of_any_kind(done, tmp_path, changes):
    pipeline("net", **changes)
    done("sample", "net", "--n", 2, "--steps", 2, "--gif", "walk.gif", *QUICK)
    assert {"sheet.png", "walk.gif"} <= set(tree(tmp_path))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"in_channels": 4, "out_channels": 4}, "net: its images have 4 channels; a sheet shows 1 or 3"),
        ({"out_channels": 4}, "the model predicts .* both shapes must be equal"),
        (
            {
                "sample_size": 5, "block_out_channels": (8, 8), "down_block_types": ["DownBlock2D"] * 2,
                "up_block_types": ["UpBlock2D"] * 2,
            },
            "net: sample_size is 5x5, and the network downsamples it by 2 1 times",
        ),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_drawn_from(refused, changes, match):
    pipeline("net", **changes)
    refused("sample", "net", "--n", 2, "--steps", 2, *QUICK, match=match)


def test_no_run_to_sample(refused, tmp_path, data):
    (tmp_path / "file").write_text("")
    for name in ("missing", "data", "file", "x" * 300, ""):
        refused("sample", name, match="give a run |File name too long")


def test_damaged_runs(refused, trained):
    unet = trained / "run" / "unet"
    weights, config = (unet / networks.WEIGHTS).read_bytes(), json.loads((unet / "config.json").read_text())
    (unet / networks.WEIGHTS).write_bytes(weights[:-1])
    refused("sample", "run", *QUICK, match=f"{networks.WEIGHTS}: damaged or not safetensors")
    (unet / networks.WEIGHTS).write_bytes(weights)
    for changes, match in (
        ({"act_fn": "gelu"}, "act_fn = 'gelu' is not supported"),
        ({"layers_per_block": 60}, "implies at least"),
        ({"sample_size": 10**9}, "sample_size = 1000000000 is not supported"),
        ({"in_channels": 2}, "weights do not fit"),
    ):
        (unet / "config.json").write_text(json.dumps({**config, **changes}))
        refused("sample", "run", *QUICK, match=match)
    (unet / "config.json").write_text(json.dumps(config))
    scheduler = trained / "run" / "scheduler" / "scheduler_config.json"
    written = json.loads(scheduler.read_text())
    for config, match in (
        ({}, "(scheduler class|beta_schedule) None"),
        ({**written, "_class_name": "IPNDMScheduler"}, "scheduler class 'IPNDMScheduler' is not"),
        ({**written, "thresholding": True}, "thresholding = True is not supported"),
        ({**written, "num_train_timesteps": 10**12}, "num_train_timesteps must be an integer from 1 to"),
    ):
        scheduler.write_text(json.dumps(config))
        refused("sample", "run", *QUICK, match=f"scheduler_config.json: {match}")
    scheduler.unlink()
    refused("sample", "run", *QUICK, match="run: no scheduler/scheduler_config.json")


@pytest.mark.parametrize(
    "option, name, match",
    [
        ("out", "sheet.txt", "sheet.txt: unknown image format"), ("out", "sheet", "unknown image format"),
        ("out", "missing/sheet.png", "cannot write missing/sheet.png"), ("out", "run", "unknown image format"),
        ("gif", "walk.png", "walk.png: an animation is a GIF"), ("gif", "missing/walk.gif", "missing/walk.gif"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_written(refused, trained, option, name, match):
    refused("sample", "run", f"--{option}", name, "--n", 1, "--steps", 1, *QUICK, match=match)


def test_previews(done, refused, trained):
    """The last one is of the images' own size; the images are the same with it."""
    done("sample", "run", "--n", 4, "--steps", 7, *QUICK)
    without = bytes_of("sheet.png")
    done("sample", "run", "--n", 4, "--steps", 7, "--preview", "preview.png", *QUICK)
    assert bytes_of("sheet.png") == without
    with Image.open("preview.png") as preview, Image.open("sheet.png") as sheet:
        assert preview.size == sheet.size and "parameters" not in preview.info
    refused("sample", "run", "--preview", "sheet.png", *QUICK, match="sheet.png: is given for two files")
    refused("sample", "run", "--preview", "no/such.png", *QUICK, match="cannot write no/such.png: no such folder")
    Path("f").mkdir()
    refused("sample", "run", "--folder", "f", "--preview", "f/a.png", *QUICK, match="f/a.png: lies in f, which is to")


def test_more_than_the_memory_holds(refused, trained, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError("Unable to allocate 3.00 TiB for an array with shape (1, 2)")

    monkeypatch.setattr(sample, "sample", too_large)
    refused("sample", "run", *QUICK, match="Unable to allocate 3.00 TiB")


def test_bfloat16_samples_nearly_the_same(done, trained):
    """In uint8 most values are the same; some are not, or nothing would have been rounded."""
    images = {}
    for precision in ("float32", "bf16"):
        done("sample", "run", "--n", 4, "--steps", 3, "--npz", "images.npz", "--precision", precision)
        with np.load("images.npz") as file:
            images[precision] = file["arr_0"].astype(int)
    difference = np.abs(images["bf16"] - images["float32"])
    assert 0 < difference.max() and difference.mean() < 3


@pytest.mark.parametrize(
    "command", [["sample", "run"], ["redraw", "run", "picture.png"], ["fill", "run", "picture.png", "mask.png"]]
)
def test_bfloat16_is_for_numba(refused, trained, drawing_to_edit, command):
    match = "--precision bf16 is for --backend numba: leave out one of them"
    refused(*command, "--precision", "bf16", "--backend", "numpy", match=match)


def test_training_has_no_precision(refused, trained):
    refused("train", "data", "--out", "new", "--backend", "numba-bf16", match="'numba-bf16' is not one of 'numba'")
