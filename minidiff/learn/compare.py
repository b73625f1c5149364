"""Comparison of results: arrays, numbers and strings, in nested lists, tuples and dicts."""

from typing import Any

import numpy as np

NUMERIC = "biufc"  # of NumPy's kinds: booleans, integers, unsigned ones, floats, complex numbers
KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "c": "complex numbers", "U": "strings"}


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """The arrays, numbers and strings in nested lists, tuples and dicts, by their place, such as "[0]['dx']"."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {place: value}
    return {where: leaf for key, item in items for where, leaf in leaves(item, f"{place}[{key!r}]").items()}


def copied(value: Any) -> Any:
    """A copy of nested lists, tuples and dicts, with their arrays; models and all other values are not copied."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return tuple(copied(item) for item in value) if type(value) is tuple else value


def same(got: Any, want: Any, rtol: float) -> bool:
    """Whether two results have the same structure and all their leaves agree; a list is the same as a tuple."""
    found, wanted = leaves(got), leaves(want)
    return found.keys() == wanted.keys() and all(agree(found[place], leaf, rtol) for place, leaf in wanted.items())


def agree(got: Any, want: Any, rtol: float) -> bool:
    """Whether two leaves agree: arrays in shape, kind of number and values, numbers in value, others by ==."""
    if got is want:
        return True
    if not (is_numeric(got) and is_numeric(want)):
        return isinstance(got, type(want)) and bool(np.all(got == want))
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or (got.ndim and kind(got) != kind(want)):
        return False
    return close(got, want, rtol)


def close(got: np.ndarray, want: np.ndarray, rtol: float) -> bool:
    """Whether no value differs by more than rtol times the largest absolute value wanted; integers must be equal.

    Both of one shape. Infinity and NaN must stand where they are wanted.
    """
    if {got.dtype.kind, want.dtype.kind} <= set("biu"):
        return np.array_equal(got, want)
    finite = np.isfinite(want)
    with np.errstate(all="ignore"):
        error = np.abs(got[finite] - want[finite])
    most = rtol * np.abs(want[finite]).max(initial=0)
    return bool((error <= most).all()) and np.array_equal(got[~finite], want[~finite], equal_nan=True)


def is_numeric(value: Any) -> bool:
    """Whether a value is a number or a boolean, or an array of them."""
    number = isinstance(value, bool | int | float | complex | np.ndarray | np.generic)
    return number and np.asarray(value).dtype.kind in NUMERIC


def kind(a: np.ndarray) -> str:
    """What an array holds, such as "floats"."""
    return KINDS.get(a.dtype.kind, "objects")
