"""What runs in a page when its reader presses Run: the text of an editor, in the place of minidiff's own source.

A playground's text is the source of real functions and a last line that uses them; the page shows that line's result.
This needs NumPy alone. The docs build runs it too, for the images that stand there before anyone presses Run.
"""

import inspect
import linecache
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidiff.data.imaging import to_float, to_uint8
from minidiff.diffusion import guidance, reverse, schedule, steps
from minidiff.diffusion.forward import q_sample
from minidiff.diffusion.solvers import ddim

FILE = "your code"  # the editor's name in tracebacks
MODEL = Path(inspect.getfile(reverse)).parents[1] / "learn/cats_dogs"
CAT = Path(__file__).with_name("cat.npy")  # the archive of a page holds it, since drawing one needs Pillow
SEED = 4  # of the noise that sampling starts from


class Playground(NamedTuple):
    """functions: edited by the reader; last_line: what uses them; result: the name of its result; names: all else."""

    functions: tuple[Callable[..., Any], ...]
    last_line: str
    result: str
    names: Callable[[], dict[str, Any]]


@cache
def pipeline() -> Any:
    from minidiff.sampling.opening import open_pipeline

    return open_pipeline(MODEL, backend="numpy")


def for_sampling() -> dict[str, Any]:
    """Every run starts from the same noise x_T; what `rng` draws in the loop is new in every run."""
    return {
        "unet": pipeline().unet,
        "schedule": pipeline().schedule,
        "sample": reverse.sample,
        "x_T": np.random.default_rng(SEED).standard_normal((8, 32, 32, 3), dtype=np.float32),
        "labels": np.array([0, 0, 0, 0, 1, 1, 1, 1]),  # cats and dogs; 2 is the null class
        "rng": np.random.default_rng(),
    }


def for_schedule() -> dict[str, Any]:
    """One cat ten times, and one noise for all of them."""
    x0 = to_float(cat()).repeat(10, 0)  # (10, 32, 32, 3)
    eps = np.random.default_rng(SEED).standard_normal((1, 32, 32, 3), dtype=np.float32).repeat(10, 0)
    return {"x0": x0, "eps": eps, "ts": np.linspace(0, 999, 10).astype(int), "q_sample": q_sample}


def cat() -> np.ndarray:
    """A clean image, uint8 (1, 32, 32, 3)."""
    if CAT.exists():
        return np.load(CAT)
    from minidiff.data import open_dataset

    return open_dataset("cats_dogs").take(np.array([17]))


PLAYGROUNDS = {
    "schedule": Playground(
        (schedule.cosine_schedule,),
        "x_t = q_sample(cosine_schedule(), x0, ts, eps)  # ts: ten timesteps, 0 to 999",
        "x_t",
        for_schedule,
    ),
    "sampling": Playground(
        (steps.ddim_update, ddim.ddim),
        "trajectory = sample(unet, schedule, x_T.shape, rng, steps=10, cond=labels, x_T=x_T)",
        "trajectory",
        for_sampling,
    ),
    "guidance": Playground(
        (guidance.guided,),
        "model = guided(unet, null=2, scale=4)\n"
        "trajectory = sample(model, schedule, x_T.shape, rng, steps=6, cond=labels, x_T=x_T)",
        "trajectory",
        for_sampling,
    ),
}


def text_of(name: str) -> str:
    """What the editor holds at first."""
    playground = PLAYGROUNDS[name]
    return "\n\n".join([*map(inspect.getsource, playground.functions), playground.last_line])


def run(name: str, text: str) -> Iterator[tuple[str, np.ndarray]]:
    """A caption and the images, uint8 (N, 32, 32, 3), after each step. Raises whatever the text raises."""
    playground = PLAYGROUNDS[name]
    linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)  # tracebacks quote its lines
    space: dict[str, Any] = {}
    for function in playground.functions:
        space |= vars(inspect.getmodule(function))
    space |= playground.names()
    with edited_loop(space):
        exec(compile(text, FILE, "exec"), space)
        if playground.result not in space:
            raise NameError(f"the page shows {playground.result}, which the code does not define")
        result = space[playground.result]
        if isinstance(result, np.ndarray):
            yield "", as_images(result)
        else:
            for t, x_t, _ in result:
                yield f"t = {t:g}" if t >= 0 else "clean", as_images(x_t)


@contextmanager
def edited_loop(space: dict[str, Any]) -> Iterator[None]:
    """`sample` finds its loop in a table; there the reader's `ddim` stands for minidiff's, if the text has one."""
    loop = reverse.SAMPLING_LOOPS["ddim"]

    def edited(*arguments: Any) -> Iterator[Any]:
        states = space.get("ddim", loop)(*arguments)
        if not isinstance(states, Iterator):
            raise TypeError("ddim yields (t, x_t, x0_hat) after every step; here it has no yield")
        return states

    reverse.SAMPLING_LOOPS["ddim"] = edited
    try:
        yield
    finally:
        reverse.SAMPLING_LOOPS["ddim"] = loop


def as_images(x_t: np.ndarray) -> np.ndarray:
    if np.ndim(x_t) != 4 or x_t.shape[1:] != (32, 32, 3):
        raise ValueError(f"images have the shape (N, 32, 32, 3), and these have {np.shape(x_t)}")
    if not np.isfinite(x_t).all():
        raise ValueError("the images hold values that are not finite")
    return to_uint8(x_t)


def show(name: str, text: str, send: Callable[[str, np.ndarray], object]) -> str:
    """Run a text, and send what it yields. Returns "", or the traceback if it raises an error."""
    try:
        for caption, images in run(name, text):
            send(caption, images)
    except BaseException as error:  # SystemExit too
        return explained(error)
    return ""


def explained(error: BaseException) -> str:
    """The traceback of an error, but for the lines that are not the reader's."""
    report = traceback.TracebackException.from_exception(error)
    report.__cause__ = report.__context__ = None
    report.stack = traceback.StackSummary.from_list([line for line in report.stack if line.filename == FILE])
    return "".join(report.format() if report.stack else report.format_exception_only())


def check(number: int, text: str) -> dict[str, Any]:
    """The verdict on an answer to an exercise, as `minidiff learn check` gives it (minidiff.learn.worker)."""
    from minidiff.learn.catalogue import exercise_of
    from minidiff.learn.stub import answer_file
    from minidiff.learn.worker import report_on

    path = Path(answer_file(number).name)
    path.write_text(text, encoding="utf-8")
    return report_on(exercise_of(number), path)
