"""The widget `denoising`: its images are what the course's model samples now, its numbers those of the schedule."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minidiff as md
import minidiff.learn

COURSE = Path(__file__).parents[2] / "docs" / "course"
PAGE = "course/04_reverse_diffusion.html"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("denoising_frames", COURSE / "denoising_frames.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def frames(script):
    """The committed frames: (images, 2, 25, 32, 32, 3)."""
    sprite = np.asarray(Image.open(script.SPRITE)).reshape(4, 2, 32, 25, 32, 3)
    return sprite.transpose(0, 1, 3, 2, 4, 5)


def figure_of(page):
    figure = page.locator("figure[data-widget=denoising]")
    figure.scroll_into_view_if_needed()
    page.wait_for_load_state("networkidle")
    return figure


def control(figure, label):
    return figure.locator("label.control", has=figure.page.locator(f"span:text-is('{label}')")).locator("input, select")


def move(figure, label, value):
    control(figure, label).evaluate("(input, value) => minidiff.set(input, value)", value)


def shown(figure):
    """x_t and x0_hat as the screen shows them, without the rounded corners: the middles of pixels, (2, 28, 28, 3)."""
    images = []
    for place in range(2):
        screen = Image.open(io.BytesIO(figure.locator("canvas").nth(place).screenshot())).convert("RGB")
        at = [np.rint((np.arange(2, 30) + 0.5) * length / 32 - 0.5).astype(int) for length in screen.size]
        images.append(np.asarray(screen)[np.ix_(at[1], at[0])])
    return np.stack(images)


def test_the_sprite_is_what_the_script_makes(script, frames):
    """To 1 of 255: float32 rounds differently with another BLAS."""
    now = script.frames()
    assert now.shape == frames.shape
    assert np.abs(now.astype(int) - frames.astype(int)).max() <= 1
    np.testing.assert_array_equal(script.sprite(frames), np.asarray(Image.open(script.SPRITE)))


def test_levels_are_those_of_the_schedule(script, open_page):
    schedule = md.open_pipeline(Path(minidiff.learn.__file__).parent / "cats_dogs", backend="numpy").schedule
    page = open_page(PAGE)
    np.testing.assert_allclose(
        page.evaluate("[...minidiff.diffusion.alphasCumprod('cosine')]"), schedule.alphas_cumprod, rtol=1e-9
    )
    levels = page.evaluate("minidiff.denoising.levels()")
    ts = script.timesteps(schedule)
    assert [level["t"] for level in levels] == ts.tolist()
    alpha_bar = schedule.alphas_cumprod[ts]
    for name, value in {
        "signal": np.sqrt(alpha_bar), "noise": np.sqrt(1 - alpha_bar), "logSNR": np.log(alpha_bar / (1 - alpha_bar)),
    }.items():  # fmt: skip
        np.testing.assert_allclose([level[name] for level in levels], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("address", ["http", "file"])
def test_each_image_and_step_is_shown(script, frames, open_page, site_folder, address):
    figure = figure_of(open_page(PAGE if address == "http" else f"file://{site_folder}/{PAGE}"))
    for image, (seed, label) in enumerate(script.IMAGES):
        move(figure, "noise", str(seed))
        move(figure, "class", ["cat", "dog"][label])
        for step in (0, 13, 24):
            move(figure, "step", step)
            np.testing.assert_array_equal(shown(figure), frames[image, :, step, 2:-2, 2:-2])


def test_numbers_follow_the_slider(open_page):
    figure = figure_of(open_page(PAGE))
    cells = figure.locator("td")
    assert cells.all_text_contents() == ["495", "0.0", "0.707", "0.707"]
    curves = figure.locator("canvas").nth(2)
    before = curves.evaluate("c => c.toDataURL()")
    control(figure, "step").focus()
    control(figure, "step").press("Home")
    assert cells.all_text_contents() == ["967", "\N{MINUS SIGN}6.0", "0.050", "0.999"]
    assert curves.evaluate("c => c.toDataURL()") != before
    figure.get_by_role("button", name="Forward").click()
    assert cells.first.text_content() == "958"


def test_play_runs_to_the_end_and_nothing_moves_before(open_page):
    figure = figure_of(open_page(PAGE, reduced_motion="reduce"))
    step = control(figure, "step")
    figure.page.wait_for_timeout(300)
    assert step.input_value() == "12"
    move(figure, "step", 22)
    figure.get_by_role("button", name="Play").click()
    figure.page.wait_for_function("document.querySelector('[data-widget=denoising] .player input').value === '24'")
    figure.get_by_role("button", name="Play").wait_for()
