"""All exercises of the course, numbered in the order of its chapters."""

from typing import NamedTuple

from minidiff.errors import MinidiffError
from minidiff.learn.chapters import forward_diffusion, start
from minidiff.learn.exercise import Exercise


class Chapter(NamedTuple):
    """A chapter of the course: its title, its page without a suffix, and its exercises."""

    title: str
    page: str
    exercises: tuple[Exercise, ...]


CHAPTERS = {  # by number
    0: Chapter("Start", "00_start", start.EXERCISES),
    1: Chapter("Forward diffusion", "01_forward_diffusion", forward_diffusion.EXERCISES),
}
EXERCISES = dict(enumerate((e for chapter in CHAPTERS.values() for e in chapter.exercises), start=1))  # by number


def exercise_of(number: int) -> Exercise:
    """The exercise of that number. Raises MinidiffError if there is none."""
    if number not in EXERCISES:
        raise MinidiffError(f"exercise {number}: there is none; give a number from 1 to {len(EXERCISES)}")
    return EXERCISES[number]
