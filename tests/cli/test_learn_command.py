"""minidiff learn."""

import json
import re
from pathlib import Path

import pytest
from small_commands import bytes_of, process
from small_runs import tree

from minidiff.cli import learn
from minidiff.learn.catalogue import EXERCISES
from minidiff.learn.stub import answer_file, stub

NUMBER = next(number for number, exercise in EXERCISES.items() if exercise.title == "Add noise")
BODY = """    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
"""
BLANK = "    raise NotImplementedError  # your code\n"
FILE = answer_file(NUMBER)
PROGRESS = Path("exercises/progress.json")


def write(body):
    """The file of the exercise with that body."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(stub(NUMBER).replace(BLANK, body))


def state(done):
    """What `minidiff learn` prints of the exercise, and how many are solved."""
    out = done("learn")
    return re.search(rf"^ *{NUMBER} +Add noise +1 Forward diffusion +(.*?) *$", out, re.M)[1], int(
        re.search(rf"(\d+) of {len(EXERCISES)} solved", out)[1]
    )


def test_from_a_blank_to_a_solved_exercise(run, done):
    assert state(done) == ("-", 0) and tree(Path()) == {}
    out = done("learn", NUMBER)
    assert f"Wrote {FILE}: exercise {NUMBER}, Add noise\n" in out and f"minidiff learn check {NUMBER}\n" in out
    assert "chapter 1, Forward diffusion: docs/course/01_forward_diffusion.md\n" in out
    assert FILE.read_text() == stub(NUMBER) and BLANK in stub(NUMBER)
    assert state(done) == ("blank", 0)
    assert run("learn", "check", NUMBER) == (
        1, "Not right yet. q_sample is still blank: write its body in place of `raise NotImplementedError`.\n", ""
    )  # fmt: skip
    write(BODY.replace("np.sqrt", ""))
    assert state(done) == ("begun", 0)
    code, out, err = run("learn", "check", NUMBER)
    assert (code, err) == (1, "") and out.startswith("Not right yet. The square roots are missing: ")
    write(BODY)
    out = done("learn", "check", NUMBER)
    image = FILE.with_suffix(".png")
    assert out.startswith(f"Right: exercise {NUMBER}, Add noise\nThe image that your function makes: {image}\n")
    assert f"\n1 of {len(EXERCISES)} solved." in out and image.read_bytes().startswith(b"\x89PNG")
    assert state(done) == ("solved", 1)
    write("# as clear as can be\n" + BODY)
    assert state(done) == ("changed since solved", 0)
    done("learn", "check", NUMBER)
    assert state(done) == ("solved", 1)
    assert json.loads(PROGRESS.read_text()).keys() == {str(NUMBER)}
    FILE.unlink()
    assert state(done) == ("-", 0)


def test_a_file_that_is_there_stays(done):
    write(BODY)
    before = tree(Path())
    assert f"{FILE} is there already and stays as it is" in done("learn", NUMBER)
    assert tree(Path()) == before
    FILE.unlink()
    FILE.symlink_to("elsewhere.py")
    done("learn", NUMBER)
    assert FILE.is_symlink() and not FILE.exists()


def test_a_file_that_cannot_be_run(refused):
    write("    return x0[t]\n")
    refused("learn", "check", NUMBER, match=rf"^minidiff: {FILE}, line \d+: IndexError: ")
    write("    return (\n")
    refused("learn", "check", NUMBER, match=rf"^minidiff: {FILE}, line \d+: SyntaxError: ")
    FILE.unlink()
    refused("learn", "check", NUMBER, match=f"{FILE}: there is no such file; write it with minidiff learn {NUMBER}")
    FILE.mkdir()
    refused("learn", "check", NUMBER, match=f"{FILE}: is no regular file; move it")


def test_wrong_words(refused):
    last = len(EXERCISES)
    for number in (0, last + 1, 10**30):
        refused("learn", number, match=rf"exercise {number}: there is none; give a number from 1 to {last}$")
        refused("learn", "check", number, match="there is none")
    for words in (["fly"], ["check"], ["check", "two"], ["2", "check"], ["2", "2"], ["1.5"], ["²"]):
        refused("learn", *words, match=f"learn {' '.join(words)}: give a number, as in minidiff learn 2 or ")
    refused("learn", "check", 1, 2, match=r"unexpected extra argument.*See minidiff learn --help\.$")
    refused("learn", "--solution", match=r"--solution.*See minidiff learn --help\.$")


def test_a_place_that_cannot_be_written(refused):
    Path("exercises").write_text("a file")
    refused("learn", NUMBER, match=f"{FILE}: cannot be written .*; make room, or choose another place")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"3", b'{"two": "a"}', b'{"2": "a"}', b'{"2": 3}', b"[" * 10**5, b'{"0": null}'],
)
def test_progress_that_is_damaged_or_anothers(refused, content):
    write(BODY)
    PROGRESS.write_bytes(content)
    for command in (["learn"], ["learn", "check", NUMBER]):
        refused(*command, match=f"{PROGRESS}: .*, or delete it and check the solved exercises once more$")


def test_progress_of_more_exercises_is_kept(done):
    """Of a later version, say."""
    write(BODY)
    PROGRESS.write_text(json.dumps({"999": "0" * 64}))
    done("learn", "check", NUMBER)
    assert json.loads(PROGRESS.read_text()).keys() == {str(NUMBER), "999"}


def test_the_image_of_a_right_answer(run, monkeypatch):
    write(BODY)
    monkeypatch.setattr(learn, "run_check", lambda number, path: learn.Checked(True, "", b"an image"))
    code, out, _ = run("learn", "check", NUMBER)
    image = FILE.with_suffix(".png")
    assert code == 0 and f"The image that your function makes: {image}\n" in out
    assert bytes_of(image) == b"an image"


def test_what_the_file_prints_comes_before_the_verdict():
    write("    print('in the function')\n" + BODY)
    child = process("learn", "check", NUMBER)
    out, err = child.communicate(timeout=100)
    assert (child.returncode, err) == (0, "")
    *printed, verdict, _, _ = out.splitlines()
    assert set(printed) == {"in the function"} and verdict.startswith("Right: ")


def test_the_next_exercise_is_the_first_unsolved_one_after_it(run, monkeypatch):
    numbers = (NUMBER - 1, NUMBER, NUMBER + 1)
    monkeypatch.setattr(learn, "EXERCISES", {number: EXERCISES[NUMBER] for number in numbers})
    monkeypatch.setattr(learn, "run_check", lambda number, path: learn.Checked(True, "", None))
    solved = set()
    monkeypatch.setattr(learn, "state", lambda number, _: "solved" if number in solved else "-")
    write(BODY)
    for also, following in (({NUMBER}, NUMBER + 1), ({NUMBER + 1}, NUMBER - 1), ({NUMBER - 1}, None)):
        solved |= also
        out = run("learn", "check", NUMBER)[1]
        assert re.findall(r"Next: minidiff learn (\d+), Add noise\n", out) == ([str(following)] if following else [])
