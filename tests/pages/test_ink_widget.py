"""The ink of chapter 1: its numbers are NumPy's, its controls change what is shown, and it moves only when asked."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minidiff as md
from minidiff.data.points import CLUSTERS
from minidiff.diffusion.schedule import snr

PAGE, FIGURE = "course/01_forward_diffusion.html", 'figure.widget[data-widget="ink"]'
SCHEDULES = {"cosine": md.cosine_schedule(), "linear": md.linear_schedule()}
SETTINGS = list(itertools.product((True, False), repeat=2))  # drift, noise
T, EPS = 1000, np.finfo(float).eps


@pytest.fixture
def page(open_page):
    page = open_page(PAGE)
    page.locator(FIGURE).scroll_into_view_if_needed()
    return page


def pictures(page):
    return page.locator(f"{FIGURE} canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")


def set_t(page, t):
    page.locator(f"{FIGURE} input[type=range]").evaluate("(input, t) => minidiff.set(input, t)", t)


def get_t(page):
    return int(page.locator(f"{FIGURE} input[type=range]").input_value())


@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_are_those_of_the_schedule(page, name):
    ours = page.evaluate("name => Array.from(minidiff.diffusion.betas(name))", name)
    assert_allclose(ours, SCHEDULES[name].betas, rtol=0, atol=8 * EPS)  # 1 - f / f': a few roundings of numbers below 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_theory_is_q_sample(page, name):
    schedule, t = SCHEDULES[name], np.arange(T)
    ours = page.evaluate(
        """name => {
          const {a, v} = minidiff.ink.coefficients(minidiff.diffusion.betas(name), true, true);
          return a.map((_, i) => minidiff.ink.theory({mean: [1.7, 1.2], std: 0.2}, a[i], v[i])).slice(1);
        }""",
        name,
    )
    start = np.broadcast_to([1.7, 1.2], (T, 1, 1, 2))
    mean = md.q_sample(schedule, start, t, np.zeros_like(start)).reshape(T, 2)
    of_start = md.q_sample(schedule, np.full((T, 1, 1, 1), 0.2), t, np.zeros((T, 1, 1, 1))).ravel()
    of_noise = md.q_sample(schedule, np.zeros((T, 1, 1, 1)), t, np.ones((T, 1, 1, 1))).ravel()
    # Both multiply up to T numbers, rounded each time.
    assert_allclose([each["mean"] for each in ours], mean, rtol=4 * T * EPS)
    assert_allclose([each["std"] for each in ours], np.hypot(of_start, of_noise), rtol=4 * T * EPS)
    # After t steps 1 - alpha_bar is uncertain by about t EPS, and it is at least t times the first beta.
    tolerance = 4 * T * EPS + 8 * EPS / schedule.betas[0]
    assert_allclose([each["logSNR"] for each in ours], np.log(snr(schedule, t)), rtol=0, atol=tolerance)


def test_chain_is_ddpms_equation_2(page):
    rng, betas = np.random.default_rng(0), SCHEDULES["cosine"].betas
    x0, z = rng.standard_normal(6), rng.standard_normal((T, 6))
    for drift, noise in SETTINGS:
        states = [x0]
        for beta, fresh in zip(betas, z, strict=True):
            states.append(np.sqrt(1 - beta) ** drift * states[-1] + noise * np.sqrt(beta) * fresh)
        ours = page.evaluate(
            """([x0, betas, z, drift, noise]) =>
              minidiff.ink.chain(Float64Array.from(x0), betas, z, drift, noise).map(x => Array.from(x))""",
            [x0.tolist(), betas.tolist(), z.ravel().tolist(), drift, noise],
        )
        assert_allclose(ours, states, rtol=0, atol=4 * T * EPS * np.abs(states).max())  # four roundings a step


def test_measurements_are_numpys(page):
    rng = np.random.default_rng(1)
    x0, x, a = rng.standard_normal((500, 2)), rng.standard_normal((500, 2)), 0.6
    moments, log_snr = page.evaluate(
        "([x, x0, a]) => [minidiff.ink.moments(x), minidiff.ink.logSNR(x, x0, a)]",
        [x.ravel().tolist(), x0.ravel().tolist(), a],
    )
    tolerance = dict(rtol=1000 * EPS, atol=1000 * EPS)  # sums of 1000 numbers
    assert_allclose(moments["mean"], x.mean(0), **tolerance)
    assert_allclose(moments["std"], np.sqrt(x.var(0).mean()), **tolerance)
    assert_allclose(log_snr, np.log(a**2 / np.mean((x - a * x0) ** 2)), **tolerance)


def test_starts_are_the_chapters(page):
    drop, clusters = (
        np.reshape(page.evaluate("name => Array.from(minidiff.ink.particles(name))", name), (2, 200, 2))
        for name in ("drop", "clusters")
    )
    assert np.hypot(*(drop.reshape(-1, 2) - [1.7, 1.2]).T).max() <= 0.35
    standard_error = CLUSTERS.stds[0] / np.sqrt(200)
    assert_allclose(clusters.mean(1), CLUSTERS.means, atol=4 * standard_error)
    assert_allclose(clusters.std(1), CLUSTERS.stds[0], atol=4 * standard_error / np.sqrt(2))


def test_particles_do_what_theory_says(page):
    figure = page.locator(FIGURE)
    for start, (drift, noise), t in itertools.product(["a drop", "two clusters"], SETTINGS, [0, 400, 999]):
        figure.get_by_label("start").select_option(start)
        figure.get_by_label("drift").set_checked(drift)
        figure.get_by_label("random motion").set_checked(noise)
        set_t(page, t)
        mean, mean_in_theory, std, std_in_theory, log_snr, log_snr_in_theory = numbers(figure)
        error = std_in_theory[0] if noise else 0  # of one particle; both numbers are shown to two places
        assert_allclose(mean, mean_in_theory, rtol=0, atol=4 * error / np.sqrt(400) + 0.01)
        assert_allclose(std, std_in_theory, rtol=0, atol=4 * error / np.sqrt(2 * 800) + 0.01)
        assert_allclose(log_snr, log_snr_in_theory, rtol=0, atol=4 * np.sqrt(2 / 800) + 0.01)


def numbers(figure):
    """The numbers of every cell of the readouts: for mean, standard deviation and log-SNR, of particles and theory."""
    texts = [figure.locator("td").nth(i).inner_text().replace("−", "-") for i in (0, 2, 4)]
    in_theory = [figure.locator("td .value").nth(i).inner_text().replace("−", "-") for i in range(3)]
    pairs = itertools.chain(*zip(texts, in_theory, strict=True))
    cells = [text.strip("()").replace("∞", "inf").split(", ") for text in pairs]
    return [list(map(float, cell)) for cell in cells]


def test_readouts_of_a_drop(page):
    set_t(page, 400)
    alpha_bar = SCHEDULES["cosine"].alphas_cumprod[400]
    start = np.reshape(page.evaluate("Array.from(minidiff.ink.particles('drop'))"), (400, 2))
    _, mean, _, std, _, log_snr = numbers(page.locator(FIGURE))
    assert_allclose(mean, np.sqrt(alpha_bar) * start.mean(0), atol=0.00501)
    assert_allclose(std, np.sqrt(alpha_bar * start.var(0).mean() + 1 - alpha_bar), atol=0.00501)
    assert_allclose(log_snr, np.log(alpha_bar / (1 - alpha_bar)), atol=0.00501)


def test_every_control_changes_the_pictures(page):
    figure = page.locator(FIGURE)
    set_t(page, 400)
    seen = [pictures(page)]
    for change in (
        lambda: set_t(page, 401),
        lambda: figure.get_by_label("drift").uncheck(),
        lambda: figure.get_by_label("random motion").uncheck(),
        lambda: figure.get_by_label("random motion").check(),
        lambda: figure.get_by_label("schedule").select_option("linear"),
        lambda: figure.get_by_label("start").select_option("two clusters"),
    ):
        change()
        seen.append(pictures(page))
        assert all(now != before for now, before in zip(*seen[-2:], strict=True))


def test_plays_and_pauses_by_keyboard_and_only_in_sight(page):
    button = page.locator(FIGURE).get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('{FIGURE} input[type=range]').value > 20")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)  # until the page has noticed
    out_of_sight = get_t(page)
    page.wait_for_timeout(300)
    assert get_t(page) == out_of_sight < 999
    button.scroll_into_view_if_needed()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('{FIGURE} input[type=range]').value > {out_of_sight}")
    page.keyboard.press("Enter")
    paused = get_t(page)
    page.wait_for_timeout(300)
    assert get_t(page) == paused


def test_plays_to_the_end_and_again(page):
    button = page.locator(FIGURE).get_by_role("button")
    set_t(page, 990)
    button.click()
    page.wait_for_function(f"document.querySelector('{FIGURE} button').textContent === 'Play'")
    assert get_t(page) == 999
    button.click()
    assert get_t(page) < 900


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_unasked(open_page, motion):
    page = open_page(PAGE, reduced_motion=motion)
    page.locator(FIGURE).scroll_into_view_if_needed()
    before = pictures(page)
    page.wait_for_timeout(300)
    assert pictures(page) == before


def test_works_from_a_file(open_page, site_folder):
    page = open_page((site_folder / PAGE).as_uri())
    set_t(page, 400)
    assert page.locator(f"{FIGURE} td").count() == 6
