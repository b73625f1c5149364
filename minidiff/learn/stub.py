"""The file in which the reader writes an answer: the solution's signature and docstring, without its body."""

import ast
import inspect
import io
import os
import sys
import textwrap
import tokenize
from pathlib import Path

from minidiff.files import replace_file
from minidiff.learn.catalogue import CHAPTERS, exercise_of
from minidiff.learn.exercise import Answer

FOLDER = Path("exercises")  # in the current folder
BODY = "    raise NotImplementedError  # your code"


def answer_file(number: int) -> Path:
    """The path of an exercise's file, such as exercises/02_q_sample.py. Raises MinidiffError for an unknown number."""
    return FOLDER / f"{number:02}_{exercise_of(number).solution.__name__}.py"


def write_stub(number: int) -> bool:
    """Write the file of an exercise, unless there is one already: it stays as it is. Returns whether it was written.

    Raises MinidiffError if it cannot be written.
    """
    path, text = answer_file(number), stub(number)
    if os.path.lexists(path):
        return False
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return True


def stub(number: int) -> str:
    """The text of an exercise's file, as long as it is blank."""
    exercise = exercise_of(number)
    title, page, _ = CHAPTERS[exercise.chapter]
    head = f'"""Exercise {number}: {exercise.title}.\n\nChapter {exercise.chapter}, {title}: docs/course/{page}.md\n'
    head += f'Check it with: minidiff learn check {number}\n"""\n'
    source = textwrap.dedent(inspect.getsource(exercise.solution))
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    docstring_end = function.body[0].end_lineno
    signature = "\n".join(source.splitlines()[:docstring_end])
    return f"{head}\n{_imports(exercise.solution, source)}\n\n\n{signature}\n{BODY}\n"


def _imports(solution: Answer, source: str) -> str:
    """The lines that import NumPy and all else that the source names, as the solution's module imports it."""
    names = {token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)} | {"np"}
    module = ast.parse(inspect.getsource(sys.modules[solution.__module__]))
    lines = []
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in names]
            lines += [ast.unparse(node)] if node.names else []
    return "\n".join(lines)
