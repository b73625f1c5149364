"""Hints for results that are wrong: their structure, shape, sign, a factor, a root, an index, or where they differ."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.learn.compare import agree, close, is_numeric, kind, leaves, same

Pairs = list[tuple[Any, Any]]  # a result and the one that is wanted, of every input

SINGLE_PRECISION = 1e-3  # largest relative difference that rounding in float32 may explain


def _inverted(a: Any) -> np.ndarray:
    if np.asarray(a).dtype.kind != "b":
        raise TypeError("only booleans are inverted")
    return np.logical_not(a)


def _swapped(a: Any) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


# what turns the result into the right one, and what to say then
REMEDIES: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (np.negative, "has the wrong sign everywhere"),
    (_inverted, "is True where it should be False, and False where it should be True"),
    (_swapped, "is transposed: its last two axes are swapped"),
    (np.sqrt, "lacks a square root: the root of every value is right"),
    (np.square, "has a square root too many: the square of every value is right"),
)


def hint(pairs: Pairs, rtol: float) -> str:
    """One or two sentences on what is wrong with results; at least one of the pairs differs."""
    wrong = [pair for pair in pairs if not same(*pair, rtol)]
    got, want = wrong[0]
    found, wanted = leaves(got), leaves(want)
    if found.keys() != wanted.keys():
        return f"The result {_structure(got, want)}."
    place = next(place for place, leaf in wanted.items() if not agree(found[place], leaf, rtol))
    at_place = [(leaves(got).get(place), leaves(want).get(place)) for got, want in pairs]
    what = f"result{place}" if place else "The result"
    right = len(pairs) - len(wrong)
    rest = f" It is right for {right} of {len(pairs)} inputs." if right else ""
    return f"{what} {_leaf(at_place, rtol)}.{rest}"


def described(value: Any) -> str:
    """A few words on what kind of value it is, and on its size."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of {kind(value)} of shape {value.shape}"
    if is_numeric(value):
        return "a number"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}"
    return "a string" if isinstance(value, str) else "None" if value is None else f"a {type(value).__name__}"


def _structure(got: Any, want: Any) -> str:
    """The first difference of two structures."""
    if described(got) != described(want):
        return f"is {described(got)}; it should be {described(want)}"
    places = want if isinstance(want, dict) else range(len(want))
    place = next(place for place in places if leaves(got[place]).keys() != leaves(want[place]).keys())
    return f"at [{place!r}] {_structure(got[place], want[place])}"


def _leaf(pairs: Pairs, rtol: float) -> str:
    """What is wrong with the leaf at one place of the results."""
    got, want = next(pair for pair in pairs if not agree(*pair, rtol))
    if not (is_numeric(got) and is_numeric(want)):
        if described(got) == described(want):
            return f"is wrong: {got!r:.60}"
        return f"is {described(got)}; it should be {described(want)}"
    for mend, text in REMEDIES:
        if all(_agrees_after(mend, *pair, rtol) for pair in pairs):
            return text
    arrays: Pairs = [tuple(map(np.asarray, pair)) for pair in pairs if all(map(is_numeric, pair))]
    return _shape_or_kind(arrays, rtol) or _values(arrays, rtol)


def _agrees_after(mend: Callable[[Any], Any], got: Any, want: Any, rtol: float) -> bool:
    try:
        with np.errstate(all="ignore"):  # a root of negative values
            return agree(mend(got), want, rtol)
    except (TypeError, ValueError):  # it has no sign, or fewer than two axes
        return False


def _shape_or_kind(pairs: Pairs, rtol: float) -> str:
    """Of a shape that is wrong, or of values that are of another kind; "" if neither is."""
    for got, want in pairs:
        if got.shape != want.shape:
            kept = got.size == want.size and agree(got.reshape(want.shape), want, rtol)
            return f"has shape {got.shape}; it should be {want.shape}" + (", with the same values" if kept else "")
        if kind(got) != kind(want) and (got.ndim or kind(got) == "complex numbers"):
            return f"holds {kind(got)}; it should hold {kind(want)}"
    return ""


def _values(pairs: Pairs, rtol: float) -> str:
    """What is wrong with the values of arrays of the right shape and kind."""
    for find in (_not_finite, _factor, _one_off, _ends):
        if text := find(pairs, rtol):
            return text
    return _size(*next(pair for pair in pairs if not agree(*pair, rtol)))


def _not_finite(pairs: Pairs, rtol: float) -> str:
    """Of NaN and infinity that are not wanted, and of those that are missing."""
    for got, want in pairs:
        equal = (got == want) | (np.isnan(got) & np.isnan(want))
        surplus, missing = np.isfinite(want) & ~np.isfinite(got), ~np.isfinite(want) & ~equal
        if surplus.any():
            cause = "a division by 0, or the root or logarithm of a negative number"
            return f"is {got[surplus][0]}{_at(surplus)}: look for {cause}"
        if missing.any():
            return f"is {got[missing][0]:.3g}{_at(missing)}; it should be {want[missing][0]} there"
    return ""


def _factor(pairs: Pairs, rtol: float) -> str:
    """Of a constant factor, which takes two values or more to be seen."""
    if any(kind(side) == "booleans" for pair in pairs for side in pair):
        return ""
    got, want = (np.concatenate([np.ravel(side) for side in sides]).astype(float) for sides in zip(*pairs, strict=True))
    if np.count_nonzero(want) < 2 or not np.isfinite([got, want]).all():
        return ""
    factor = float((got * want).sum() / (want * want).sum())
    if factor and close(got / factor, want, rtol):
        return f"is {factor:.4g} times what it should be, everywhere: a constant factor is wrong"
    return ""


def _ends(pairs: Pairs, rtol: float) -> str:
    """Of a first or last index that is wrong alone, and of all indices shifted by one, along the first axis."""
    if any(got.ndim == 0 or len(got) < 3 for got, _ in pairs):
        return ""
    parts = {
        "is right but for the first index": (slice(1, None), slice(1, None)),
        "is right but for the last index": (slice(-1), slice(-1)),
        "is shifted by one: what is at index i should be at i - 1": (slice(1, None), slice(-1)),
        "is shifted by one: what is at index i should be at i + 1": (slice(-1), slice(1, None)),
    }
    for text, (of_got, of_want) in parts.items():
        if all(close(got[of_got], want[of_want], rtol) for got, want in pairs):
            return text
    return ""


def _one_off(pairs: Pairs, rtol: float) -> str:
    """Of integers that are all one too large, or one too small."""
    if any(got.dtype.kind not in "iu" or want.dtype.kind not in "iu" for got, want in pairs):
        return ""
    for offset, text in ((1, "large"), (-1, "small")):
        if all(np.array_equal(got, want + offset) for got, want in pairs):
            return f"is too {text} by one: timesteps and indices count from 0"
    return ""


def _size(got: np.ndarray, want: np.ndarray) -> str:
    """Of the size of the difference, and where it is largest."""
    if kind(want) == "booleans":
        return f"is wrong{_at(got != want)}"
    finite = np.isfinite(want)
    error = np.abs(np.where(finite, got, 0).astype(float) - np.where(finite, want, 0))
    largest = np.abs(np.where(finite, want, 0)).max()
    if got.dtype in (np.float16, np.float32) and want.dtype == float and error.max() <= SINGLE_PRECISION * largest:
        return f"has the rounding errors of {got.dtype}: compute in float64"
    if got.ndim == 0:
        return f"is too {'large' if got > want else 'small'} by {error:.4g}"
    return f"differs by up to {error.max():.3g}{_at(error == error.max())}; the largest value should be {largest:.3g}"


def _at(where: np.ndarray) -> str:
    """The first index at which it is True, in words; "" for a number."""
    return f" at index {tuple(map(int, np.argwhere(where)[0]))}" if where.ndim else ""
