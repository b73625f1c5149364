"""Progress of work that takes long. The library shows nothing: the command line sets what shows it, as for logging."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

Bar = AbstractContextManager[Callable[..., object]]

_shown: ContextVar[Callable[..., Bar]] = ContextVar(
    "progress", default=lambda *_, **__: nullcontext(lambda done=1: None)
)


def progress(name: str, total: int, **options: Any) -> Bar:
    """A block of work in `total` parts; yields tick(done=1), which is called as they are done."""
    return _shown.get()(name, total, **options)


@contextmanager
def progress_shown(by: Callable[..., Bar]) -> Iterator[None]:
    """Within this block `progress` is what `by` returns for the same arguments."""
    token = _shown.set(by)
    try:
        yield
    finally:
        _shown.reset(token)
