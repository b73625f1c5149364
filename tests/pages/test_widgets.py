"""Rules that every widget keeps: its size, its place, its controls, themes, less motion, a file, no scripts."""

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
PAGES = sorted({page_name for page_name, _ in PLACES})
CONTROLS = "input, select, textarea, button, canvas[tabindex], [role=button]"

# Whether every canvas of the page has two colours at least. One that holds an image of a file may not be read, but then
# the image has been drawn.
DRAWN = """() => [...document.querySelectorAll("figure.widget canvas")].every((canvas) => {
  if (!canvas.width) return false;
  try {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size > 1;
  } catch (error) {
    if (error.name === "SecurityError") return true;
    throw error;
  }
})"""

# Use every control of a figure in every way, the last first, also those that appear on the way. Returns the names of
# those that were used, of those that never could be, and what was wider than its place after the use of a control.
USE_EVERYTHING = """async (figure, CONTROLS) => {
  const used = new Set(), wide = new Set();
  const nameOf = (e) => { // those of canvases change
    const text = e.tagName === "BUTTON" ? e.textContent : e.labels?.[0]?.querySelector("span").textContent;
    const label = e.tagName === "CANVAS" ? [...figure.querySelectorAll("canvas")].indexOf(e) : e.ariaLabel;
    return [figure.querySelector("h4")?.textContent, e.tagName, text, label].join(" ");
  };
  const settle = () => new Promise((resolve) => setTimeout(resolve));
  const values = (e) => {
    if (e.tagName === "SELECT") return [...e.options].map((option) => option.value);
    if (e.type === "range") return [e.min, e.max, (Number(e.min) + Number(e.max)) / 2];
    if (e.type === "number") return ["", "-3.25", "1000"];
    return ["", "W".repeat(30), "naïve 🐱 ".repeat(4)];
  };
  const ways = (e) => {
    if (e.type === "checkbox") return [() => e.click(), () => e.click()];
    if ("value" in e && e.tagName !== "BUTTON") return values(e).map((value) => () => minidiff.set(e, value));
    if (e.tagName === "BUTTON") return [() => e.click()];
    return ["Enter", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"].map((key) => () =>
      e.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })));
  };
  const controls = () => [...figure.querySelectorAll(CONTROLS)].reverse();
  const next = () => controls().find((e) => !used.has(nameOf(e)) && !e.disabled && e.checkVisibility());
  const isWide = (e) => e.scrollWidth > e.clientWidth;
  for (;;) {
    if (!next()) { // leave what has been zoomed into
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
      if (!next()) break;
    }
    const control = next(), name = nameOf(control);
    used.add(name);
    for (const use of ways(control)) {
      use();
      await settle();
      if (isWide(document.documentElement)) wide.add(`page: ${name}`);
      if (isWide(figure) || isWide(figure.querySelector(".widget-body"))) wide.add(`figure: ${name}`);
    }
  }
  return { used: [...used], unused: controls().map(nameOf).filter((name) => !used.has(name)), wide: [...wide] };
}"""

# All that a figure shows: elements, canvases, and how many parts move by CSS.
SHOWN = """(figure) => [figure.innerHTML, [...figure.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL()),
  figure.getAnimations({ subtree: true }).length]"""

# The element with the focus, and whether its top is below the sticky header; null outside the figure.
FOCUSED = """(figure) => {
  const e = document.activeElement;
  if (!figure.contains(e)) return null;
  const [header, box] = [document.querySelector("header.mobile-header"), e].map((e) => e.getBoundingClientRect());
  return [[...figure.querySelectorAll("*")].indexOf(e), box.top >= header.bottom && box.top < innerHeight];
}"""


def figure_of(page, name):
    figure = page.locator(f'figure.widget[data-widget="{name}"]')
    figure.scroll_into_view_if_needed()
    return figure


def canvases(page):
    return page.locator("figure.widget canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")


def wait_until_drawn(page, page_name):
    """Also of images that are loaded once they are near the screen."""
    for name in (name for of_page, name in PLACES if of_page == page_name):
        figure_of(page, name)
    page.wait_for_function(DRAWN)


def test_widgets_are_small_and_stand_on_a_page():
    assert {name: path.stat().st_size for name, path in FILES.items() if path.stat().st_size > 50_000} == {}
    assert sorted(name for _, name in PLACES) == sorted(FILES)


@pytest.mark.parametrize("width", [375, 1200])
@pytest.mark.parametrize("page_name", PAGES)
def test_widgets_are_drawn_fit_and_follow_the_theme(open_page, page_name, width):
    drawn = {}
    for scheme in ("dark", "light"):
        page = open_page(page_name, width, color_scheme=scheme)
        wait_until_drawn(page, page_name)
        for figure in page.locator("figure.widget").all():
            assert figure.locator("canvas, svg").count()
            assert figure.locator("svg:not(:has(*))").count() == 0
            box = figure.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert figure.evaluate("figure => figure.scrollWidth <= figure.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        drawn[scheme] = canvases(page)
    for scheme in ("dark", "light"):
        page.evaluate("scheme => { document.body.dataset.theme = scheme; }", scheme)
        assert canvases(page) == drawn[scheme]


@pytest.mark.parametrize(("page_name", "name"), PLACES)
def test_every_control_can_be_used_from_a_file_on_a_phone(open_page, site_folder, page_name, name):
    page = open_page((site_folder / page_name).as_uri(), 375, reduced_motion="reduce")
    wait_until_drawn(page, page_name)
    done = figure_of(page, name).evaluate(USE_EVERYTHING, CONTROLS)
    assert len(done["used"]) >= 3
    assert done["unused"] == [] and done["wide"] == []


@pytest.mark.parametrize(("page_name", "name"), PLACES)
def test_tab_reaches_every_control_below_the_header_of_a_phone(open_page, page_name, name):
    page = open_page(page_name, 375, reduced_motion="reduce")
    page.set_viewport_size({"width": 375, "height": 500})
    wait_until_drawn(page, page_name)
    figure = figure_of(page, name)
    figure.evaluate("""figure => {
      figure.before(Object.assign(document.createElement("span"), {tabIndex: -1}));
      figure.previousSibling.focus();
    }""")
    reached, hidden = set(), []
    for key in ("Tab", "Shift+Tab"):  # there and back
        page.keyboard.press(key)
        while focused := figure.evaluate(FOCUSED):
            reached.add(focused[0])
            hidden += [] if focused[1] else [(key, *focused)]
            page.keyboard.press(key)
    possible = figure.evaluate(
        """(figure, CONTROLS) => [...figure.querySelectorAll("*")].flatMap((e, i) =>
             e.matches(CONTROLS) && !e.disabled && e.checkVisibility() ? [i] : [])""",
        CONTROLS,
    )
    assert possible and set(possible) <= reached
    assert hidden == []


def test_names_of_controls_and_canvases(open_page):
    for page_name in PAGES:
        page = open_page(page_name)
        wait_until_drawn(page, page_name)
        for text in page.locator("figure.widget label > span").all_text_contents():
            assert text[0].islower(), text
        for text in page.locator("figure.widget button").all_text_contents():
            assert text[0] in "+‹" or text[0].isupper(), text
        controls = (
            page.locator("figure.widget")
            .locator(CONTROLS)
            .evaluate_all("all => all.map((e) => [(e.labels?.[0] ?? e).textContent.trim() || e.ariaLabel, e.tabIndex])")
        )
        assert all(name and tab_index >= 0 for name, tab_index in controls)
        labels = page.locator("figure.widget canvas").evaluate_all("all => all.map((e) => e.ariaLabel)")
        assert [label for label in labels if len(label) < 20] == []


def test_nothing_moves_until_play_if_less_motion_is_asked_for(open_page):
    figures = []
    for page_name, name in PLACES:
        page = open_page(page_name, reduced_motion="reduce")
        wait_until_drawn(page, page_name)
        figures.append(figure_of(page, name))
    before = [figure.evaluate(SHOWN) for figure in figures]
    page.wait_for_timeout(500)  # once for all of them
    for figure, then in zip(figures, before, strict=True):
        assert figure.evaluate(SHOWN) == then and then[-1] == 0
    players = [figure for figure in figures if figure.locator(".play").count()]
    assert len(players) >= 5
    for figure in players:
        at_first = figure.locator("input[type=range]").evaluate_all("all => all.map((e) => e.value)")
        figure.locator(".play").click()
        figure.page.wait_for_function(
            "([all, values]) => all.some((e, i) => e.value !== values[i])",
            arg=[figure.locator("input[type=range]").element_handles(), at_first],
        )
        assert figure.locator('[aria-live="polite"]:not([aria-busy="true"])').count() == 0  # no flood of announcements


@pytest.mark.parametrize("page_name", PAGES)
def test_without_scripts_a_line_says_so(open_page, page_name):
    page = open_page(page_name, java_script_enabled=False)
    for line in page.locator("figure.widget noscript").all():
        line.scroll_into_view_if_needed()
        assert line.is_visible() and "needs JavaScript" in line.inner_text()
    assert page.locator("figure.widget noscript").count() == sum(of_page == page_name for of_page, _ in PLACES)
