"""The widget `convolution`: its numbers are those of the reference, and its controls change what is shown."""

import re

import numpy as np
import pytest
from minidiff_kernels.reference.conv import conv2d, output_size

PAGE = "course/05_unet.html"
FIGURE = 'figure.widget[data-widget="convolution"]'


def reference(x, w, stride, pad):
    x, w = np.asarray(x, float), np.asarray(w, float)
    return conv2d(x[None, :, :, None], w[None, :, :, None], stride=stride, pad=(pad,) * 4)[0, :, :, 0]


def in_page(page, function, *arguments):
    return page.evaluate(f"arguments => minidiff.convolution.{function}(...arguments)", arguments)


def image_of(page):
    return np.array(page.evaluate("minidiff.convolution.image"))


def shown_sum(figure):
    """p, q and y[p, q] of the readout."""
    text = figure.locator(".readout").text_content().replace("−", "-")
    p, q, y = re.search(r"y\[(\d+), (\d+)\] = (\S+)", text).groups()
    return int(p), int(q), float(y)


def pixels(figure):
    return [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in figure.locator("canvas").all()]


def test_conv2d_equals_the_reference(open_page):
    page, rng = open_page(PAGE), np.random.default_rng(0)
    for kernel in ((1, 1), (3, 3), (5, 5), (2, 3)):
        for stride in (1, 2, 3):
            for pad in (0, 1, 2):
                x, w = rng.standard_normal((9, 12)), rng.standard_normal(kernel)
                y = np.array(in_page(page, "conv2d", x.tolist(), w.tolist(), stride, pad))
                expected = reference(x, w, stride, pad)
                assert y.shape == expected.shape
                np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)


def test_products_add_up_to_the_output_pixel(open_page):
    page = open_page(PAGE)
    image, kernels = image_of(page), page.evaluate("minidiff.convolution.kernels")
    padded = in_page(page, "zeroPadded", image.tolist(), 1)
    np.testing.assert_array_equal(padded, np.pad(image, 1))
    for w in kernels.values():
        expected = reference(image, w, 2, 1)
        for p, q in ((0, 0), (2, 5), (5, 3)):
            products = np.array(in_page(page, "products", padded, w, 2, p, q))
            window = np.pad(image, 1)[2 * p : 2 * p + 3, 2 * q : 2 * q + 3]
            np.testing.assert_allclose(products, w * window, rtol=1e-12)
            np.testing.assert_allclose(products.sum(), expected[p, q], rtol=1e-12, atol=1e-13)


def test_image_and_kernels_are_what_their_names_say(open_page):
    page = open_page(PAGE)
    image, kernels = image_of(page), page.evaluate("minidiff.convolution.kernels")
    assert image.shape == (12, 12) and np.abs(image).max() == 1
    np.testing.assert_array_equal(reference(image, kernels["identity"], 1, 1), image)
    sums = {name: round(np.sum(w), 12) for name, w in kernels.items()}
    assert sums["blur"] == sums["sharpen"] == 1
    assert {sum for name, sum in sums.items() if name.startswith("edges")} == {0}
    np.testing.assert_array_equal(np.transpose(kernels["edges, left to right"]), kernels["edges, top to bottom"])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [0, 1])
def test_stride_and_padding_are_those_of_the_output_shown(open_page, stride, pad):
    page = open_page(PAGE)
    figure, image = page.locator(FIGURE), image_of(page)
    figure.get_by_role("combobox", name="kernel").select_option("edges")
    figure.get_by_role("combobox", name="stride").select_option(str(stride))
    figure.get_by_role("combobox", name="padding").select_option(str(pad))
    kernel = page.evaluate("minidiff.convolution.kernels.edges")
    P, Q = output_size((1, 12, 12, 1), (1, 3, 3, 1), stride, (pad,) * 4)
    assert figure.locator(".pane-title", has_text="y,").text_content() == f"y, {P} × {Q}"
    p, q, y = shown_sum(figure)
    assert y == pytest.approx(reference(image, kernel, stride, pad)[p, q], abs=0.005)


def test_controls_keys_and_pointer_change_what_is_shown(open_page):
    page = open_page(PAGE)
    figure, image = page.locator(FIGURE), image_of(page)
    kernels = page.evaluate("minidiff.convolution.kernels")
    figure.scroll_into_view_if_needed()
    seen = pixels(figure)

    figure.get_by_role("combobox", name="kernel").select_option("blur")
    assert pixels(figure)[0] == seen[0] and pixels(figure)[1] != seen[1]  # the output only
    p, q, y = shown_sum(figure)
    assert y == pytest.approx(reference(image, kernels["blur"], 1, 1)[p, q], abs=0.005)

    seen = pixels(figure)
    figure.locator("canvas").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert shown_sum(figure)[:2] == (p - 1, q + 1)
    assert pixels(figure)[0] != seen[0] and pixels(figure)[1] != seen[1]
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    assert shown_sum(figure)[:2] == (p - 1, 0)

    canvas = figure.locator("canvas").last  # 14 places of a side, the 12 x 12 output in the middle
    side = canvas.bounding_box()["width"] / 14
    canvas.hover(position={"x": 8.5 * side, "y": 4.5 * side})
    assert shown_sum(figure)[:2] == (3, 7)
    figure.locator("canvas").first.hover(position={"x": 8.5 * side, "y": 4.5 * side})  # the centre of the same window
    assert shown_sum(figure)[:2] == (3, 7)


def test_an_edited_kernel_is_the_readers_own(open_page):
    page = open_page(PAGE)
    figure, image = page.locator(FIGURE), image_of(page)
    figure.get_by_role("combobox", name="kernel").select_option("identity")
    figure.get_by_label("w, row 0, column 2").fill("-1.5")
    assert figure.get_by_role("combobox", name="kernel").input_value() == "own"
    p, q, y = shown_sum(figure)
    expected = reference(image, [[0, 0, -1.5], [0, 1, 0], [0, 0, 0]], 1, 1)
    assert y == pytest.approx(expected[p, q], abs=0.005)
    shown = [
        float(cell.text_content().replace("−", "-")) for cell in figure.locator(".cells").last.locator("div").all()
    ]
    assert sum(shown) == pytest.approx(expected[p, q], abs=0.05)


def test_works_from_a_file(open_page, site_folder):
    figure = open_page(f"file://{site_folder}/{PAGE}").locator(FIGURE)
    figure.get_by_role("combobox", name="stride").select_option("2")
    assert figure.locator(".pane-title", has_text="y,").text_content() == "y, 6 × 6"
