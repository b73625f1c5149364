"""The page of minidiff report: opens from a file, shows the log's numbers, zooms, and fits a phone."""

import csv

import numpy as np
import pytest
from PIL import Image
from small_runs import go_on, new_points_run

from minidiff.evaluation import run_report
from minidiff.evaluation.run_facts import facts_of
from minidiff.evaluation.run_images import SHEETS, data_uri
from minidiff.training.log import HEADER

STEPS = 10_000


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Of a small run whose log is as long as a real one's, and of a second one."""
    found = []
    for name, steps in (("first", STEPS), ("second", 40)):
        folder = tmp_path_factory.mktemp(name) / name
        go_on(new_points_run(folder, steps=4))
        lines = [
            f"{i},{1 / i + 0.1},{2 / i},{1e-3 / i},{0.5 / i},,{0.25 / i},{1e-9 * i}\n" for i in range(1, steps + 1)
        ]
        (folder / "metrics.csv").write_text(HEADER + "".join(lines))
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        image = data_uri(Image.fromarray(noise))  # of 36 samples of 32 x 32 pixels that are noise
        found.append({**facts_of(folder, name), "sheets": [(step, image) for step in range(SHEETS)]})
    return found


@pytest.fixture
def report(facts, tmp_path, open_page):
    """report(width=..., runs=...) -> the page, opened from its file."""

    def opened(runs=2, **options):
        path = tmp_path / "report.html"
        path.write_text(run_report.run_report(facts[:runs]), "utf-8")
        return open_page(path.as_uri(), **options)

    return opened


def test_a_long_run_is_under_5_megabytes_and_opens_in_2_seconds(facts, report):
    assert len(run_report.run_report(facts[:1]).encode()) < 5e6
    page = report(runs=1)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000


def test_every_number_is_the_logs(facts, report):
    page = report()
    for k in range(2):
        columns = page.evaluate(f"columnsOf(runs[{k}].log).texts")
        rows = list(csv.DictReader(facts[k]["log"].splitlines()))
        assert {name: [row[name] for row in rows] for name in rows[0]} == columns


def test_the_legend_shows_the_values_at_the_step_under_the_pointer(facts, report):
    page = report()
    chart = page.locator("#training-loss .chart")
    chart.scroll_into_view_if_needed()
    box = chart.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    step, loss = chart.locator(".legend b").all_inner_texts()  # the second run is shorter
    losses = {row["step"]: row["loss"] for row in csv.DictReader(facts[0]["log"].splitlines())}
    assert loss == losses[step] and abs(int(step) - STEPS / 2) < STEPS / 20
    page.mouse.move(box["x"] + 58, box["y"] + 50)
    step, first, second = chart.locator(".legend b").all_inner_texts()
    assert int(step) < 40 and first == second == losses[step]
    page.mouse.move(0, 0)
    assert chart.locator(".legend b").count() == 0


def test_zoom_by_the_mouse_by_numbers_and_back(report):
    page = report()
    chart = page.locator("#training-loss .chart")
    chart.scroll_into_view_if_needed()
    first, last = chart.locator("input[type=number]").all()
    box = chart.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50)
    page.mouse.up()
    a, b = int(first.input_value()), int(last.input_value())
    assert 0.2 * STEPS < a < 0.35 * STEPS and 0.5 * STEPS < b < 0.65 * STEPS
    first.fill("7000")
    first.press("Enter")
    assert (first.input_value(), last.input_value()) == (str(b), "7000")
    chart.get_by_role("button", name="All steps").click()
    assert (first.input_value(), last.input_value()) == ("1", str(STEPS))


def test_the_moving_average_is_centred(report):
    page = report()
    x, y = page.evaluate("movingAverage([...Array(100).keys()], [...Array(100).keys()].map((i) => 3 * i))")
    assert len(x) == 97 and all(abs(b - 3 * a - 1.5) < 1e-9 for a, b in zip(x, y, strict=True))  # of 4: half a step


@pytest.mark.parametrize(
    "low, high, log", [(1, 10_000, False), (0.3, 2.2, True), (1e-7, 0.5, True), (1, 40, True), (0.1, 0.11, False)]
)
def test_ticks_lie_within_the_axis_and_are_few(low, high, log, report):
    found = report().evaluate(f"ticks({low}, {high}, {str(log).lower()})")
    assert 2 <= len(found) <= 12 and found == sorted(found)
    assert low * 0.999 <= found[0] and found[-1] <= high * 1.001


def test_differences_are_marked_and_can_be_shown_alone(facts, report):
    page = report()
    rows = page.locator("#settings tbody tr")
    marked = page.locator("#settings tbody tr.differs")
    first, second = (dict(one["settings"]) for one in facts)
    assert marked.count() == sum(first.get(name) != second.get(name) for name in {*first, *second})
    page.get_by_label("differences only").check()
    assert sum(row.is_visible() for row in rows.all()) == marked.count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_it_fits_every_width_in_both_themes(scheme, width, report):
    page = report(width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("['--run-0', '--line', '--faint', '--raised'].map(toColour)")
    assert len(set(colours)) == 4 and all(colour.startswith("rgb") for colour in colours)
