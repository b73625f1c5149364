"""README's Python example: the code that stands there runs, and makes an image like the one that is shown."""

import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
FEWER = {  # images, training steps, batch, sampling steps, channels
    "2000": "8", "500": "2", "32)]": "2)]", "steps=25": "steps=2", "config((32, 32, 3))": "config((32, 32, 3), 8)",
}  # fmt: skip


def example() -> str:
    """The code, in small."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    for number, fewer in FEWER.items():
        assert number in code, f"README's example has no {number} any more; make it small in another way"
        code = code.replace(number, fewer)
    return code


def test_the_python_example_makes_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example(), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2  # a loss for each training step, a line for each other
    with Image.open("samples.png") as made, Image.open(ROOT / "docs" / "images" / "readme.png") as shown:
        assert made.size == shown.size and made.mode == shown.mode
