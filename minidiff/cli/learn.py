"""The command for the course's exercises: the list, a file to write an answer in, the check of an answer."""

from typing import Annotated

import typer
from rich.progress_bar import ProgressBar
from rich.table import Table

from minidiff.errors import MinidiffError
from minidiff.files import write_output
from minidiff.learn.catalogue import CHAPTERS, EXERCISES, exercise_of
from minidiff.learn.progress import Solved, read_progress, record_solved, state
from minidiff.learn.run import Checked, run_check
from minidiff.learn.stub import answer_file, write_stub
from minidiff.terminal import console

BAR = 30  # columns


def learn(
    what: Annotated[
        str | None, typer.Argument(metavar="check|NUMBER", help="An exercise, to write its file; or check.")
    ] = None,
    number: Annotated[str | None, typer.Argument(metavar="NUMBER", help="The exercise to check.")] = None,
) -> None:
    """Exercises of the course that check themselves.

    minidiff learn: list the exercises, and which are solved. minidiff learn 2: write exercises/02_q_sample.py, a
    function to fill in; a file that is there is never overwritten. minidiff learn check 2: run the file, and compare
    its results with the solution's. The exit code is 0 if the answer is right, 1 with a hint if it is not, and 2 if it
    cannot be run.
    """
    if what is None:
        show_list()
    elif what.isdecimal() and number is None:
        write_file(int(what))
    elif what == "check" and number is not None and number.isdecimal():
        check_file(int(number))
    else:
        given = what if number is None else f"{what} {number}"
        raise MinidiffError(f"learn {given}: give a number, as in minidiff learn 2 or minidiff learn check 2")


def show_list() -> None:
    """Print a table of the exercises, and how many are solved."""
    solved = read_progress()
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", justify="right")
    for name in ("exercise", "chapter", "state"):
        table.add_column(name)
    for number, exercise in EXERCISES.items():
        title = CHAPTERS[exercise.chapter].title
        table.add_row(str(number), exercise.title, f"{exercise.chapter} {title}", state(number, solved))
    console.print(table)
    summary = Table.grid(padding=(0, 2, 0, 0))
    done = num_solved(solved)
    summary.add_row(f"{done} of {len(EXERCISES)} solved", ProgressBar(len(EXERCISES), done, width=BAR))
    console.print("", summary, "Write the file of an exercise: minidiff learn NUMBER", sep="\n")


def write_file(number: int) -> None:
    """Write the file of an exercise, and print what to do next."""
    exercise = exercise_of(number)
    path, (title, page, _) = answer_file(number), CHAPTERS[exercise.chapter]
    if write_stub(number):
        console.print(f"Wrote {path}: exercise {number}, {exercise.title}")
    else:
        console.print(f"{path} is there already and stays as it is; for a blank one, move it and call this again")
    console.print(f"Read chapter {exercise.chapter}, {title}: docs/course/{page}.md")
    console.print(f"Fill in the function, then check it: minidiff learn check {number}")


def check_file(number: int) -> None:
    """Check the file of an exercise, print the verdict, and record that it is solved; exit code 1 if it is not."""
    exercise, path = exercise_of(number), answer_file(number)
    if path.exists() and not path.is_file():
        raise MinidiffError(f"{path}: is no regular file; move it, and write the exercise with minidiff learn {number}")
    if not path.is_file():
        raise MinidiffError(f"{path}: there is no such file; write it with minidiff learn {number}")
    read_progress()  # a damaged file is reported before the work
    source = path.read_bytes()
    checked: Checked = run_check(number, path)
    if not checked.right:
        console.print(f"Not right yet. {checked.hint}")
        raise typer.Exit(1)
    console.print(f"Right: exercise {number}, {exercise.title}")
    if (image := checked.image) is not None:
        write_output(path.with_suffix(".png"), lambda file: file.write(image))
        console.print(f"The image that your function makes: {path.with_suffix('.png')}")
    solved = record_solved(number, source)
    console.print(f"{num_solved(solved)} of {len(EXERCISES)} solved.{following(number, solved)}")


def following(number: int, solved: Solved) -> str:
    """A sentence on the next exercise that is not solved, after this one or from the beginning; "" if there is none."""
    unsolved = [other for other in EXERCISES if state(other, solved) != "solved"]
    if not unsolved:
        return ""
    chosen = next((other for other in unsolved if other > number), unsolved[0])
    return f" Next: minidiff learn {chosen}, {EXERCISES[chosen].title}"


def num_solved(solved: Solved) -> int:
    """How many exercises are solved, by the files that are there."""
    return sum(state(number, solved) == "solved" for number in EXERCISES)
