"""The checker's verdicts on answers of one small exercise each: hints of every kind."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minidiff.errors import MinidiffError
from minidiff.learn.check import check
from minidiff.learn.compare import copied, leaves, same
from minidiff.learn.exercise import Exercise


def variance(x, axis):
    """The variance along an axis."""
    return x.var(axis)


def _standard_deviation(x, axis):
    """This is the standard deviation:
    square it."""
    return x.std(axis)


def _inputs(rng):
    return [(rng.standard_normal((5, 4)), 0), (rng.standard_normal((6, 3)), 0)]


EXERCISE = Exercise("Variance", 0, variance, _inputs, (_standard_deviation,))


def returning(solution, inputs, rtol=1e-6):
    """An exercise with that solution and no mistakes."""
    return Exercise("Any", 0, solution, lambda rng: inputs, (), rtol=rtol)


def hint(answer, solution, *arguments):
    """The hint for an answer that is wrong, on a single input."""
    verdict = check(returning(solution, [arguments]), answer)
    assert not verdict.right
    return verdict.hint


def test_right_and_wrong():
    assert check(EXERCISE, variance).right
    assert check(EXERCISE, lambda x, axis: ((x - x.mean(axis)) ** 2).mean(axis)).right
    verdict = check(EXERCISE, lambda x, axis: x.mean(axis))
    assert not verdict.right and verdict.hint.startswith("The result differs by up to ")


def test_a_mistakes_docstring_is_the_hint():
    assert check(EXERCISE, lambda x, axis: np.sqrt(x.var(axis))).hint == "This is the standard deviation: square it."


def test_a_mistake_on_some_of_the_inputs_is_another_one():
    verdict = check(EXERCISE, lambda x, axis: x.std(axis) if len(x) == 5 else x.var(axis))
    assert "standard deviation" not in verdict.hint and verdict.hint.endswith("It is right for 1 of 2 inputs.")


def test_a_seed_gives_its_own_inputs():
    seen = []
    for seed in (0, 0, 1):
        check(EXERCISE, lambda x, axis: seen.append(x[0, 0]) or x.var(axis), seed)
    assert seen[:2] == seen[2:4] != seen[4:]


def test_blank():
    def blank(x, axis):
        raise NotImplementedError

    assert check(EXERCISE, blank).hint.startswith("variance is still blank: write its body")
    assert check(EXERCISE, lambda x, axis: None).hint.startswith("variance is still blank: it returns None")


def test_an_error_of_the_answer_is_its_own():
    with pytest.raises(ZeroDivisionError):
        check(EXERCISE, lambda x, axis: 1 // 0)


@pytest.mark.parametrize("answer", [lambda x: x, lambda x, axis, y: x, 3, np.zeros(2)])
def test_other_arguments(answer):
    with pytest.raises(MinidiffError, match=r"variance is not a function of \(x, axis\)"):
        check(EXERCISE, answer)


def test_arguments_changed_in_place():
    def centred(x, axis):
        x -= x.mean(axis)
        return (x**2).mean(axis)

    assert check(EXERCISE, centred).hint == "variance changes its argument x in place: compute a new array instead."

    def sorted_in_place(batch):
        batch["x"][0].sort()
        return batch["x"][0]

    def sort(batch):
        return np.sort(batch["x"][0])

    assert "changes its argument batch in place" in hint(sorted_in_place, sort, {"x": [np.array([2.0, 1.0])]})


def test_an_answer_may_return_its_argument_or_the_same_array_twice():
    assert check(returning(lambda x: x.copy(), [(np.ones(3),)]), lambda x: x).right
    buffer = np.empty(3)

    def in_buffer(x):
        buffer[:] = x
        return buffer

    assert check(returning(lambda x: x.copy(), [(np.ones(3),), (np.zeros(3),)]), in_buffer).right


X = np.random.default_rng(0).uniform(0.5, 2, (5, 4))  # positive
MATRIX = np.random.default_rng(1).standard_normal((5, 5))


@pytest.mark.parametrize(
    "answer, solution, match",
    [
        (lambda: -X, lambda: X, "has the wrong sign everywhere"),
        (lambda: X.T, lambda: X, "is transposed"),
        (lambda: MATRIX.T, lambda: MATRIX, "is transposed"),
        (lambda: X**2, lambda: X, "lacks a square root"),
        (lambda: X**0.5, lambda: X, "has a square root too many"),
        (lambda: 0.5 * MATRIX, lambda: MATRIX, "is 0.5 times what it should be, everywhere"),
        (lambda: X > 1, lambda: X <= 1, "is True where it should be False"),
        (lambda: X.mean(1), lambda: X.mean(1, keepdims=True), r"shape \(5,\); it should be \(5, 1\), with the same"),
        (lambda: X.mean(0), lambda: X.mean(1), r"has shape \(4,\); it should be \(5,\)\."),
        (lambda: X.astype(int), lambda: X, "holds integers; it should hold floats"),
        (lambda: (X > 1).astype(int), lambda: X > 1, "holds integers; it should hold booleans"),
        (lambda: np.array(["a"]), lambda: np.array([1.0]), "is an array of strings of .* an array of floats"),
        (lambda: X.astype(np.float16), lambda: X, "has the rounding errors of float16: compute in float64"),
        (lambda: np.log(MATRIX * [[1], [1], [-1], [1], [1]]), lambda: MATRIX, r"is nan at index \(\d, \d\): l"),
        (lambda: np.append(X[0], 1 / np.float64(1e-320)), lambda: np.append(X[0], 1), r"is inf at index \(4,\)"),
        (lambda: np.ones(3), lambda: np.array([1, -np.inf, 1]), r"is 1 at index \(1,\); it should be -inf there"),
        (lambda: np.append(7, X[1:, 0]), lambda: X[:, 0], "is right but for the first index"),
        (lambda: np.append(X[:-1, 0], 7), lambda: X[:, 0], "is right but for the last index"),
        (lambda: np.roll(X, 1, 0), lambda: X, r"is shifted by one: what is at index i should be at i - 1"),
        (lambda: np.roll(X, -1, 0), lambda: X, r"is shifted by one: what is at index i should be at i \+ 1"),
        (lambda: np.arange(1, 9), lambda: np.arange(8), "is too large by one: timesteps and indices count"),
        (lambda: 269, lambda: 270, "is too small by one"),
        (lambda: 3.5, lambda: 3.25, "is too large by 0.25"),
        (lambda: X + (X == X.max()), lambda: X, r"differs by up to 1 at index \(\d, \d\); the largest value s"),
        (lambda: np.array([True, True]), lambda: np.array([True, False]), r"is wrong at index \(1,\)"),
        (lambda: "dog", lambda: "cat", "is wrong: 'dog'"),
        (lambda: 3, lambda: "cat", "is a number; it should be a string"),
        (lambda: X.tolist(), lambda: X, r"is a list of 5; it should be an array of floats of shape \(5, 4\)"),
        (lambda: X, lambda: (X, X), r"is an array of floats of shape \(5, 4\); it should be a tuple of 2"),
        (lambda: {"b": 1}, lambda: {"a": 1}, "is a dict with the keys 'b'; it should be a dict with the keys 'a'"),
        (lambda: [[1], [2, 3]], lambda: [[1, 2], [3]], r"at \[0\] is a list of 1; it should be a list of 2"),
        (lambda: [[1], [2, 3]], lambda: {"a": [[1], [2]]}, "is a list of 2; it should be a dict with the keys 'a'"),
        (lambda: {"a": ("b", 1)}, lambda: {"a": "b 1"}, r"at \['a'\] is a tuple of 2; it should be a string"),
        (lambda: (x for x in X), lambda: X, "is a generator; it should be an array"),
        (lambda: {"dx": [X, -X]}, lambda: {"dx": [X, X]}, r"^result\['dx'\]\[1\] has the wrong sign"),
    ],
)  # fmt: skip
def test_hints(answer, solution, match):
    with np.errstate(all="ignore"):
        found = hint(answer, solution)
    assert re.search(match, found), found
    assert found.endswith(".") and "\n" not in found


def test_what_is_the_same():
    assert check(returning(lambda: (3, X), [()]), lambda: [np.float64(3), X + 1e-7]).right
    assert same(np.array([np.nan, np.inf, 1]), np.array([np.nan, np.inf, 1]), 0)
    assert not same(np.array([np.nan, 1.0]), np.array([1.0, 1.0]), 1)
    assert not same(2**53, 2**53 + 1, 1e-6)
    assert same(np.array([]), np.array([]), 0)


def test_a_difference_counts_relative_to_the_largest_value():
    assert same(np.array([1000.0, 1e-4]), np.array([1000.0, 0]), 1e-6)
    assert not same(np.array([1000.0, 1e-2]), np.array([1000.0, 0]), 1e-6)


def test_copies_share_no_memory():
    value = {"a": [np.ones(2)], "b": (np.ones(2), "text")}
    for one, other in zip(leaves(value).values(), leaves(copied(value)).values(), strict=True):
        assert isinstance(one, str) or (np.array_equal(one, other) and not np.shares_memory(one, other))


SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (3, 3), (3, 2)])
ARRAYS = st.sampled_from(["bool", "uint8", "int64", "float16", "float32", "float64", "complex128", "U1"]).flatmap(
    lambda dtype: arrays(dtype, SHAPES)
)
NUMBERS = st.booleans() | st.integers(-9, 9) | st.floats()
REAL = st.sampled_from(["bool", "uint8", "int64", "float32", "float64"]).flatmap(lambda dtype: arrays(dtype, SHAPES))


def nested(leaf):
    """Lists, tuples and dicts of leaves."""
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text("ab"), inner),
        max_leaves=4,
    )


@given(
    st.lists(st.tuples(nested(ARRAYS | NUMBERS | st.text("ab")), nested(REAL | NUMBERS | st.text("ab"))), min_size=1)
)
def test_whatever_an_answer_returns_there_is_a_hint(pairs):
    results, inputs = [got for got, _ in pairs], [(i,) for i in range(len(pairs))]
    wanted = [want for _, want in pairs]
    verdict = check(returning(lambda i: wanted[i], inputs), lambda i: results[i])
    assert verdict.right == all(same(got, want, 1e-6) for got, want in pairs)
    assert verdict.right or (verdict.hint.endswith(".") and verdict.hint[-2] != ".")
