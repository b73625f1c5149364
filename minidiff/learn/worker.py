"""The process that runs a reader's file: python -m minidiff.learn.worker NUMBER FILE FOLDER.

It writes its report to FOLDER/report.json, and the image of a right answer to FOLDER/image.png. An endless loop ends
it at the time limit; FOLDER/stack.txt then holds the Python stack, and so it does after a crash.
"""

import faulthandler
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from minidiff.errors import MinidiffError
from minidiff.learn.catalogue import exercise_of
from minidiff.learn.check import Verdict, check
from minidiff.learn.exercise import Exercise

TIME_LIMIT = 10  # seconds of processor time, for the file and all calls of its function
WAITING = 6  # times as many seconds may pass, as on a processor with other work
MEMORY_LIMIT = 4 << 30  # bytes of address space
SEEDS = (1, 2)  # of the inputs


def main(number: int, path: Path, folder: Path) -> None:
    """Run and check the file, write the report, and end the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the process that started this one reports it
    stack = open(folder / "stack.txt", "w")  # written to until the process ends
    faulthandler.enable(stack)
    faulthandler.dump_traceback_later(WAITING * TIME_LIMIT, exit=True, file=stack)
    if sys.platform != "win32":
        _limit_time_and_memory(stack)
    report = report_on(exercise_of(number), path, folder / "image.png")
    (folder / "report.json").write_text(json.dumps(report))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # whatever threads the file has started


def report_on(exercise: Exercise, path: Path, image: Path | None = None) -> dict[str, Any]:
    """What is to be said of a file: {"right": ..., "hint": ...} or {"error": ...}, the reason why it cannot be run.

    With `image`, the image of a right answer is written there.
    """
    try:
        answer = _answer(exercise, path)
        verdicts = (check(exercise, answer, seed) for seed in SEEDS)
        verdict = next((verdict for verdict in verdicts if not verdict.right), Verdict(True))
        if verdict.right and exercise.image and image:
            exercise.image(answer).save(image)
        return {"right": verdict.right, "hint": verdict.hint}
    except BaseException as error:  # SystemExit too
        return {"error": _described(error, path)}


def _answer(exercise: Exercise, path: Path) -> Any:
    """The function of the solution's name that a file defines."""
    module = ModuleType(path.stem)
    sys.modules[path.stem] = module  # where dataclasses look for their module
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    name = exercise.solution.__name__
    if not hasattr(module, name):
        raise MinidiffError(f"defines no function {name}; write its first line again as it was")
    return getattr(module, name)


def _described(error: BaseException, path: Path) -> str:
    """One line: the last line of the file that was running, and the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    where = f"{path}, line {lines[-1]}" if lines and lines[-1] else f"{path}"
    if isinstance(error, MinidiffError):
        return f"{where}: {error}"
    if isinstance(error, SystemExit):
        return f"{where}: ends the program; return the result instead"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    name = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
    return f"{where}: {name}" + (f": {' '.join(text.split()):.300}" if text else "")


def _limit_time_and_memory(stack: TextIO) -> None:
    """End the process, with its stack written, at TIME_LIMIT; allocations beyond MEMORY_LIMIT raise MemoryError."""
    import resource  # which Windows has not

    faulthandler.register(signal.SIGPROF, stack, chain=True)  # and then its default action, which ends the process
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MEMORY_LIMIT:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
