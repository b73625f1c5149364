"""Rules that every widget keeps: its size, a place on a page, and both themes and a phone's width without an error."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
SHARED = {"widget", "diffusion"}
FILES = {path.stem: path for path in (DOCS / "_static/widgets").glob("*.js") if path.stem not in SHARED}
PLACES = [
    (f"{path.relative_to(DOCS).with_suffix('.html')}", name)
    for path in sorted(DOCS.glob("course/*.md"))
    for name in re.findall(r"^:::\{widget\} (\w+)$", path.read_text(), re.M)
]


def test_widgets_are_small_and_stand_on_a_page():
    assert {name: path.stat().st_size for name, path in FILES.items() if path.stat().st_size > 50_000} == {}
    assert sorted(name for _, name in PLACES) == sorted(FILES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_widgets_fit_and_raise_no_error(open_page, scheme, width):
    for page_name, name in PLACES:
        page = open_page(page_name, width, color_scheme=scheme)
        figure = page.locator(f'figure.widget[data-widget="{name}"]')
        figure.scroll_into_view_if_needed()
        assert figure.locator("canvas, svg").count(), f"{name} shows nothing"
        box = figure.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, f"{name} is wider than the screen"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{page_name} scrolls sideways"


def test_every_control_has_a_name_and_takes_the_keyboard(open_page):
    for page_name, name in PLACES:
        page = open_page(page_name)
        for control in page.locator(f'figure.widget[data-widget="{name}"]').locator("input, select, button").all():
            assert control.evaluate("e => (e.labels?.[0] ?? e).textContent.trim() || e.getAttribute('aria-label')")
            assert control.evaluate("e => e.tabIndex >= 0")
