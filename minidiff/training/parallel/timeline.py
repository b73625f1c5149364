"""The time line of training steps: when each forward and backward pass, exchange and update starts and ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Event(NamedTuple):
    """One bar of the time line, in seconds of time.perf_counter, which the processes of a machine share on Linux.

    name   "forward", "backward"; "scatter", "gather" or "all-reduce" of a bucket; "wait" for the exchange; "update"
    index  of the part for forward and backward, of the bucket for its exchange, else 0
    """

    name: str
    index: int
    start: float
    end: float


_events: list[Event] | None = None


@contextmanager
def recording() -> Iterator[list[Event]]:
    """Within this block every event of this process is appended to the list."""
    global _events
    before, _events = _events, []
    try:
        yield _events
    finally:
        _events = before


@contextmanager
def timed(name: str, index: int = 0) -> Iterator[None]:
    """An event that lasts as long as the block."""
    start = time.perf_counter()
    yield
    if _events is not None:
        _events.append(Event(name, index, start, time.perf_counter()))
