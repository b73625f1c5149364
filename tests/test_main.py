"""The entry point: Ctrl-C is one line and exit code 130 from its first line on, while the rest is imported."""

import signal
import sys
import time

import pytest
from own_process import start
from small_runs import idx_set

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")

# at(name) is called before every import that the entry point makes
WATCHED = """
import os, signal, sys
from minidiff.__main__ import main

class Watch:
    def find_spec(name, path=None, target=None):
        at(name)

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
sys.meta_path.insert(0, Watch)
"""
AT_IMPORT = """
count = 0
def at(name):
    global count
    count += 1
    if count == {moment}:
        os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["minidiff", "info"]
main()
"""
TRAIN = """
def at(name):
    if name == "minidiff.cli.app":
        print("started", flush=True)
sys.argv = "minidiff train {data} --out {out} --backend numpy --threads 1 --steps 100000".split()
main()
"""


@pytest.mark.parametrize("moment", [1, 2, 10, 50, 150, 300, 450, 600])
def test_ctrl_c_at_an_import(moment):
    child = start(WATCHED + AT_IMPORT.format(moment=moment))
    assert child.communicate(timeout=100) == ("", "minidiff: stopped\n")
    assert child.returncode == 130


OFTEN = [pytest.param(ms, marks=() if ms % 200 == 0 else pytest.mark.soak) for ms in range(0, 1000, 50)]


@pytest.mark.parametrize("milliseconds", OFTEN)
def test_ctrl_c_in_the_first_second(tmp_path, milliseconds):
    child = start(WATCHED + TRAIN.format(data=idx_set(tmp_path / "data"), out=tmp_path / "run"))
    assert child.stdout.readline() == "started\n"
    time.sleep(milliseconds / 1000)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 130 and (err == "minidiff: stopped\n" or "Saved at step" in out)


def test_the_public_names_are_there():
    early = "import sys, minidiff as md; early = 'numpy' in sys.modules; "
    code = early + "print(early, md.UNet.__name__, 'UNet' in dir(md))"
    assert start(code).communicate(timeout=100) == ("False UNet True\n", "")
    assert "no attribute 'Unet'" in start("import minidiff as md; md.Unet").communicate(timeout=100)[1]
