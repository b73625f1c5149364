"""How much memory there is."""

import pytest

from minidiff.data import memory

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"


@pytest.mark.parametrize(
    "meminfo, limit, bytes_",
    [
        (MEMINFO, None, 20_000_000 * 1024),
        (MEMINFO, "max", 20_000_000 * 1024),  # a container without a limit
        (MEMINFO, "4294967296", 2**32),
        (None, "4294967296", 2**32),
    ],
)
def test_what_is_available(tmp_path, monkeypatch, meminfo, limit, bytes_):
    for name, text in {"MEMINFO": meminfo, "LIMITS": limit}.items():
        path = tmp_path / name
        if text:
            path.write_text(f"{text}\n")
        monkeypatch.setattr(memory, name, (path,) if name == "LIMITS" else path)
    assert memory.available() == bytes_


def test_on_this_machine():
    found = memory.available()
    assert found is None or found > 2**20
