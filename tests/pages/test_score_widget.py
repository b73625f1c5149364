"""The score field of chapter 2: its numbers are NumPy's, x_t moves by key, mouse and finger, and only when asked."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minidiff as md
from minidiff.data.points import CLUSTERS
from minidiff.diffusion.exact import exact_model
from minidiff.diffusion.schedule import from_alphas_cumprod
from minidiff.diffusion.steps import ddim_step

PAGE, FIGURE = "course/02_two_dimensions.html", 'figure.widget[data-widget="score"]'
MIXTURE = md.GaussianMixture(CLUSTERS.means, CLUSTERS.stds[:, None])
LOG_SNRS = np.linspace(-10, 7, 171)
LEVELS = 1 / (1 + np.exp(-LOG_SNRS))
SCHEDULE = from_alphas_cumprod(LEVELS[::-1])  # timestep t is level 170 - t
MODEL = exact_model(MIXTURE, SCHEDULE)

# The schedule multiplies 171 numbers up: 171 roundings of alpha_bar, divided by 1 - alpha_bar of 1e-3 at the least.
# Before the fork a step moves points together, and after it the distance from the line grows at most a hundredfold.
TOLERANCE = dict(rtol=0, atol=100 * 171 * np.finfo(float).eps / 1e-3)  # 4e-9


@pytest.fixture
def page(open_page):
    page = open_page(PAGE)
    page.locator(FIGURE).scroll_into_view_if_needed()
    return page


def pictures(page):
    return page.locator(f"{FIGURE} canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")


def set_log_snr(page, value):
    page.locator(f"{FIGURE} input[type=range]").evaluate("(input, value) => minidiff.set(input, value)", value)


def get_log_snr(page):
    return float(page.locator(f"{FIGURE} input[type=range]").input_value())


def readout(page, i):
    """The i-th of the values: noisy point, expected clean point, score, end of the trajectory, ends of the others."""
    return page.locator(f"{FIGURE} .values output").nth(i).inner_text()


def point(page, i=0):
    return [float(number) for number in readout(page, i).replace("−", "-").strip("()").split(", ")]


def test_density_score_weights_and_expectations(page):
    rng = np.random.default_rng(0)
    x, alpha_bar = 1.5 * rng.standard_normal((200, 2)), rng.choice(LEVELS, 200)
    ours = page.evaluate(
        "([x, alphaBar]) => x.map((each, n) => minidiff.score.exact(each, alphaBar[n]))",
        [x.tolist(), alpha_bar.tolist()],
    )
    x_t = x.reshape(-1, 1, 1, 2)
    x0, eps = MIXTURE.x0_and_eps(x_t, alpha_bar)
    tolerance = dict(rtol=1e-11, atol=1e-11)  # exponents of up to 1e3, with a relative error of a few 1e-16, then exp
    assert_allclose([each["density"] for each in ours], np.exp(MIXTURE.log_density(x_t, alpha_bar)), **tolerance)
    assert_allclose([each["weights"] for each in ours], MIXTURE.class_probabilities(x_t, alpha_bar), **tolerance)
    assert_allclose([each["score"] for each in ours], MIXTURE.score(x_t, alpha_bar).reshape(-1, 2), **tolerance)
    assert_allclose([each["x0"] for each in ours], x0.reshape(-1, 2), **tolerance)
    assert_allclose([each["eps"] for each in ours], eps.reshape(-1, 2), **tolerance)


@pytest.mark.parametrize("eta", [0, 1])
def test_trajectories_are_those_of_ddim(page, eta):
    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((20, 1, 1, 2)), rng.standard_normal((171, 2))
    assert_allclose(page.evaluate("minidiff.score.LOG_SNRS.map(minidiff.diffusion.alphaBarOf)"), LEVELS, rtol=1e-14)
    for start in (0, 60):
        states = [x]
        for level in range(start, 170):
            t = 170 - level
            eps_hat = MODEL(states[-1], t)
            states.append(ddim_step(SCHEDULE, eps_hat, states[-1], t, t - 1, eta, z[level]))
        ours = page.evaluate(
            "([x, start, eta, z]) => x.map(each => minidiff.score.trajectory(each, start, eta, z))",
            [x.reshape(20, 2).tolist(), start, eta, z.ravel().tolist()],
        )
        assert_allclose(np.swapaxes(ours, 0, 1), np.reshape(states, (-1, 20, 2)), **TOLERANCE)


def test_the_middle_repels_after_the_fork(page):
    fork = page.evaluate("minidiff.score.FORK")
    assert_allclose(fork, -np.log((CLUSTERS.means[1] ** 2).sum() - CLUSTERS.stds[1] ** 2), rtol=1e-14)
    for log_snr, grows in ((fork - 0.05, False), (fork + 0.05, True)):
        now, after = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(-log_snr - 1e-3))
        x = page.evaluate("([now, after]) => minidiff.score.step([1e-6, 1e-6], now, after, 0, [0, 0])", [now, after])
        assert (x[0] / np.sqrt(after) > 1e-6 / np.sqrt(now)) == grows  # at a scale at which the signal keeps its size


def test_density_along_the_diagonal(page):
    u, distance = np.linspace(-2.4, 2.4, 50), np.sqrt((CLUSTERS.means[1] ** 2).sum())
    diagonal = md.GaussianMixture(np.array([[-distance], [distance]]), CLUSTERS.stds[0])
    for alpha_bar in LEVELS[::34]:
        ours = page.evaluate(
            "([u, level]) => u.map(each => minidiff.diffusion.density(each, level))", [u.tolist(), alpha_bar]
        )
        assert_allclose(ours, np.exp(diagonal.log_density(u.reshape(-1, 1, 1, 1), alpha_bar)), rtol=1e-11)
    assert page.evaluate("minidiff.diffusion.along([0.3, 0.5])") == pytest.approx(0.8 / np.sqrt(2), rel=1e-15)


def test_fresh_noise_samples_the_posterior(page):
    cats, weight = page.evaluate(
        """() => {
          const {exact, trajectory, LOG_SNRS, endOf} = minidiff.score, x = [-0.6, 0.2], level = 110;
          const paths = Array.from({length: 1000}, (_, n) => trajectory(x, level, 1, minidiff.normal(n, 342)));
          const cats = paths.filter(path => endOf(path) < 0).length / paths.length;
          return [cats, exact(x, minidiff.diffusion.alphaBarOf(LOG_SNRS[level])).weights[0]];
        }"""
    )
    assert 0.6 < weight < 0.8
    assert abs(cats - weight) < 4 * np.sqrt(weight * (1 - weight) / 1000)


def test_readouts_are_of_the_point_shown(page):
    set_log_snr(page, 1.5)
    x, alpha_bar = np.reshape(point(page), (1, 1, 1, 2)), 1 / (1 + np.exp(-1.5))
    x0, _ = MIXTURE.x0_and_eps(x, alpha_bar)
    assert_allclose(point(page, 1), x0.ravel(), atol=0.00501)
    assert_allclose(point(page, 2), MIXTURE.score(x, alpha_bar).ravel(), atol=0.00501)
    weights = [text.split() for text in page.locator(f"{FIGURE} .weights output").all_inner_texts()]
    assert [name for name, _ in weights] == ["cat", "dog"]
    expected = MIXTURE.class_probabilities(x, alpha_bar)[0]
    assert_allclose([float(weight) for _, weight in weights], expected, atol=0.00501)
    bar = page.locator(f"{FIGURE} .bar i").evaluate_all("parts => parts.map(part => part.clientWidth)")
    assert_allclose(bar[0] / sum(bar), expected[0], atol=1 / sum(bar))


def test_keys_move_x_t(page):
    canvas = page.locator(f"{FIGURE} canvas").first
    canvas.focus()
    x, y = point(page)
    before = pictures(page)
    for key, x_to, y_to in (("ArrowRight", 0.05, 0), ("ArrowUp", 0.05, 0.05), ("Shift+ArrowLeft", 0.04, 0.05)):
        page.keyboard.press(key)
        assert point(page) == pytest.approx([x + x_to, y + y_to])
    assert all(now != then for now, then in zip(pictures(page), before, strict=True))
    assert str(readout(page, 0)) in canvas.get_attribute("aria-label")


def test_the_mouse_moves_x_t_and_its_side_decides(page):
    box = page.locator(f"{FIGURE} canvas").first.bounding_box()
    middle = box["x"] + (42 + box["width"] - 8) / 2, box["y"] + (8 + box["height"] - 42) / 2
    unit = (box["width"] - 50) / 4.8
    tolerance = 1 / unit + 0.005  # a pixel, since a browser may cut a fraction off, and two places
    page.mouse.move(*middle)
    page.mouse.down()
    assert_allclose(point(page), [0, 0], rtol=0, atol=tolerance)
    for u, kind in ((-0.5, "a cat"), (0.5, "a dog")):
        page.mouse.move(middle[0] + u * unit, middle[1] - u * unit)
        assert_allclose(point(page), [u, u], rtol=0, atol=tolerance)
        assert readout(page, 3) == kind
    page.mouse.up()
    page.mouse.move(*middle)
    assert_allclose(point(page), [0.5, 0.5], rtol=0, atol=tolerance)


def test_a_tap_moves_x_t(open_page):
    page = open_page(PAGE, 375, has_touch=True)
    canvas = page.locator(f"{FIGURE} canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.tap(position={"x": 200, "y": 200})
    width = canvas.bounding_box()["width"]
    unit = (width - 50) / 4.8
    assert_allclose(point(page), [(200 - 42) / unit - 2.4, 2.4 - (200 - 8) / unit], rtol=0, atol=1 / unit + 0.005)


def test_a_finger_drags_x_t_or_scrolls_the_page(open_page):
    page = open_page(PAGE, 375, has_touch=True, is_mobile=True)
    canvas = page.locator(f"{FIGURE} canvas").first
    canvas.evaluate("canvas => canvas.scrollIntoView({block: 'center', behavior: 'instant'})")
    touch = functools.partial(page.context.new_cdp_session(page).send, "Input.dispatchTouchEvent")
    box, scrolled = canvas.bounding_box(), page.evaluate("scrollY")
    unit = (box["width"] - 50) / 4.8

    def swipe(start, end):
        for name, share in [("touchStart", 0), *(("touchMove", i / 8) for i in range(1, 9))]:
            x, y = (1 - share) * np.array(start) + share * np.array(end)
            at = {"x": box["x"] + 42 + (x + 2.4) * unit, "y": box["y"] + 8 + (2.4 - y) * unit}
            touch({"type": name, "touchPoints": [at]})
            page.wait_for_timeout(20)
        touch({"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(100)

    swipe([-0.8, 1], [0.5, -0.5])  # from x_t
    assert_allclose(point(page), [0.5, -0.5], rtol=0, atol=1 / unit + 0.005)
    assert page.evaluate("scrollY") == scrolled
    moved = point(page)
    swipe([-1.5, -1.5], [-1.5, 0.5])
    assert point(page) == moved
    assert page.evaluate("scrollY") > scrolled


def test_a_point_on_the_line_stays_there(page):
    path = page.evaluate("minidiff.score.trajectory([-0.5, 0.5], 60, 0, new Float64Array(342))")
    assert_allclose(np.sum(path, 1), 0, atol=0)
    assert page.evaluate("path => minidiff.score.endOf(path)", path) == 0


def test_every_control_changes_the_pictures(page):
    figure = page.locator(FIGURE)
    seen = [pictures(page)]
    for change in (
        lambda: set_log_snr(page, 0.3),
        lambda: figure.get_by_label("steps").select_option("with fresh noise (SDE)"),
        lambda: figure.get_by_role("button", name="New noise").click(),
        lambda: figure.get_by_role("button", name="New start").click(),
        lambda: figure.get_by_role("button", name="New start").click(),
    ):
        change()
        seen.append(pictures(page))
        assert all(now != before for now, before in zip(*seen[-2:], strict=True))
    assert get_log_snr(page) == -10


def test_release_follows_the_trajectory(page):
    set_log_snr(page, 5.9)
    start, level = point(page), 159
    end = page.evaluate(
        "([x, level]) => minidiff.score.trajectory(x, level, 0, new Float64Array(342)).at(-1)", [start, level]
    )
    button = page.locator(f"{FIGURE} button").first
    button.click()
    page.wait_for_function(f"document.querySelector('{FIGURE} button').textContent === 'Again'")
    assert get_log_snr(page) == 7
    assert_allclose(point(page), end, atol=0.00501)
    button.click()
    assert get_log_snr(page) < 7


def test_moves_only_in_sight_and_pauses(page):
    button = page.locator(f"{FIGURE} button").first
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('{FIGURE} input[type=range]').value > -3.9")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)  # until the page has noticed
    out_of_sight = get_log_snr(page)
    page.wait_for_timeout(300)
    assert get_log_snr(page) == out_of_sight < 7
    button.scroll_into_view_if_needed()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('{FIGURE} input[type=range]').value > {out_of_sight}")
    page.keyboard.press("Enter")
    paused = get_log_snr(page)
    page.wait_for_timeout(300)
    assert get_log_snr(page) == paused


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_unasked(open_page, motion):
    page = open_page(PAGE, reduced_motion=motion)
    page.locator(FIGURE).scroll_into_view_if_needed()
    before = pictures(page)
    page.wait_for_timeout(300)
    assert pictures(page) == before


def test_works_from_a_file(open_page, site_folder):
    page = open_page((site_folder / PAGE).as_uri())
    set_log_snr(page, 2)
    assert page.locator(f"{FIGURE} .values output").count() == 5
