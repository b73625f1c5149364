"""The option --like: an image's settings as the defaults of a command's options."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from minidiff.errors import MinidiffError
from minidiff.formats.png_parameters import read_parameters
from minidiff.sampling.parameters import files_of, options_of
from minidiff.terminal import print_warning

POSITION = "position"  # in the meta of a context: that of the image to repeat among those of its options
# Options that, given on the command line, leave out those of the image.
INSTEAD_OF = {"seeds": ("seed", "n"), "seed": ("seeds",), "n": ("seeds",), "prompts": ("prompt",)}
INSTEAD_OF["sampler"] = ("karras", "eta", "churn", "spacing")  # which not every sampler has
INSTEAD_OF |= {weights: ("raw", "best", "step", "ema") for weights in ("raw", "best", "step", "ema")}


class Repeating(TyperCommand):
    """A command with an option --like: the options not given on the command line take the values of an image's.

    They are read and checked as if they were given. The image's position among those is then ctx.meta[POSITION].
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        image, ctx.meta[POSITION] = ctx.params["like"], None
        if image is not None:
            ctx.meta[POSITION] = self._take_options(ctx, image)
        return rest

    def _take_options(self, ctx: Any, image: Path) -> int | None:
        """Set the options that are not given, and return the image's position."""
        read = read_parameters(image)
        given = {o.name for o in self.params if ctx.get_parameter_source(o.name).name == "COMMANDLINE"}
        with naming(image):
            values, position = options_of(read)
        if position is not None and given & {"seed", "seeds", "n", "prompts"}:  # another image, or several
            values, position = {**values, "n": "1", "seeds": None}, None
        left_out = given.union(*(INSTEAD_OF.get(name, ()) for name in given))
        for option in self.params:
            if values.get(option.name) is not None and option.name not in left_out:
                with naming(image):
                    ctx.params[option.name] = option.process_value(ctx, values[option.name])
        for option, name in files_of(read).items():
            if option not in given:
                print_warning(f"{image}: was sampled with {name}; no file is opened for it, give --{option} too")
        return position


@contextmanager
def naming(image: Path) -> Iterator[None]:
    """Errors of values that an image's parameters hold name the image."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MinidiffError) and not hasattr(error, "format_message"):  # typer's, a private class
            raise
        message = getattr(error, "format_message", error.__str__)().replace("\n", " ")
        message = message.replace(": Value error, ", ": ").rstrip(".")  # as of options on the command line
        raise MinidiffError(f"{image}: {message:.400}; give the option, or another image") from None


def given_options(ctx: typer.Context) -> dict[str, Any]:
    """The values of a command's options that are not their defaults, by name."""
    return {o.name: ctx.params[o.name] for o in ctx.command.params if ctx.params.get(o.name) != o.default}
