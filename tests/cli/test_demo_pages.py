"""The demo's pictures and the page that shows them."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from small_runs import contents, network, refused, rows, tree

from minidiff.cli import demo_pages
from minidiff.cli.demo_pages import fitted, forward_strip, open_demo, write_pages
from minidiff.data.cats_dogs import cats_dogs
from minidiff.data.imaging import strip
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.training import loop, state
from minidiff.training.kinds.unet_run import UNetRun

SCHEDULE = cosine_schedule(1000, "v_prediction")
SHOWN = {"data.png", "forward.png", "loss.png", "reverse.gif", "reverse.png", "samples.png", "classes.png"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A net, a training and pictures so few that they show nothing."""
    tiny = network(in_channels=3, out_channels=3, sample_size=32, num_class_embeds=3)
    monkeypatch.setattr(demo_pages, "default_config", lambda shape, num_class_embeds: tiny)
    for name, value in dict(TRAINING_STEPS=2, SAMPLES=4, STEPS=12, DDIM_STEPS=14, TICKS=12 + 14).items():
        monkeypatch.setattr(demo_pages, name, value)


def train(run, dataset, steps=0):
    """To the end, or for some steps."""
    done = iter(range(1, 100))
    loop.fit(run, dataset, 100, lambda stats: None, lambda step, loss: None, lambda: next(done) == steps)


class Page(HTMLParser):
    """The pictures of a page; its tags must be balanced and every picture described."""

    def __init__(self, text):
        super().__init__()
        self.open, self.shown = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            assert dict(attrs)["alt"]
            self.shown.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_picture_of_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "save_progress", lambda *run: None)
    run, dataset = open_demo(tmp_path, 1, seed=0)
    train(run, dataset)
    before = contents(tmp_path / "run")
    ticks = []
    write_pages(run, dataset, tmp_path, lambda: ticks.append(1))

    assert len(ticks) == 12 + 14
    assert {name for name in tree(tmp_path) if not name.startswith("run")} == SHOWN | {"index.html"}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.shown) == SHOWN and len(page.shown) == len(SHOWN)
    assert "over 2 steps" in text and "{" not in text.split("</style>")[1]
    assert contents(tmp_path / "run") == before, "sampling changed the run"
    for name in SHOWN - {"reverse.gif"}:
        with Image.open(tmp_path / name) as picture:
            assert len(np.unique(np.asarray(picture))) > 5, f"{name} is empty"
    with Image.open(tmp_path / "reverse.gif") as walk:
        assert walk.n_frames == 14 + 1  # the noise, and what each step made of it


def test_the_pages_come_from_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "save_progress", lambda *run: None)
    pages = {}
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        run, dataset = open_demo(tmp_path / name, 1, seed)
        train(run, dataset)
        write_pages(run, dataset, tmp_path / name, lambda: None)
        pages[name] = {file: (tmp_path / name / file).read_bytes() for file in SHOWN - {"data.png"}}
    assert pages["one"] == pages["two"]
    assert all(pages["one"][file] != pages["other"][file] for file in pages["one"])


def test_open_demo(tmp_path, monkeypatch):
    """New; stopped: goes on; finished, shown or not: stays."""
    monkeypatch.setattr(loop, "save_progress", lambda *run: None)
    run, dataset = open_demo(tmp_path, 1, seed=0)
    assert (run.step, run.config.steps, run.config.data, len(dataset)) == (0, 2, "cats_dogs", len(cats_dogs()))
    train(run, dataset, steps=1)
    with open(tmp_path / "run" / "metrics.csv", "a") as log:
        log.write("2,0.1")
    run, dataset = open_demo(tmp_path, 2, seed=0)
    assert (run.step, run.config.threads, len(rows(tmp_path / "run"))) == (1, 2, 1)
    train(run, dataset)
    assert open_demo(tmp_path, 1, seed=0)[0].step == 2
    write_pages(run, dataset, tmp_path, lambda: None)
    before = tree(tmp_path)
    assert open_demo(tmp_path, 1, seed=0)[0].step == 2
    assert tree(tmp_path) == before


OTHERS = {
    "data": dict(data="mine"), "seed": dict(seed=1), "steps": dict(steps=3), "min_snr": dict(min_snr=5.0),
    "network": dict(layers_per_block=2), "noise schedule": dict(schedule=cosine_schedule(9)),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_left_alone(tmp_path, what):
    """Whatever of its configuration is another; all but threads and backend must be the demo's."""
    twin, _ = open_demo(tmp_path / "twin", 1, seed=0)
    changes = {"backend": "numpy", "threads": 3, **OTHERS[what]}
    schedule = changes.pop("schedule", twin.schedule)
    net = replace(twin.unet.config, layers_per_block=changes.pop("layers_per_block", 1))
    state.new_run(UNetRun, tmp_path / "run", replace(twin.config, **changes), net, schedule)
    before = tree(tmp_path)
    match = rf"run: is not the run of this demo \(its {what} .*\); choose another --out"
    refused(open_demo, tmp_path, 1, 0, match=match)
    assert tree(tmp_path) == before


def test_a_run_of_another_backend_is_the_same(tmp_path):
    twin, _ = open_demo(tmp_path / "twin", 1, seed=0)
    config = replace(twin.config, backend="numpy", threads=3)
    state.new_run(UNetRun, tmp_path / "run", config, twin.unet.config, twin.schedule)
    assert open_demo(tmp_path, 1, seed=0)[0].step == 0


@pytest.mark.parametrize("name", [*sorted(SHOWN), "index.html", "training/state.safetensors"])
def test_what_the_demo_did_not_write_is_left_alone(tmp_path, monkeypatch, name):
    """Where it begins, where it resumes, and where it comes in between; by a page of its own it knows its images."""
    monkeypatch.setattr(loop, "save_progress", lambda *run: None)
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    match = f"{name}: was not written by this demo; move it, or choose another --out"

    def is_refused(function, *args):
        foreign.write_text("mine")
        before = tree(tmp_path)
        refused(function, *args, match=match)
        assert tree(tmp_path) == before
        foreign.unlink()

    is_refused(open_demo, tmp_path, 1, 0)
    run, dataset = open_demo(tmp_path, 1, seed=0)
    is_refused(open_demo, tmp_path, 1, 0)
    train(run, dataset)
    is_refused(write_pages, run, dataset, tmp_path, lambda: None)
    write_pages(run, dataset, tmp_path, lambda: None)
    (tmp_path / "index.html").write_text((tmp_path / "index.html").read_text() + "<p>My notes.</p>")
    refused(open_demo, tmp_path, 1, 0, match="index.html: was not written by this demo")


@pytest.mark.parametrize("shape", [(5, 9, 3), (9, 5, 3), (8, 8, 1), (1, 1, 3), (64, 48, 1)])
def test_forward_strip(shape):
    """Ten pictures from the picture itself to noise; the first differs by almost nothing."""
    image = np.full(shape, 200, np.uint8)
    drawn = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            demo_pages, "strip", lambda images, labels: drawn.append((images, labels)) or strip(images, labels)
        )
        picture = forward_strip(SCHEDULE, image, np.random.default_rng(0))
    ((images, labels),) = drawn
    assert images.shape == (10, *shape) and images.dtype == np.uint8
    assert labels[0] == "t = 0" and labels[-1] == "t = 999" and len(labels) == 10
    # x_0 has (1 - abar_0) = 4e-5 of noise, a deviation of 0.0064 or 0.8 grey values; five deviations are 4
    assert np.abs(images[0].astype(int) - 200).max() <= 4
    assert picture.mode == "RGB" and picture.size[0] > picture.size[1]


def test_forward_strip_ends_in_noise_and_keeps_the_same_noise():
    """At the end nothing of the picture is left, whatever it was; between, the same eps throughout."""
    drawn = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo_pages, "strip", lambda images, labels: drawn.append(images))
        for value in (0, 255):
            forward_strip(SCHEDULE, np.full((16, 16, 3), value, np.uint8), np.random.default_rng(0))
    black, white = drawn
    # abar_999 = 2.4e-9: the picture's share of the last one is 5e-5, which is no grey value
    np.testing.assert_allclose(black[-1].astype(int), white[-1], atol=1)
    late, last = (white[i].astype(float).ravel() for i in (-2, -1))
    assert np.corrcoef(late, last)[0, 1] > 0.9


@pytest.mark.parametrize(
    "before, after", [((300, 200), (256, 171)), ((100, 50), (100, 50)), ((1, 4000), (1, 256)), ((256, 256), (256, 256))]
)
def test_fitted(before, after):
    image = np.zeros((before[1], before[0], 3), np.uint8)
    assert fitted(image, 256).shape == (after[1], after[0], 3)
