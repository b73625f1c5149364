"""The widget `winograd`: its matrices are the reference's, its outputs those of the direct sum, in float32 too."""

import re

import numpy as np
import pytest
from minidiff_kernels.reference.winograd import matrices

PAGE = "course/16_winograd.html"
FIGURE = 'figure.widget[data-widget="winograd"]'
LIBRARY = {"F(4, 3), points ±1 and ±2": (1, 2), "F(4, 3), points ±5/8 and ±3/2": (5 / 8, 3 / 2)}
OUTPUTS = {"F(2, 3)": 2, **dict.fromkeys(LIBRARY, 4), "F(6, 3), points ±1, ±2 and ±1/2": 6}


def in_page(page, expression, **arguments):
    names = ", ".join(arguments)
    return page.evaluate(f"({{{names}}}) => {{ const m = minidiff.winograd; return {expression}; }}", arguments)


def matrices_in_page(page, name):
    found = in_page(page, "m.matrices(m.algorithms[name])", name=name)
    return [np.array(found[key]) for key in ("At", "G", "Bt")]


def number(text):
    return float(text.replace("−", "-"))


def lists(figure):
    """The outputs by Winograd and by the direct sum, as the readout shows them."""
    text = figure.locator(".readout").first.text_content()
    return [[number(value) for value in found.split(", ")] for found in re.findall(r"\(([^)]*)\)", text)]


@pytest.mark.parametrize("name", LIBRARY)
def test_matrices_are_the_reference_s(open_page, name):
    for ours, library in zip(matrices_in_page(open_page(PAGE), name), matrices(*LIBRARY[name]), strict=True):
        np.testing.assert_allclose(ours, library, rtol=1e-12, atol=1e-14)


def test_outputs_are_those_of_the_direct_sum(open_page):
    page, rng = open_page(PAGE), np.random.default_rng(0)
    assert list(in_page(page, "m.algorithms")) == list(OUTPUTS)
    for name, m in OUTPUTS.items():
        At, G, Bt = matrices_in_page(page, name)
        assert (At.shape, G.shape, Bt.shape) == ((m, m + 2), (m + 2, 3), (m + 2, m + 2))
        d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
        found = in_page(page, "m.winograd(m.matrices(m.algorithms[name]), d, g)", name=name, d=d.tolist(), g=g.tolist())
        np.testing.assert_allclose(found["M"], (G @ g) * (Bt @ d), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found["y"], np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-12)
        direct = in_page(page, "m.direct(d, g)", d=d.tolist(), g=g.tolist())
        np.testing.assert_allclose(direct, np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OUTPUTS)
def test_float32_rounds_every_product_and_sum(open_page, name):
    """The same bits as NumPy's scalars of float32, added from left to right."""

    def apply(matrix, vector):
        totals = []
        for row in matrix:
            total = np.float32(0)
            for value, factor in zip(row, vector, strict=True):
                total += np.float32(value) * np.float32(factor)
            totals.append(total)
        return np.array(totals)

    page, rng = open_page(PAGE), np.random.default_rng(0)
    At, G, Bt = matrices_in_page(page, name)
    d, g = (rng.standard_normal(n, dtype=np.float32) for n in (len(G), 3))
    given = {"name": name, "d": d.tolist(), "g": g.tolist()}
    ours = in_page(page, "m.winograd32(m.matrices(m.algorithms[name]), d, g)", **given)
    np.testing.assert_array_equal(ours, apply(At, apply(G, g) * apply(Bt, d)))
    direct = [apply([g], d[i : i + 3])[0] for i in range(len(G) - 2)]
    np.testing.assert_array_equal(in_page(page, "m.direct32(d, g)", d=given["d"], g=given["g"]), direct)


def test_errors_grow_with_the_tile_and_the_points(open_page):
    page = open_page(PAGE)
    errors = {name: in_page(page, "m.errors(m.algorithms[name])", name=name) for name in OUTPUTS}
    f23, usual, library, f63 = (errors[name]["winograd"] for name in OUTPUTS)
    assert f23 < library < usual < f63
    for of in errors.values():  # three rounded products and two sums: each error is at most 2^-24 of its result
        assert 2**-27 < of["direct"] < of["winograd"] < 2**-20


def test_controls_change_what_is_shown(open_page):
    page = open_page(PAGE)
    figure = page.locator(FIGURE)
    figure.scroll_into_view_if_needed()
    for name, m in OUTPUTS.items():
        figure.get_by_role("combobox", name="algorithm").select_option(name)
        assert f"{m + 2} multiplications instead of {3 * m}. " in figure.locator(".readout").first.text_content()
        winograd, direct = lists(figure)
        assert winograd == direct and len(direct) == m
        assert figure.locator("th").count() == m + 3

    figure.get_by_role("combobox", name="input").select_option("ramp")
    figure.get_by_role("combobox", name="filter").select_option("difference")
    assert lists(figure)[0] == [2] * 6
    seen = [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in figure.locator("canvas").all()]
    figure.get_by_label("d, element 0").fill("-3.5")
    figure.get_by_label("g, element 1").fill("2")
    for name in ("input", "filter"):
        assert figure.get_by_role("combobox", name=name).input_value() == "your own"
    d, g = [-3.5, *range(2, 9)], [-1, 2, 1]
    for shown in lists(figure):
        np.testing.assert_allclose(shown, np.correlate(d, g, "valid"), atol=0.0005)
    after = [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in figure.locator("canvas").all()]
    assert len(seen) == 3 and all(a != b for a, b in zip(seen, after, strict=True))


def test_presets_are_not_changed_by_an_edit(open_page):
    figure = open_page(PAGE).locator(FIGURE)
    presets, entry = figure.get_by_role("combobox", name="input"), figure.get_by_label("d, element 0")
    presets.select_option("ramp")
    entry.fill("100")
    presets.select_option("noise")
    assert entry.input_value() == "0.4"
    presets.select_option("ramp")
    assert entry.input_value() == "1"
