"""Validation of values read from untrusted files: type and limits are checked before a value is used."""

from collections.abc import Callable, Mapping
from typing import Any

from graft.errors import RecordError

Check = Callable[[object], Any]
"""Function that returns a value as a plain one, or raises UnexpectedValue."""

LONGEST_TEXT = 4096
"""Largest number of characters in a text: the longest path on Linux."""

SHOWN = 80


class UnexpectedValue(Exception):
    """A value has the wrong type or is out of range.

    Args:
        value: the value.
        expected: what is allowed, e.g. "a whole number from 1 to 4,096".
        within: its position in the value that was checked, e.g. "[3]".
    """

    def __init__(self, value: object, expected: str, within: str = "") -> None:
        self.value, self.expected, self.within = value, expected, within
        super().__init__(expected)


def read_values(values: object, checks: Mapping[str, Check], source: str, key: str = "") -> dict[str, Any]:
    """Check and return the values that `checks` names; other keys are ignored.

    Args:
        values: a mapping in a file.
        checks: key -> check of its value.
        source: name of the file, for messages.
        key: position of the mapping in the file, e.g. "data"; "" for the top level.

    Raises:
        RecordError: not a mapping, or a value of the wrong type or out of range; names file, key, value and range.
    """
    if not isinstance(values, Mapping):
        raise RecordError(f"{source}: {key or 'its content'} is a {type(values).__name__}. Expected: a mapping.")
    found = {}
    for name, check in checks.items():
        if name in values:
            full = f"{key}.{name}" if key else name
            try:
                found[name] = check(values[name])
            except UnexpectedValue as error:
                where = _shown(full + error.within, error.value)
                raise RecordError(f"{source}: {where} Expected: {error.expected}.") from None
    return found


def _shown(key: str, value: object) -> str:
    if isinstance(value, str):
        text = ascii(value[:SHOWN])
    elif isinstance(value, Mapping | list | tuple):
        text = f"a {type(value).__name__} of {len(value):,} values"
    else:
        text = ascii(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"
    return f"{key}={text[:SHOWN]}: refused."


def flag(value: object) -> bool:
    """Check for a boolean."""
    if not isinstance(value, bool):
        raise UnexpectedValue(value, "true or false")
    return value


def mapping(value: object) -> Mapping[str, object]:
    """Check for a mapping; its values are not checked."""
    if not isinstance(value, Mapping):
        raise UnexpectedValue(value, "a mapping")
    return value


def integer(least: int, most: int) -> Check:
    """Check for an integer in [least, most]."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UnexpectedValue(value, f"a whole number from {least:,} to {most:,}")
        return value

    return check


def number(least: float, most: float) -> Check:
    """Check for a finite number in [least, most]."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise UnexpectedValue(value, f"a number from {least:g} to {most:g}")
        return value

    return check


def text(most: int = LONGEST_TEXT) -> Check:
    """Check for a text of at most `most` characters."""

    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > most or "\0" in value:
            raise UnexpectedValue(value, f"a text of at most {most:,} characters")
        return value

    return check


def line(most: int) -> Check:
    """Check for a printable text of at most `most` characters: no line breaks, control or direction characters."""
    plain = text(most)

    def check(value: object) -> str:
        if not plain(value).isprintable():
            raise UnexpectedValue(value, f"a printable text of at most {most:,} characters")
        return value  # type: ignore[return-value]

    return check


def literal(most: int = LONGEST_TEXT) -> Check:
    """Check for a text that OmegaConf does not interpret: neither an interpolation ${…} nor the missing value ???."""
    plain = text(most)

    def check(value: object) -> str:
        if "${" in plain(value) or value == "???":
            raise UnexpectedValue(value, "a plain text without interpolation")
        return value  # type: ignore[return-value]

    return check


def among(*names: str) -> Check:
    """Check for one of these texts."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise UnexpectedValue(value, f"one of {', '.join(names)}")
        return value

    return check


def optional(check: Check) -> Check:
    """Check for None or a value that `check` accepts."""
    return lambda value: None if value is None else check(value)


def either(*checks: Check) -> Check:
    """Check for a value that one of `checks` accepts."""

    def check(value: object) -> Any:
        expected = []
        for each in checks:
            try:
                return each(value)
            except UnexpectedValue as error:
                expected.append(error.expected)
        raise UnexpectedValue(value, " or ".join(expected))

    return check


def sequence(check: Check, most: int, least: int = 0) -> Check:
    """Check for a list or tuple of `least` to `most` values that `check` accepts."""

    def check_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise UnexpectedValue(value, f"a list of {f'{least:,} to ' if least != most else ''}{most:,} values")
        checked = []
        for index, each in enumerate(value):
            try:
                checked.append(check(each))
            except UnexpectedValue as error:
                raise UnexpectedValue(error.value, error.expected, f"[{index}]{error.within}") from None
        return tuple(checked)

    return check_all


def tree(check: Check, most: int, depth: int) -> Check:
    """Check for nested mappings and lists of limited depth and number of values that `check` accepts."""

    def copied(value: object, left: int, budget: list[int]) -> Any:
        budget[0] -= 1
        if left < 0 or budget[0] < 0:
            raise UnexpectedValue(value, f"at most {most:,} values, nested at most {depth} deep")
        if isinstance(value, Mapping):
            return {text()(key): inner(f".{ascii(key)[1:-1]}", each, left, budget) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [inner(f"[{index}]", each, left, budget) for index, each in enumerate(value)]
        return check(value)

    def inner(position: str, value: object, left: int, budget: list[int]) -> Any:
        try:
            return copied(value, left - 1, budget)
        except UnexpectedValue as error:
            raise UnexpectedValue(error.value, error.expected, f"{position}{error.within}") from None

    return lambda value: copied(value, depth, [most])


def any_number(value: object) -> float:
    """Check for any number, including NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnexpectedValue(value, "a number")
    return float(value)


def scalar(value: object) -> bool | int | float | str | None:
    """Check for None, a boolean, a number or a literal text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    checked: str = literal()(value)
    return checked
