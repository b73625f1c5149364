"""The widget `sampler`: its numbers are those of md.sample, and its controls change what is drawn."""

import numpy as np
import pytest

import minidiff as md
from minidiff.data.points import CLUSTERS
from minidiff.diffusion.noise_levels import timesteps

SCHEDULE = md.linear_schedule()
MIXTURE = md.GaussianMixture(CLUSTERS.means, CLUSTERS.stds[:, None])
PAGE = "course/04_reverse_diffusion.html"
N = 24


@pytest.fixture
def page(open_page):
    page = open_page(PAGE)
    page.locator("figure[data-widget=sampler]").scroll_into_view_if_needed()
    return page


class GivenNoise:
    """An rng whose numbers are given, an array for each call."""

    def __init__(self, arrays):
        self.arrays = iter(arrays)

    def standard_normal(self, shape, dtype):
        return next(self.arrays)


def control(page, label):
    figure = page.locator("figure[data-widget=sampler]")
    return figure.locator("label.control", has=page.locator(f"span:text-is('{label}')")).locator("input, select")


def move(page, label, value):
    control(page, label).evaluate("(input, value) => minidiff.set(input, value)", value)


def drawn(page):
    return page.evaluate("[...document.querySelectorAll('[data-widget=sampler] canvas')].map(c => c.toDataURL())")


def readouts(page):
    return page.locator("[data-widget=sampler] tr", has_text="samples").locator("td").all_text_contents()[1:]


def test_timesteps_and_schedule(page):
    theirs = page.evaluate("Array.from({length: 1000}, (_, i) => minidiff.sampler.timesteps(i + 1))")
    assert theirs == [timesteps(1000, steps).tolist() for steps in range(1, 1001)]
    table = page.evaluate("[...minidiff.diffusion.alphasCumprod('linear')]")
    np.testing.assert_allclose(table, SCHEDULE.alphas_cumprod, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "eta"), [("ddpm", 0), ("ddim", 0), ("ddim", 0.35), ("ddim", 1), ("heun", 0), ("dpmpp_2m", 0)]
)
def test_states_are_those_of_the_library(page, name, eta):
    """To 1e-9: float64, and the first steps divide its rounding by sqrt(alpha_bar) = 0.006."""
    exact, sampler = md.exact_model(MIXTURE, SCHEDULE), md.Sampler(name, eta=float(eta), clip=None)
    for steps in (1, 2, 3, 10, 16, 75, 200):
        x_T, *noise = np.random.default_rng(steps).standard_normal((steps, N, 1, 1, 2))
        evaluations = []

        def model(x_t, t, evaluations=evaluations):
            evaluations.append(t)
            return exact(x_t, t)

        ours = [*md.sample(model, SCHEDULE, x_T.shape, GivenNoise(noise), steps, sampler, x_T=x_T)]
        theirs = page.evaluate(
            """([settings, x_T, noise]) => {
                const run = minidiff.sampler.sample(settings, Float64Array.from(x_T), (i) => noise[i]);
                const evaluations = minidiff.sampler.evaluations(settings.name, settings.steps);
                return {ts: run.ts, evaluations, states: run.states.map((x) => [...x])};
            }""",
            [{"name": name, "steps": steps, "eta": eta}, x_T.ravel().tolist(), [z.ravel().tolist() for z in noise]],
        )
        assert theirs["ts"] == [999, *(t for t, _, _ in ours)]
        assert theirs["evaluations"] == len(evaluations)
        states = np.array([x_T, *(x_t for _, x_t, _ in ours)]).reshape(steps + 1, -1)
        np.testing.assert_allclose(theirs["states"], states, rtol=1e-9, atol=1e-9)


def test_statistics_and_density(page):
    x, _ = MIXTURE.sample(500, np.random.default_rng(0))
    x = x.reshape(-1, 2)
    u = x.sum(1) / np.sqrt(2)
    from_nearer = x - CLUSTERS.means[(u > 0).astype(int)]
    between = np.mean(np.abs(u) < np.linalg.norm(CLUSTERS.means[0]) - 2 * CLUSTERS.stds[0])
    theirs = page.evaluate("(x) => minidiff.sampler.statistics(Float64Array.from(x))", x.ravel().tolist())
    assert theirs == pytest.approx({"within": from_nearer.std(), "between": between, "dogs": np.mean(u > 0)}, rel=1e-9)

    along = md.GaussianMixture(np.array([[-1], [1]]) * 0.45 * np.sqrt(2), 0.2)
    for alpha_bar in (1.0, 0.7, 0.001):
        ours = np.exp(along.log_density(u.reshape(-1, 1, 1, 1), alpha_bar))
        theirs = page.evaluate(
            "([u, alphaBar]) => u.map((value) => minidiff.diffusion.density(value, alphaBar))", [u.tolist(), alpha_bar]
        )
        np.testing.assert_allclose(theirs, ours, rtol=1e-9)


def test_the_table_states_the_data():
    """The row of the data: 2.3 % of them count as between the clusters."""
    x, _ = MIXTURE.sample(1_000_000, np.random.default_rng(0))
    u = x.sum(-1).ravel() / np.sqrt(2)
    assert np.mean(np.abs(u) < 0.45 * np.sqrt(2) - 0.4) == pytest.approx(0.0228, abs=4 * 1.5e-4)  # 4 standard errors


def test_sampler_steps_eta_and_seed_change_what_is_drawn(page):
    seen = [(drawn(page), readouts(page))]
    assert seen[0][1][0] == "10"
    moves = [
        ("eta", 0.5, "10"),
        ("seed", 3, "10"),
        ("steps", 4, "5"),
        ("sampler", "heun", "9"),
        ("sampler", "ddpm", "5"),
    ]
    for label, value, evaluations in moves:
        move(page, label, value)
        seen.append((drawn(page), readouts(page)))
        assert seen[-1][1][0] == evaluations
        assert all(before != after for before, after in zip(seen[-2][0], seen[-1][0], strict=True)), label
        assert seen[-2][1][1:] != seen[-1][1][1:], label
    assert control(page, "eta").is_disabled()
    move(page, "sampler", "ddim")
    assert control(page, "eta").is_enabled()


def test_ddpm_is_ddim_with_eta_1(page):
    move(page, "sampler", "ddpm")
    of_ddpm = readouts(page)
    move(page, "sampler", "ddim")
    move(page, "eta", 1)
    assert readouts(page) == of_ddpm


def test_steps_are_reached_by_buttons_slider_and_keyboard(page):
    figure, step = page.locator("[data-widget=sampler]"), control(page, "step")
    at_end = drawn(page)
    assert figure.get_by_role("button", name="Forward").is_disabled()
    figure.get_by_role("button", name="Back").click()
    assert step.input_value() == "9"
    assert drawn(page) != at_end
    figure.get_by_role("button", name="Forward").click()
    assert drawn(page) == at_end
    step.focus()
    step.press("ArrowLeft")
    assert step.input_value() == "9"
    step.press("Home")
    assert step.input_value() == "0"
    assert figure.get_by_role("button", name="Back").is_disabled()
    move(page, "steps", 10)
    assert step.get_attribute("max") == "20"


def test_nothing_moves_before_play_nor_out_of_sight(page):
    figure, step = page.locator("[data-widget=sampler]"), control(page, "step")
    before = drawn(page)
    page.wait_for_timeout(300)
    assert drawn(page) == before
    figure.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('[data-widget=sampler] .player input').value > 0")
    assert figure.get_by_role("button", name="Pause").is_visible()
    page.evaluate("scrollTo(0, 0)")
    figure.get_by_role("button", name="Play").wait_for()
    paused = step.input_value()
    page.wait_for_timeout(800)
    assert step.input_value() == paused != "10"


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_points_move_between_two_steps_unless_less_motion_is_asked_for(open_page, motion):
    page = open_page(PAGE, reduced_motion=motion)
    page.locator("[data-widget=sampler]").scroll_into_view_if_needed()
    move(page, "steps", 0)  # a single step
    page.locator("[data-widget=sampler]").get_by_role("button", name="Play").click()
    page.wait_for_timeout(200)
    first = drawn(page)
    page.wait_for_timeout(200)
    assert control(page, "step").input_value() == "0"
    assert (drawn(page) == first) == (motion == "reduce")
