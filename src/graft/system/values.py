"""What a file says, read as data: each value is of the expected type and within its limits before it is used."""

from collections.abc import Callable, Mapping
from typing import Any

from graft.errors import RecordError

Check = Callable[[object], Any]
"""From a value to the same as a plain one; raises Unexpected."""

LONGEST_TEXT = 4096
"""Characters: the longest path that Linux knows."""

SHOWN = 80


class Unexpected(Exception):
    """A value that was not expected.

    Args:
        value: what was found.
        expected: what is allowed, e.g. "a whole number from 1 to 4,096".
        within: where it is inside the value that was checked, e.g. "[3]".
    """

    def __init__(self, value: object, expected: str, within: str = "") -> None:
        self.value, self.expected, self.within = value, expected, within
        super().__init__(expected)


def read_values(values: object, checks: Mapping[str, Check], source: str, key: str = "") -> dict[str, Any]:
    """Those of `values` that `checks` names, each checked; the others are ignored.

    Args:
        values: a mapping that a file holds.
        checks: by key.
        source: the file, for messages.
        key: where the mapping is in the file, e.g. "data"; "" at the top.

    Raises:
        RecordError: no mapping, or a value of another type or beyond its limit; names file, key, value and limit.
    """
    if not isinstance(values, Mapping):
        raise RecordError(f"{source}: {key or 'its content'} is a {type(values).__name__}. Expected: a mapping.")
    found = {}
    for name, check in checks.items():
        if name in values:
            full = f"{key}.{name}" if key else name
            try:
                found[name] = check(values[name])
            except Unexpected as error:
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
    """true or false."""
    if not isinstance(value, bool):
        raise Unexpected(value, "true or false")
    return value


def mapping(value: object) -> Mapping[str, object]:
    """A mapping, its values unchecked."""
    if not isinstance(value, Mapping):
        raise Unexpected(value, "a mapping")
    return value


def integer(least: int, most: int) -> Check:
    """A whole number within these limits."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Unexpected(value, f"a whole number from {least:,} to {most:,}")
        return value

    return check


def number(least: float, most: float) -> Check:
    """A finite number within these limits."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Unexpected(value, f"a number from {least:g} to {most:g}")
        return value

    return check


def text(most: int = LONGEST_TEXT) -> Check:
    """A text of at most this number of characters."""

    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > most or "\0" in value:
            raise Unexpected(value, f"a text of at most {most:,} characters")
        return value

    return check


def line(most: int) -> Check:
    """A text of at most `most` characters that moves no cursor: no line breaks, control or direction characters."""
    plain = text(most)

    def check(value: object) -> str:
        if not plain(value).isprintable():
            raise Unexpected(value, f"a printable text of at most {most:,} characters")
        return value  # type: ignore[return-value]

    return check


def literal(most: int = LONGEST_TEXT) -> Check:
    """A text that means nothing else to OmegaConf: no ${…}, which would be resolved, and not ???, which is no value."""
    plain = text(most)

    def check(value: object) -> str:
        if "${" in plain(value) or value == "???":
            raise Unexpected(value, "a plain text; what a file says is not resolved")
        return value  # type: ignore[return-value]

    return check


def among(*names: str) -> Check:
    """One of these texts."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise Unexpected(value, f"one of {', '.join(names)}")
        return value

    return check


def optional(check: Check) -> Check:
    """None, or what `check` allows."""
    return lambda value: None if value is None else check(value)


def either(*checks: Check) -> Check:
    """What one of `checks` allows."""

    def check(value: object) -> Any:
        expected = []
        for each in checks:
            try:
                return each(value)
            except Unexpected as error:
                expected.append(error.expected)
        raise Unexpected(value, " or ".join(expected))

    return check


def sequence(check: Check, most: int, least: int = 0) -> Check:
    """A list or tuple whose length is within the limits, of values that `check` allows."""

    def check_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise Unexpected(value, f"a list of {f'{least:,} to ' if least != most else ''}{most:,} values")
        checked = []
        for position, each in enumerate(value):
            try:
                checked.append(check(each))
            except Unexpected as error:
                raise Unexpected(error.value, error.expected, f"[{position}]{error.within}") from None
        return tuple(checked)

    return check_all


def tree(check: Check, most: int, depth: int) -> Check:
    """Nested mappings and lists, of limited depth and number of values, of what `check` allows."""

    def copied(value: object, left: int, budget: list[int]) -> Any:
        budget[0] -= 1
        if left < 0 or budget[0] < 0:
            raise Unexpected(value, f"at most {most:,} values, nested at most {depth} deep")
        if isinstance(value, Mapping):
            return {text()(key): copied(each, left - 1, budget) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [copied(each, left - 1, budget) for each in value]
        return check(value)

    return lambda value: copied(value, depth, [most])


def figure(value: object) -> float:
    """Any number, NaN and infinity too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unexpected(value, "a number")
    return float(value)


def scalar(value: object) -> bool | int | float | str | None:
    """None, a truth value, a number or a literal text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    checked: str = literal()(value)
    return checked
