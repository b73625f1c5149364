"""Bars that count what is done, strings that cannot act on the terminal, commands that can be pasted, lost readers."""

import io
import os
import shutil
import subprocess
import sys

import pytest
from rich.table import Table

from minidiff.terminal import (
    console,
    ignore_closed,
    printable,
    progress_bar,
    shell_command,
    stderr_console,
    with_progress_bar,
)


def test_a_bar_ends_at_its_end(capsys):
    """Though fewer steps may have been needed than were thought."""
    assert with_progress_bar("counting", 21, lambda tick: [tick() for _ in range(20)] and "done") == "done"
    assert "21/21" in capsys.readouterr().out


def test_a_bar_stays_where_work_broke_off(capsys):
    def work(tick):
        tick()
        raise ValueError

    with pytest.raises(ValueError):
        with_progress_bar("counting", 21, work)
    assert "1/21" in capsys.readouterr().out


ACTING = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07", "\x1b[2J": r"\x1b[2J", "a\nb\r\tc": r"a\nb\r\tc",
    "\x00\x7f\x9b": r"\x00\x7f\x9b", "\u202egnp.exe": r"\u202egnp.exe", "\u2066x\u2069": r"\u2066x\u2069",
    "\u2028": r"\u2028", "\udcff": r"\udcff",
}  # fmt: skip
READABLE = (
    "Grüße",
    "e\u0301",
    "日本語",
    "👩🏽\u200d🚀 🏴\U000e0067\U000e0062",
    "שלום \u200fعربى",
    "[bold] :smile: \\x1b",
    " a  b ",
)


@pytest.mark.parametrize("raw, escaped", ACTING.items())
def test_what_acts_on_a_terminal_is_escaped_wherever_it_is_printed(capsys, raw, escaped):
    table = Table(raw)
    table.add_row(raw)
    for stream, to in (("out", console), ("err", stderr_console)):
        to.print(f"left out: {raw}", table)
        printed = getattr(capsys.readouterr(), stream)
        assert printed.count(escaped) == 3 and printable(printed.replace("\n", "")) == printed.replace("\n", "")
    with progress_bar() as bar:
        bar.add_task("training", note=raw)
    assert escaped in capsys.readouterr().out


@pytest.mark.parametrize("text", READABLE)
def test_what_can_be_read_stays(capsys, text):
    console.print(text)
    assert capsys.readouterr().out == f"{text}\n"


NAMES = (
    "plain",
    "my run",
    "l\nine",
    "it's",
    "é ☃",
    "-x",
    "$HOME `id`",
    "\x1b[2J\\033",
    "\u202ex",
    "\udcff\udcfe1",
    "a\\'b\n",
    "",
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_command_can_be_pasted_whatever_the_encoding(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    command = shell_command(["printf", r"%s\0", *NAMES])
    command.encode(encoding)
    assert printable(command) == command
    told = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert told.split(b"\0")[:-1] == [os.fsencode(name) for name in NAMES]
    assert shell_command(["my run", "é"]) == ("'my run' $'\\303\\251'" if encoding == "ascii" else "'my run' 'é'")


@pytest.mark.parametrize("unbuffered", [False, True])
def test_what_nobody_reads_is_dropped(unbuffered):
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0 if unbuffered else -1) as file:
        text = io.TextIOWrapper(file, "ascii", write_through=unbuffered)
        stream = ignore_closed(text)
        print("ink \u2603", file=stream, flush=True)
        assert os.read(reader, 100) == b"ink \\u2603\n"
        os.close(reader)
        for _ in range(2):
            print("x" * 100_000, file=stream, flush=True)


def test_a_full_disk_is_not_taken_for_that():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb", buffering=0) as file:
        text = io.TextIOWrapper(file, "ascii", write_through=True)
        with pytest.raises(OSError, match="standard output cannot be written: No space left.*; make room"):
            print("x", file=ignore_closed(text), flush=True)
