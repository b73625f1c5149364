"""A report of runs as one page that needs nothing else: run_report.html, with style, script and facts put into it."""

import html
import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

from minidiff.evaluation.run_facts import facts_of
from minidiff.files import write_output


def write_run_report(runs: list[Path], out: Path) -> None:
    """Write a page on one or several runs, atomically. Raises MinidiffError as `facts_of` does."""
    page = run_report([facts_of(folder, name) for folder, name in zip(runs, names_of(runs), strict=True)])
    write_output(out, lambda file: file.write(page.encode()))


def names_of(runs: list[Path]) -> list[str]:
    """The names of the folders; the paths of those whose names are not unique."""
    names = [folder.absolute().name for folder in runs]
    return [name if Counter(names)[name] == 1 else str(folder) for name, folder in zip(names, runs, strict=True)]


def run_report(facts: list[dict]) -> str:
    """The page on runs of these facts (`facts_of`)."""
    here = files("minidiff.evaluation")
    parts = {
        "TITLE": html.escape(", ".join(run["name"] for run in facts)),
        "STYLE": (here / "run_report.css").read_text("utf-8"),
        "SCRIPT": (here / "run_report.js").read_text("utf-8"),
        "FACTS": json.dumps(facts).replace("<", "\\u003c"),  # so that no text in it ends the element
    }
    page = (here / "run_report.html").read_text("utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], page)
