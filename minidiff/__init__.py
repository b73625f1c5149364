"""minidiff: diffusion models from scratch, to be read.

import minidiff as md
pipeline = md.open_pipeline("runs/cats")
for t, x_t, x0_hat in md.sample(pipeline.unet, pipeline.schedule, (64, *pipeline.image_shape), rng): ...

The public names stand in api.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minidiff.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A public name. All are imported when the first is used, so that the command line starts at once (__main__.py)."""
    api = import_module("minidiff.api")
    if hasattr(api, name):
        return getattr(api, name)
    raise AttributeError(f"module 'minidiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("minidiff.api").__all__]
