"""Bars that count what is done, and what is printed when nobody reads it any more."""

import io
import os

import pytest

from minidiff.runs.terminal import outlived, with_bar


def test_a_bar_ends_at_its_end(capsys):
    """Though fewer steps may have been needed than were thought."""
    assert with_bar("counting", 21, lambda tick: [tick() for _ in range(20)] and "done") == "done"
    assert "21/21" in capsys.readouterr().out


def test_a_bar_stays_where_work_broke_off(capsys):
    def work(tick):
        tick()
        raise ValueError

    with pytest.raises(ValueError):
        with_bar("counting", 21, work)
    assert "1/21" in capsys.readouterr().out


@pytest.mark.parametrize("unbuffered", [False, True])
def test_what_nobody_reads_is_dropped(unbuffered):
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0 if unbuffered else -1) as file:
        text = io.TextIOWrapper(file, "ascii", write_through=unbuffered)
        stream = outlived(text)
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
        with pytest.raises(OSError, match="No space left"):
            print("x", file=outlived(text), flush=True)
