"""Bars that count what is done."""

import pytest

from minidiff.runs.terminal import with_bar


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
