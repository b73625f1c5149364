"""Every fast module has a readable twin in reference/, names the one it accelerates, or serves several others."""

import ast
import re
from pathlib import Path

import minidiff_kernels
import pytest
from minidiff_kernels.gpu import launch

ROOT = Path(minidiff_kernels.__path__[0])
MODULES = sorted(path for path in ROOT.glob("[cg]pu/*") if path.suffix in (".py", ".cu") and path.stem != "__init__")
assert {path.parent.name for path in MODULES} == {"cpu", "gpu"} and len(MODULES) > 20


def head(path: Path) -> str:
    """A module's docstring; of a .cu file, the comment at its top."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    return "\n".join(line.removeprefix("//").strip() for line in text.partition("\n\n")[0].splitlines())


def users(path: Path) -> list[str]:
    """The modules that import a .py file, or the families that a .cu file is prepended to."""
    if path.suffix == ".cu":
        return [family for family, names in launch.PREAMBLES.items() if path.stem in names]
    return [other.stem for other in path.parent.glob("*.py") if f"from .{path.stem} import" in other.read_text()]


def check_twin(stem: str, text: str, users: list[str]) -> None:
    """Raises AssertionError for a module that a reader cannot trace to a reference; text: its head."""
    accelerated = re.findall(r"^Accelerates (reference/\w+\.py)\b", text, re.MULTILINE)
    for name in accelerated:
        assert (ROOT / name).exists(), f"{stem} accelerates {name}, which does not exist"
    if not accelerated and not (ROOT / "reference" / f"{stem}.py").exists():
        assert re.search(r"^Shared by the kernels; ", text, re.MULTILINE), f"{stem} has no readable twin and names none"
        assert len(users) > 1, f"{stem} is not shared: {users} use it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_fast_module_has_a_readable_twin(path):
    check_twin(path.stem, head(path), users(path))


@pytest.mark.parametrize(
    "text, users, message",
    [
        ("A fast kernel.", ["conv", "norm"], "has no readable twin"),
        ("Accelerates reference/fft.py for large kernels.", [], "does not exist"),
        ("Shared by the kernels; the reference has none.", ["conv"], "is not shared"),
    ],
)
def test_a_module_without_one_is_rejected(text, users, message):
    with pytest.raises(AssertionError, match=message):
        check_twin("fft_fast", text, users)
