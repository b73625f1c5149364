"""The widget `receptive`: its fields are where the gradient of the real layers is not zero."""

import re
from unittest.mock import patch

import numpy as np
import pytest

import minidiff as md
from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.nn import Conv2d, Module
from minidiff.engine.tensor import Tensor
from minidiff.models import blocks
from minidiff.models import unet as unet_module

PAGE = "course/05_unet.html"
FIGURE = 'figure.widget[data-widget="receptive"]'
SIZE = 64
STACKS = [
    ["conv"],
    ["conv", "conv", "downsample", "conv", "conv"],
    ["downsample", "downsample", "conv", "upsample", "conv", "upsample"],
    ["downsample", "downsample", "downsample", "upsample", "upsample", "upsample", "conv"],
]


def in_page(page, expression, **arguments):
    names = ", ".join(arguments)
    return page.evaluate(f"({{{names}}}) => {{ const m = minidiff.receptive; return {expression}; }}", arguments)


def extent(mask):
    """First and last row, first and last column of a filled rectangle."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    assert mask.sum() == (bottom - top + 1) * (right - left + 1)
    return [[top, bottom], [left, right]]


def dependent(network, row, column, channels):
    """Where the gradient of one output position with respect to the image is not zero: (64, 64) bool."""
    backend = get_backend("numpy")
    x = Tensor(np.random.default_rng(1).random((1, SIZE, SIZE, channels), dtype=np.float32), backend, True)
    y = network(x)
    dy = np.zeros(y.shape, np.float32)
    dy[0, row, column] = 1
    y.backward(dy)
    return (x.grad[0] != 0).any(-1)


class Upsample(Module):
    def __call__(self, x):
        return F.upsample_nearest(x)


class Stack(Module):
    """The real layers, with positive weights, so that no gradient cancels."""

    def __init__(self, kinds):
        rng = np.random.default_rng(0)
        strides = {"conv": 1, "downsample": 2}
        self.layers = [
            Upsample() if kind == "upsample" else Conv2d(1, 1, 3, rng, stride=strides[kind], pad=1) for kind in kinds
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def silu_conv(norm, conv, x, add=None, overwrite=False):
    """norm_conv without the norm, which would connect all positions."""
    return conv(F.silu(x), add)


def unet(depth, level=None, attends=False):
    """The chapter's U-Net without norms; with a level, without what is below its skip connections."""
    net = md.UNet(md.default_config((SIZE, SIZE, 3), width=8, depth=depth), np.random.default_rng(0), backend="numpy")
    for block in (*net.down_blocks, net.mid_block, *net.up_blocks):
        for attention in block.attentions:
            attention.group_norm = None
        block.attentions = block.attentions if attends else []
    if level == depth - 1:
        net.mid_block = lambda h, *_: F.affine(h, 0)
    elif level is not None:
        net.up_blocks[depth - 2 - level].upsamplers[0].conv.weight.data[:] = 0

    def predict(x):
        with patch.object(blocks, "norm_conv", silu_conv), patch.object(unet_module, "norm_conv", silu_conv):
            return net(x, np.array([500]))

    return predict


def assert_same_field(page, layers, mask, row, column):
    """`mask` is the field of the last layer's position (row, column)."""
    ranges = [in_page(page, "m.dependencies(layers, n, at)", layers=layers, n=SIZE, at=at)[0] for at in (row, column)]
    assert extent(mask) == ranges


def layers_of(page, kinds):
    return in_page(page, "kinds.map((kind) => m.layerKinds[kind])", kinds=kinds)


@pytest.mark.parametrize("kinds", STACKS, ids=" ".join)
def test_fields_of_a_stack_are_where_the_gradient_is(open_page, kinds):
    page = open_page(PAGE)
    layers, stack = layers_of(page, kinds), Stack(kinds)
    for layer in stack.layers:
        if isinstance(layer, Conv2d):
            layer.weight.data[:] = np.abs(layer.weight.data) + 0.1
    n = in_page(page, "m.sizes(layers, n)", layers=layers, n=SIZE)[-1]
    for row, column in ((0, n - 1), (n // 2, n // 2), (n // 2 - 1, 1)):
        assert_same_field(page, layers, dependent(stack, row, column, 1), row, column)


def test_recurrence_is_the_chapters(open_page):
    page = open_page(PAGE)
    for depth, side in ((1, 25), (2, 61), (3, 133), (4, 277)):  # what the chapter's cell prints
        layers = in_page(page, "m.unetLayers(depth)", depth=depth)
        r, j = 1, 1
        for layer in layers:
            r, j = r + (layer["k"] - 1) * j, j * layer["s"]
        assert in_page(page, "m.recurrence(layers).at(-1)", layers=layers) == {"r": r, "j": j} == {"r": side, "j": 1}
        inside = in_page(page, "m.dependencies(layers, 1024, 512)[0]", layers=layers)
        assert inside[1] - inside[0] + 1 == side


@pytest.mark.parametrize(("depth", "level"), [(1, None), (2, None), (3, None), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)])
def test_fields_of_the_unet_are_where_the_gradient_is(open_page, depth, level):
    page = open_page(PAGE)
    layers = in_page(page, "m.unetLayers(depth, level)", depth=depth, level=level)
    for row, column in ((32, 32), (0, 63), (13, 2)):
        assert_same_field(page, layers, dependent(unet(depth, level), row, column, 3), row, column)


def test_attention_connects_everything_but_not_the_skip_connections_above_it(open_page):
    page = open_page(PAGE)
    layers = in_page(page, "m.unetLayers(2, null, true)")
    assert dependent(unet(2, None, attends=True), 13, 2, 3).all()
    assert in_page(page, "m.dependencies(layers, 64, 13)[0]", layers=layers) == [0, 63]
    skip = in_page(page, "m.unetLayers(2, 0, true)")
    assert_same_field(page, skip, dependent(unet(2, 0, attends=True), 13, 2, 3), 13, 2)


def test_layers_added_make_the_field_grow(open_page):
    page = open_page(PAGE)
    figure = page.locator(FIGURE)
    figure.scroll_into_view_if_needed()
    sides = [field(figure)]
    for name in ("+ conv 3 × 3", "+ downsample", "+ upsample", "Remove last", "Remove last"):
        before = pixels(figure)
        figure.get_by_role("button", name=name).click()
        assert pixels(figure)[1] != before[1]
        sides.append(field(figure))
    assert sides == [15, 19, 23, 23, 23, 19]
    figure.get_by_role("button", name="+ attention").click()
    assert "whole image: 64 × 64 = 4,096 pixels" in shown(figure)


def test_controls_keys_and_pointer_change_what_is_shown(open_page):
    page = open_page(PAGE)
    figure = page.locator(FIGURE)
    figure.scroll_into_view_if_needed()
    figure.get_by_role("combobox", name="network").select_option("2")
    assert "61 × 61 pixels, of which" in shown(figure)  # the eye is near the border
    figure.get_by_role("combobox", name="path").select_option("0")
    assert field(figure) == 17 and "On this path" in shown(figure)
    figure.get_by_label("attention").check()
    assert field(figure) == 17
    figure.get_by_role("combobox", name="path").select_option("mid")
    assert "whole image" in shown(figure)

    figure.get_by_label("attention").uncheck()
    slider = figure.get_by_label("after layer")
    slider.focus()
    page.keyboard.press("Home")
    assert "one pixel" in shown(figure)
    page.keyboard.press("ArrowRight")
    assert field(figure) == 3
    page.keyboard.press("End")

    before = pixels(figure)
    figure.locator("canvas").first.focus()
    page.keyboard.press("ArrowDown")
    assert pixels(figure)[0] != before[0] and pixels(figure)[1] == before[1]  # the diagram is along the width
    page.keyboard.press("ArrowRight")
    assert pixels(figure)[1] != before[1]
    side = figure.locator("canvas").first.bounding_box()["width"]
    figure.locator("canvas").first.click(position={"x": side / 2, "y": side / 2})
    assert "= 61. The position depends on 61 × 61 = 3,721 pixels" in shown(figure)


def test_two_upsamplings_make_r_a_mean(open_page):
    figure = open_page(PAGE).locator(FIGURE)
    for _ in range(5):
        figure.get_by_role("button", name="Remove last").click()
    for name in ("downsample", "downsample", "upsample", "upsample", "conv 3 × 3"):
        figure.get_by_role("button", name=f"+ {name}", exact=True).click()
    sides = []
    for _ in range(4):
        sides += re.search(r"depends on (\d+) × \d+ = .* pixels\. \(r is the mean", shown(figure)).groups()
        assert field(figure) == 9
        figure.locator("canvas").first.press("ArrowDown")
    assert sorted(sides, key=int) == ["7", "7", "11", "11"]


def test_works_from_a_file(open_page, site_folder):
    figure = open_page(f"file://{site_folder}/{PAGE}").locator(FIGURE)
    assert field(figure) == 15


def shown(figure):
    return figure.locator(".readout").text_content()


def field(figure):
    """The side that the readout derives."""
    return int(re.search(r"= (\d+)\.", shown(figure))[1])


def pixels(figure):
    return [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in figure.locator("canvas").all()]
