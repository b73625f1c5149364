"""The dialect of all configurations: a dataclass whose fields are the keys of a config.json, each with a rule.

Unknown keys and values that break their rule raise an error that names them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from minidiff.errors import MinidiffError


@dataclass(frozen=True)
class Rule:
    """Which values are valid, and their description for error messages."""

    holds: Callable[[Any], bool]
    description: str


def integer(low: int, high: int) -> Rule:
    """Integers from low to high."""
    return Rule(lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}")


def real(low: float, high: float) -> Rule:
    """Real numbers from low to high."""
    return Rule(lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low} to {high}")


def one_of(*choices: Any) -> Rule:
    """One of the choices, of the same type."""
    return Rule(lambda value: any(value is c or (value == c and type(value) is type(c)) for c in choices),
                " or ".join(map(repr, choices)))  # fmt: skip


def or_none(rule: Rule) -> Rule:
    """A value of the rule, or None."""
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.description}, or null")


def each(rule: Rule) -> Rule:
    """Lists of one to twelve values of the rule."""
    return Rule(
        lambda value: isinstance(value, tuple) and 1 <= len(value) <= 12 and all(map(rule.holds, value)),
        f"a list of one to twelve, each {rule.description}",
    )


def either(first: Rule, second: Rule) -> Rule:
    """A value of one of two rules."""
    return Rule(
        lambda value: first.holds(value) or second.holds(value), f"{first.description}, or {second.description}"
    )


def key(default: Any, rule: Rule) -> Any:
    """A key of config.json: its default and its rule."""
    return field(default=default, metadata={"rule": rule})


BOOLEAN = one_of(True, False)
SIDE = integer(1, 65536)
PAIR = Rule(lambda value: each(SIDE).holds(value) and len(value) == 2, "a list of two of them, height and width")
SIZE = or_none(either(SIDE, PAIR))


class FileConfig:
    """Base class. Raises MinidiffError, which names key and value, if a value is not supported."""

    CLASS: ClassVar[str]  # the network's class in diffusers or transformers
    FIXED: ClassVar[dict[str, Any]] = {}  # keys of which only one value is implemented; ... allows any

    def __post_init__(self) -> None:
        for entry in fields(self):  # pyright: ignore[reportArgumentType]  of its dataclasses
            value, rule = getattr(self, entry.name), entry.metadata["rule"]
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, entry.name, value)
            if not rule.holds(value):
                raise self.bad(entry.name, value, f"give {rule.description}")

    @classmethod
    def bad(cls, name: str, value: Any, remedy: str) -> MinidiffError:
        """The error for a value."""
        shown = repr(value)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        return MinidiffError(f"{cls.CLASS} configuration: {name} = {shown} is not supported: {remedy}")

    @classmethod
    def of(cls, values: Any) -> Self:
        """The configuration in a config.json. Raises MinidiffError if a key or value is not supported."""
        if not isinstance(values, dict):
            raise MinidiffError(f"{cls.CLASS} configuration: expected keys and values, found {type(values).__name__}")
        known = {entry.name for entry in fields(cls)}  # pyright: ignore[reportArgumentType]
        cls.check_keys(values, known)
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers config.json."""
        return {"_class_name": self.CLASS, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def check_keys(cls, values: dict[str, Any], known: set[str]) -> None:
        """Raises MinidiffError if the class is another or a key is unknown."""
        if values.get("_class_name", cls.CLASS) != cls.CLASS:
            raise cls.bad("_class_name", values["_class_name"], f"only {cls.CLASS} is read here")
        for name, value in values.items():
            if name in known or name.startswith("_"):
                continue
            if name not in cls.FIXED:
                raise cls.bad(ascii(name)[1:-1], value, "the key is not known")
            if value != cls.FIXED[name] and cls.FIXED[name] is not ...:
                raise cls.bad(name, value, f"only {cls.FIXED[name]!r} is")
