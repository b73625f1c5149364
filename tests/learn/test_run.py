"""A reader's file in a process of its own: whatever it does, the outcome is a verdict, or one line."""

import io
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from minidiff.errors import MinidiffError
from minidiff.learn import run
from minidiff.learn.catalogue import EXERCISES
from minidiff.learn.run import run_check

NUMBER = next(number for number, exercise in EXERCISES.items() if exercise.title == "Add noise")
RIGHT = """
import numpy as np

def q_sample(x0, t, eps, alphas_cumprod):
    alpha_bar = alphas_cumprod[t][:, None, None, None]
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
"""
SOON = """
import sys
from pathlib import Path
from minidiff.learn import worker
worker.TIME_LIMIT = 0.5
worker.main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""  # the worker with a time limit of half a second


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checked(source):
    """What comes of a file with that source."""
    path = Path("answer.py")
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return run_check(NUMBER, path)


def with_body(body):
    """A file whose function does that, in line 4."""
    return f"import numpy as np, os, sys\n\ndef q_sample(x0, t, eps, alphas_cumprod):\n    {body}\n"


def refused(source, match):
    """The file cannot be run; the message is one line."""
    with pytest.raises(MinidiffError) as caught:
        checked(source)
    assert re.search(match, str(caught.value)) and "\n" not in str(caught.value), caught.value


def test_a_right_answer():
    answer = checked(RIGHT)
    assert answer.right and answer.hint == ""
    with Image.open(io.BytesIO(answer.image)) as image:
        assert image.format == "PNG" and min(image.size) >= 64


def test_a_wrong_answer():
    answer = checked(RIGHT.replace("[t]", "[t - 1]"))
    assert not answer.right and answer.hint.startswith("One timestep too early")


FAULTS = {
    "an index": (with_body("return x0[:, 99]"), r"^answer\.py, line 4: IndexError: index 99 is out of bounds"),
    "an error below": (with_body("return np.sin(x0, 1, 2, 3, 4)"), "^answer.py, line 4: TypeError: "),
    "recursion": (with_body("return q_sample(x0, t, eps, 0)"), "^answer.py, line 4: RecursionError: maximum"),
    "a large array": (with_body("return np.zeros(10**12)"), "^answer.py, line 4: MemoryError: Unable to allocate"),
    "large bytes": (with_body("return bytearray(8 << 30)"), "^answer.py, line 4: MemoryError$"),
    "input": (with_body("input()"), "^answer.py, line 4: EOFError: "),
    "sys.exit": (with_body("sys.exit(0)"), "^answer.py, line 4: ends the program; return the result instead$"),
    "Ctrl-C": (with_body("raise KeyboardInterrupt"), "^answer.py, line 4: KeyboardInterrupt$"),
    "two lines": (with_body("raise ValueError('a\\nb')"), "^answer.py, line 4: ValueError: a b$"),
    "a bracket": (with_body("return (x0"), r"^answer\.py, line 4: SyntaxError: '\(' was never closed$"),
    "indentation": (with_body("return x0\n  + eps"), "^answer.py, line 5: IndentationError: "),
    "an import": ("import numpyy\n", "^answer.py, line 1: ModuleNotFoundError: No module named 'numpyy'$"),
    "sys.exit outside": ("\nraise SystemExit(0)", "^answer.py, line 2: ends the program"),
    "no text": (b"x = '\xff'\n", "^answer.py.*: SyntaxError: "),
    "a zero": (b"x = 1\0\n", "^answer.py.*: (SyntaxError|ValueError): source code string cannot contain null bytes"),
    "nothing": ("", "^answer.py: defines no function q_sample; write its first line again as it was$"),
    "arguments": ("def q_sample(x0):\n    return x0\n", r"^answer.py: q_sample is not a function of \(x0, t, eps, al"),
    "os._exit(0)": (with_body("os._exit(0)"), "^answer.py: ends the program with exit code 0; return the result inst"),
    "os._exit(7)": (with_body("os._exit(7)"), "^answer.py: ends the program with exit code 7"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_run(fault):
    refused(*FAULTS[fault])


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_crash():
    refused(with_body("import ctypes; ctypes.string_at(0)"), r"^answer.py, line 4: crashes Python \(SIGSEGV\)")
    refused(with_body("os.abort()"), r"^answer.py, line 4: crashes Python \(SIGABRT\)")
    refused(with_body("os.kill(os.getpid(), 9)"), r"^answer.py: was ended by the system \(SIGKILL\); does it need")


LOOPS = {
    "in Python": (with_body("while True: pass"), 4),
    "in C": (with_body("return sum(range(10**15))"), 4),  # no other thread of Python runs meanwhile
    "that catches all": (
        with_body("while True:\n        try: np.sqrt(x0)\n        except BaseException: pass"),
        "[456]",
    ),
    "outside": ("import time\n\ntime.sleep(1000)\n", 3),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_an_endless_loop(monkeypatch, loop):
    monkeypatch.setattr(run, "WORKER", ("-c", SOON))
    source, line = LOOPS[loop]
    refused(source, rf"^answer\.py, line {line}: takes longer than 10 seconds; is there an endless loop\?$")


def test_what_the_file_prints_appears_and_is_no_verdict(capfd):
    report = '{"right": true, "hint": ""}'
    answer = checked(f"import sys\nprint('''{report}''')\n" + with_body("print('in it', file=sys.stderr); return x0"))
    assert not answer.right
    out, err = capfd.readouterr()
    assert out == f"{report}\n" and err.startswith("in it\n")


def test_modules_in_the_current_folder_hide_no_others():
    Path("numpy.py").write_text("raise SystemExit('not this one')")
    assert checked(RIGHT).right


def test_threads_and_exit_handlers_of_the_file_do_not_matter():
    more = "import atexit, threading, time\natexit.register(time.sleep, 1000)\n"
    assert checked(RIGHT + more + "threading.Thread(target=time.sleep, args=[1000]).start()\n").right


def test_dataclasses_and_annotations_work():
    more = "from dataclasses import dataclass\n@dataclass\nclass Noise:\n    eps: 'float' = 1.0\nNoise()\n"
    assert checked("from __future__ import annotations\n" + RIGHT + more).right


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_the_process_too(monkeypatch):
    """And there is no traceback of it."""
    started = []
    popen = run.subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[0]

    monkeypatch.setattr(run.subprocess, "Popen", start)
    interrupt = threading.Timer(2, os.kill, (os.getpid(), run.signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        checked(with_body("while True: pass"))
    assert started[0].wait(10) < 0
