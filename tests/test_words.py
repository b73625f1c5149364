"""Words that must not come back: the field has a term for each (list below), and readers know only that one."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minidiff.cli.app import app

ROOT = Path(__file__).parent.parent
INSTEAD = {  # what must not come back, in any form -> the field's term
    r"drown\w*|half-drown\w*": "add noise, noise level",
    r"insist\w*": "guidance scale",
    r"hears?|heard|hearing": "conditioned on, cross-attends to",
    r"pictures?": "image",
    r"walk(s|ed|ing)?": "trajectory, sampling loop",
    r"number by number": "elementwise",
    r"makes? no sense": "what is out of range, by name",
    r"(first|second)-level cache": "L1, L2",
    r"judges?|judged": "feature classifier",
    r"halvings?|halved|halving": "downsample",
    r"comes? home|how much to": "guidance scale, trajectory",
}
WORDS = re.compile("|".join(rf"(?:\b(?:{words})\b)" for words in INSTEAD), re.IGNORECASE)
SOURCES = sorted((ROOT / "minidiff").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "README.md"]


def private(text):
    """The words of a text that have a term of the field's in their place."""
    return sorted({match[0].lower() for match in WORDS.finditer(text)})


def identifiers(source):
    """The words in a module's names, with the underscores and capitals between them made spaces."""
    names = {
        token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.NAME
    }
    return " ".join(re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", name) for name in names)


def docstrings(source):
    """All docstrings of a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n".join(
        ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, documented)
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_and_docstrings_use_the_terms_of_the_field(path):
    source = path.read_text()
    assert private(identifiers(source)) == []
    assert private(docstrings(source)) == []


def test_help_uses_the_terms_of_the_field():
    commands = [
        "",
        *(command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands),
    ]
    for command in commands:
        shown = CliRunner().invoke(app, [*command.split(), "--help"]).output
        assert private(shown) == [], command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_use_the_terms_of_the_field(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert private("\n".join(headings)) == []


def test_the_test_bites():
    assert private("a walk back that the judge heard, of half a picture") == ["heard", "judge", "picture", "walk"]
    assert private(identifiers("def pictureShape(walk_of): pass")) == ["picture", "walk"]
