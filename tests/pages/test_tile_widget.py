"""The widget `tile`: its costs are those of the formulas, its best tile is the exercise's, its controls change it."""

import re

import pytest

from minidiff.learn.chapters.kernels.matrix_product import best_tile

PAGE = "course/15_matrix_product.html"
FIGURE = 'figure.widget[data-widget="tile"]'
TILES = [(R, V) for R in range(1, 17) for V in range(1, 9)]


def processors(page):
    return page.evaluate("minidiff.tile.processors")


def costs(page, key):
    """The cost of every tile, in the order of TILES."""
    return page.evaluate(
        "([key, tiles]) => tiles.map(([R, V]) => minidiff.tile.cost(minidiff.tile.processors[key], R, V))", [key, TILES]
    )


def test_costs_are_those_of_the_formulas(open_page):
    page = open_page(PAGE)
    latency = page.evaluate("minidiff.tile.LATENCY")
    for key, processor in processors(page).items():
        for (R, V), cost in zip(TILES, costs(page, key), strict=True):
            assert cost["needed"] == R * V + V + 1
            assert cost["spilled"] == max(0, cost["needed"] - processor["registers"])
            assert cost["loadsPerFma"] == pytest.approx((R + V) / (R * V))
            loads = R + V + cost["spilled"]
            cycles = max(R * V / processor["fmas"], latency, loads / processor["loads"], cost["spilled"])
            assert cost["share"] == pytest.approx(R * V / processor["fmas"] / cycles)


def test_every_register_is_shown_once(open_page):
    page = open_page(PAGE)
    for key, processor in processors(page).items():
        shown = page.evaluate(
            "([key, tiles]) => tiles.map(([R, V]) => minidiff.tile.contents(minidiff.tile.processors[key], R, V))",
            [key, TILES],
        )
        for (R, V), cost, kinds in zip(TILES, costs(page, key), shown, strict=True):
            assert len(kinds) == processor["registers"]
            assert kinds.count("noise") == V and kinds.count("gold") == 1
            assert kinds.count("signal") == R * V - cost["spilled"]


def test_the_tile_with_the_fewest_loads_is_the_exercises(open_page):
    page = open_page(PAGE)
    for key, processor in processors(page).items():
        expected = best_tile(processor["registers"], page.evaluate("minidiff.tile.LATENCY"), processor["fmas"])
        found = costs(page, key)
        fitting = [i for i, cost in enumerate(found) if not cost["spilled"]]
        least = min(found[i]["loadsPerFma"] for i in fitting)
        assert found[TILES.index(expected)]["loadsPerFma"] == least
        assert found[TILES.index(expected)]["share"] == 1


def test_controls_change_the_readout_and_both_canvases(open_page):
    figure = open_page(PAGE).locator(FIGURE)
    figure.scroll_into_view_if_needed()

    def shown():
        return [canvas.evaluate("canvas => canvas.toDataURL()") for canvas in figure.locator("canvas").all()]

    def set_to(name, value):
        figure.get_by_role("slider", name=name).evaluate("(input, value) => minidiff.set(input, value)", value)

    def readout():
        return figure.locator(".readout").text_content()

    assert "18 + 3 + 1 = 22 of 32 registers. Nothing is spilled." in readout()
    before = shown()
    set_to("rows R", 12)
    assert "36 + 3 + 1 = 40 of 32 registers. 8 sums spilled." in readout()
    assert all(a != b for a, b in zip(before, shown(), strict=True))
    set_to("rows R", 2)
    set_to("vectors V", 1)
    assert re.search(r"Bound by latency: at most 50 % of peak", readout())
    figure.get_by_role("combobox", name="processor").select_option("avx")
    assert "2 + 1 + 1 = 4 of 16 registers" in readout()
    assert re.search(r"Bound by latency: at most 25 % of peak", readout())
