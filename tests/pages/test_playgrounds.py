"""The playgrounds: the reader's code runs in the page, its mistakes are shown, and nothing is loaded before a click.

Pyodide's CDN is replaced by its files from npm, and by the NumPy wheel in pyodide/ (see the README there).
"""

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from minidiff_kernels.cpu.jit import user_cache_dir

DOCS = Path(__file__).parent.parent.parent / "docs"
WHEEL = next((Path(__file__).parent / "pyodide").glob("*.whl"))
CDN = re.search(r'CDN = "(.*)"', (DOCS / "_static/playground/worker.js").read_text())[1]
PYODIDE = "pyodide@0.27.7"
SHA512 = "RUSVJlhQdfWfgO9hVHCiXoG+nVZQRS5D9FzgpLJ/VcgGBLSAKoPL8kTiOikxbHQm1kRISeWUBdulEgO26qpSRA=="  # as npm says
TYPES = {".wasm": "application/wasm", ".js": "text/javascript", ".json": "application/json"}
PLACES = {
    "course/00_start.html": ["exercise 1"],
    "course/01_forward_diffusion.html": ["schedule", "exercise 2", "exercise 3"],
    "course/02_two_dimensions.html": ["exercise 4"],
    "course/04_reverse_diffusion.html": ["sampling"],
    "course/11_guidance.html": ["guidance"],
}


@pytest.fixture(scope="session")
def in_page():
    sys.path.insert(0, str(DOCS))
    import in_page

    sys.path.remove(str(DOCS))
    return in_page


@pytest.fixture(scope="session")
def pyodide(tmp_path_factory):
    """Pyodide's files by name, from npm; downloaded once."""
    kept = user_cache_dir() / "minidiff" / PYODIDE
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(packed(tmp_path_factory.mktemp("npm")), kept)
    with tarfile.open(kept) as archive:
        return {Path(m.name).name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}


def packed(folder):
    """The path of Pyodide's package, downloaded into a folder."""
    if not shutil.which("npm"):
        pytest.skip(f"needs npm, to download {PYODIDE} once")
    command = ("npm", "pack", PYODIDE, "--pack-destination", folder)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs {PYODIDE} from npm: {done.stderr.strip()[-200:]}")
    (path,) = folder.iterdir()
    assert base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() == SHA512
    return path


@pytest.fixture(scope="session")
def cdn(pyodide):
    """Answers a page's request for a file of the CDN."""
    files = pyodide | {WHEEL.name: WHEEL.read_bytes()}

    def cdn(route):
        name = route.request.url.removeprefix(CDN)
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": TYPES.get(Path(name).suffix, "application/zip")}
        route.fulfill(body=files[name], headers=headers)

    return cdn


class Figure:
    """A playground of a page, as its reader uses it."""

    def __init__(self, page, name, number=0):
        self.place = page.locator(f'figure.playground[data-name="{name}"][data-number="{number}"]')
        self.editor = self.place.locator("textarea")

    def run(self, text=None):
        """Run the text, or what the editor holds, to the end; returns the status."""
        if text is not None:
            self.editor.fill(text)
        self.start()
        return self.wait()

    def start(self):
        self.place.locator("button.run").click()

    def wait(self, seconds=120):
        self.place.locator("button.run[aria-disabled=false]").wait_for(timeout=1000 * seconds)
        return self.place.locator(".status").inner_text()

    def press(self, name):
        self.place.get_by_role("button", name=name).click()

    @property
    def output(self):
        place = self.place.locator(".output")
        return place.inner_text() if place.is_visible() else ""

    def images(self):
        """What is drawn, uint8 (N, 32, 32, 3)."""
        read = "e => [...e.getContext('2d').getImageData(0, 0, 32, 32).data]"
        canvases = self.place.locator(".images canvas").all()
        return np.array([canvas.evaluate(read) for canvas in canvases], np.uint8).reshape(-1, 32, 32, 4)[..., :3]


def last_images(in_page, name, text):
    *_, (_, images) = in_page.run(name, text)
    return images


def differ(a, b):
    """The largest difference of two uint8 arrays."""
    return np.abs(a.astype(int) - b).max()


# the last line of the code: prints some values of the sample
PRINTED = """
trajectory = list(trajectory)
import json; print(json.dumps(trajectory[-1][1][:, ::9, ::9].astype(float).round(7).tolist()))
"""


def test_a_sampler_edited_in_the_page(open_page, cdn, in_page):
    page = open_page("course/04_reverse_diffusion.html", cdn=cdn)
    figure, source = Figure(page, "sampling"), in_page.text_of("sampling")
    assert figure.editor.input_value() == source
    start = time.monotonic()
    assert figure.run(source + PRINTED).startswith("Done")
    print(f"ready, and eight images in ten steps: {time.monotonic() - start:.1f} s after the click")
    images = figure.images()
    assert images.shape == (8, 32, 32, 3)

    with contextlib.redirect_stdout(io.StringIO()) as native:
        assert differ(images, last_images(in_page, "sampling", source + PRINTED)) <= 1
    assert np.abs(np.array(json.loads(figure.output)) - json.loads(native.getvalue())).max() <= 1e-4

    # in two steps, which are faster: deterministic, then with one line edited stochastic
    two = source.replace("steps=10", "steps=2")
    figure.run(two)
    first = figure.images()
    figure.run(two)
    assert differ(figure.images(), first) == 0
    edited = two.replace("eta = sampler.eta", "eta = 1.0")
    figure.run(edited)
    first = figure.images()
    assert figure.run(edited).startswith("Done") and differ(figure.images(), first) > 20

    assert figure.run(source.replace("sigma * z", "sigma * zz")) == "NameError: name 'zz' is not defined"
    assert figure.output.count("File ") == 2 and re.search(r'File "your code", line \d+, in ddim_update', figure.output)
    assert figure.output.strip().endswith("NameError: name 'zz' is not defined")
    assert figure.place.locator(".images.old").count() == 1  # they are not this text's
    no_yield = "def ddim(*arguments):\n    pass\n\n" + source.splitlines()[-1]
    assert figure.run(no_yield) == "TypeError: ddim yields (t, x_t, x0_hat) after every step; here it has no yield"

    figure.editor.fill("while True:\n    pass")
    figure.start()
    page.wait_for_timeout(500)
    figure.press("Stop")
    assert figure.wait(2) == "Stopped. The next run loads Python again."
    figure.press("Reset")
    assert figure.editor.input_value() == source and figure.wait(2) == ""


def test_a_schedule_and_exercises_in_the_page(open_page, cdn, in_page):
    page = open_page("course/01_forward_diffusion.html", cdn=cdn)
    figure = Figure(page, "schedule")
    assert figure.run().startswith("Done")
    original = figure.images()
    assert differ(original, last_images(in_page, "schedule", in_page.text_of("schedule"))) <= 1
    assert figure.run(in_page.text_of("schedule").replace("/ 2) ** 2", "/ 2) ** 4")).startswith("Done")
    assert original.shape == (10, 32, 32, 3) and differ(figure.images(), original) > 20

    exercise = Figure(page, "exercise", 2)
    assert exercise.run().startswith("Not right yet. q_sample is still blank")
    blank = exercise.editor.input_value()
    body = blank.replace("raise NotImplementedError  # your code", "{}")
    line = "a = alphas_cumprod[t].reshape(-1, 1, 1, 1); return {}"
    assert exercise.run(body.format(line.format("a * x0 + (1 - a) * eps"))).startswith(
        "Not right yet. The square roots are missing: alpha_bar and 1 - alpha_bar are variances"
    )
    assert exercise.run(body.format(line.format("np.sqrt(a) * x0 + np.sqrt(1 - a) * eps"))) == "Right."
    assert re.match(r"02_q_sample.py, line \d+: NameError: name 'x_0'", exercise.run(body.format("return x_0")))
    assert Figure(page, "exercise", 3).run().startswith("Not right yet. timestep_of_snr is still blank")


def test_a_guidance_rule_edited_in_the_page(open_page, cdn, in_page):
    figure, source = Figure(open_page("course/11_guidance.html", cdn=cdn), "guidance"), in_page.text_of("guidance")
    two = source.replace("steps=6", "steps=2")
    assert figure.run(two).startswith("Done")
    assert differ(figure.images(), last_images(in_page, "guidance", two)) <= 1
    edited = two.replace("p_null + float(scale)", "p_null - float(scale)")
    assert figure.run(edited).startswith("Done")
    assert differ(figure.images(), last_images(in_page, "guidance", edited)) <= 1


def test_python_starts_again_after_a_crash(browser, site, cdn):
    """Of Python itself, not of the reader's code; the console then holds Pyodide's report."""
    with browser.new_context() as context:
        context.route(CDN + "*", cdn)
        page = context.new_page()
        page.goto(f"{site}/course/01_forward_diffusion.html")
        figure = Figure(page, "schedule")
        assert figure.run("import os; os.abort()").startswith("Python has crashed, and the next run starts it again")
        figure.press("Reset")
        assert figure.run().startswith("Done")


def test_without_the_cdn_the_figure_stays(open_page, site_folder):
    page = open_page("course/04_reverse_diffusion.html", cdn=lambda route: route.abort())
    figure = Figure(page, "sampling")
    before = figure.place.locator(".images").screenshot()
    assert re.match(r"Python cannot be loaded: .+ The images stay as they are\.$", figure.run())
    assert figure.place.locator(".images img").count() == 8 and figure.place.locator(".images.old").count() == 0
    assert figure.place.locator(".images").screenshot() == before
    assert figure.place.locator("button.run").inner_text() == "Run this in your browser, 9 MB"

    page = open_page((site_folder / "course/04_reverse_diffusion.html").as_uri())
    assert "opened as a file" in Figure(page, "sampling").run()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_playgrounds_fit_and_load_nothing_before_a_click(open_page, scheme, width):
    """`open_page` fails on a request to the outside."""
    for place, names in PLACES.items():
        page = open_page(place, width, color_scheme=scheme)
        figures = page.locator("figure.playground")
        found = [f"{f.get_attribute('data-name')} {f.get_attribute('data-number')}" for f in figures.all()]
        assert [name.removesuffix(" 0") for name in found] == names
        for figure in figures.all():
            box = figure.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            editor, background = (
                figure.locator("textarea").evaluate(f"e => getComputedStyle(e).{of}")
                for of in ("color", "backgroundColor")
            )
            assert contrast(editor, background) > 7
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def contrast(*colours):
    """The contrast ratio of two CSS colours (WCAG 2, relative luminance)."""
    values = np.array([[float(n) for n in re.findall(r"[\d.]+", colour)[:3]] for colour in colours]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_tab_indents_and_escape_lets_it_leave(open_page):
    page = open_page("course/04_reverse_diffusion.html")
    figure = Figure(page, "sampling")
    figure.editor.fill("def f():")
    figure.editor.press("End")
    figure.editor.press("Enter")
    figure.editor.press("Tab")
    page.keyboard.type("return 1")
    figure.editor.press("Enter")
    page.keyboard.type("# here")
    assert figure.editor.input_value() == "def f():\n    return 1\n    # here"
    figure.editor.press("Shift+Tab")
    assert figure.editor.input_value() == "def f():\n    return 1\n# here"
    figure.editor.press("Escape")
    figure.editor.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Run this in your browser, 9 MB"


def test_the_wheel_is_that_of_the_lock_file(pyodide):
    numpy = json.loads(pyodide["pyodide-lock.json"])["packages"]["numpy"]
    assert numpy["file_name"] == WHEEL.name
    assert numpy["sha256"] == hashlib.sha256(WHEEL.read_bytes()).hexdigest()


def test_the_archive_is_small_and_equal_for_equal_sources(site_folder):
    path = site_folder / "_static/playground/source.zip"
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())
        source = "minidiff/diffusion/solvers/ddim.py"
        assert archive.read(source) == (DOCS.parent / source).read_bytes()
        weights = "minidiff/learn/cats_dogs/unet/diffusion_pytorch_model.safetensors"
        assert archive.getinfo(weights).file_size < 400_000
    assert path.stat().st_size < 700_000
