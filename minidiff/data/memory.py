"""Available memory, so that a dataset that does not fit is refused before minutes of reading."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # containers


def available() -> int | None:
    """Available memory in bytes: the smaller of MemAvailable and the container's limit (its own use not subtracted).

    If neither can be read, all physical memory; None if that is unknown.
    """
    found = [int(text) for text in map(_read, LIMITS) if text.isdecimal()]
    for line in _read(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)  # it is in kB
    if not found and hasattr(os, "sysconf"):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
