"""The docs in a real browser. `site`: the pages over HTTP; `open_page` opens one and fails on a script error."""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


def pytest_collection_modifyitems(items):
    if not CHROMIUM:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs Chromium: apt-get install chromium-headless-shell"))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory):
    """The pages, built once for all test processes; their cells are not run."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"  # of this run, for all its processes
    base.mkdir(exist_ok=True)
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "built").exists():
            command = ("-m", "sphinx", "-q", "-b", "html", "-D", "nb_execution_mode=off", ROOT / "docs", base / "html")
            done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (base / "built").touch()
    return base / "html"


@pytest.fixture(scope="session")
def site(site_folder):
    """The address of the pages."""
    handler = functools.partial(QuietHandler, directory=site_folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """open_page("course/x.html", width=...) -> the page. Fails on script errors and on requests to the outside.

    With cdn, requests to the outside are answered by cdn(route), and may fail.
    """
    contexts, complaints = [], []

    def open_page(path, width=1200, cdn=None, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        if cdn:
            context.route(outside, cdn)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: is_error(message, cdn) and complaints.append(message.text))
        if not cdn:
            page.on("request", lambda r: outside(r.url) and complaints.append(f"from outside: {r.url}"))
        page.goto(path if "://" in path else f"{site}/{path}")
        return page

    def outside(url):
        return not url.startswith((site, "data:", "blob:", "file:"))

    def is_error(message, cdn):
        return message.type == "error" and not (cdn and message.text.startswith("Failed to load resource"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
