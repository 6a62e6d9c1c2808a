"""What a schema says of each key next to the key itself: its range, its words, whether it is literal text or open."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_type_hints

from omegaconf import MissingMandatoryValue

from graft.errors import ConfigError, nearest

BOUNDS, WORDS, LITERAL = "bounds", "words", "literal"


@dataclass(frozen=True)
class Bounds:
    """The numbers that a key may have; of a list or a mapping, those that each of its values may have.

    Attributes:
        least, above: the smallest number, and what it must exceed.
        most, below: the largest number, and what it must not reach.
        fraction: where the key takes both, the bounds of a float; the others are those of an integer.
        length: number of values in a list.
        ascending: whether the values of a list must not decrease.
        infinite: whether inf is allowed.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    fraction: "Bounds | None" = None
    length: int | None = None
    ascending: bool = False
    infinite: bool = False

    def contain(self, value: float) -> bool:
        return (
            (math.isfinite(value) or (self.infinite and value == math.inf))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "more than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(f"{word} {value:,}" for word, value in words.items() if value is not None) or "finite"


def bounded(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    fraction: Bounds | None = None,
    length: int | None = None,
    ascending: bool = False,
    infinite: bool = False,
    words: Sequence[str] = (),
) -> Any:
    """A field with the `Bounds` of its value, and the words that may stand for a number; null, where its type allows
    it, is always within them."""
    metadata = {BOUNDS: Bounds(least, above, most, below, fraction, length, ascending, infinite)}
    if words:
        metadata |= {WORDS: tuple(words)}  # type: ignore[dict-item]
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: Any, *words: str) -> Any:
    """A field whose text is one of `words`."""
    return dataclasses.field(default=default, metadata={WORDS: words})


def literal(default: Any) -> Any:
    """A field that holds a path or a name: its value on the command line is text, not an expression."""
    return dataclasses.field(default=default, metadata={LITERAL: True})


def same_range(schema: type, name: str) -> Any:
    """A field that is null, or within the range that the field `name` of another schema has."""
    (field,) = (field for field in dataclasses.fields(schema) if field.name == name)
    return dataclasses.field(default=None, metadata=field.metadata)


@dataclass
class Open:
    """A node that takes more keys than its fields, without `+` on the command line; they are attributes too."""

    def extra(self) -> dict[str, Any]:
        """The keys that are not fields of the schema."""
        known = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in vars(self).items() if name not in known}


@dataclass
class Part(Open):
    """A group whose option names with `_target_` what it builds; its other keys are the target's arguments.

    Attributes:
        own: names of the fields that Graft reads itself, which the target does not get.
    """

    own: ClassVar[tuple[str, ...]] = ()
    _target_: str | None = None

    def arguments(self) -> dict[str, Any]:
        """`_target_` and its arguments; those that are null are left to the target's defaults."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in self.own}


@dataclass
class Parts(Open):
    """A group of named parts: each extra key is a node with a `_target_`; null and false leave a part out."""

    @classmethod
    def of(cls, parts: Mapping[str, Mapping[str, Any]]) -> Self:
        """The group with these parts."""
        group = cls()
        vars(group).update(parts)
        return group

    def parts(self) -> dict[str, dict[str, Any]]:
        return {name: node for name, node in self.extra().items() if node not in (None, False)}


def keys_of(schema: type, prefix: str = "") -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Each leaf of a schema: its dotted key, its type and the metadata of its field."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        node = node_type(hint)
        if node is not None:
            yield from keys_of(node, f"{key}.")
        else:
            yield key, hint, field.metadata


def node_type(hint: Any) -> type | None:
    """The schema in a field's type; None for a leaf."""
    return next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)  # type: ignore[return-value]


def check_ranges(config: object, schema: type) -> None:
    """Refuse numbers outside of their bounds and words that a key does not know.

    Args:
        config: an instance of `schema`, or a DictConfig composed of it.

    Raises:
        ConfigError: names the key, the value and what it may be.
    """
    for key, _, metadata in keys_of(schema):
        value = _value(config, key)
        words: Sequence[str] = metadata.get(WORDS, ())
        if words and isinstance(value, str) and not (BOUNDS in metadata and value.isdecimal()):
            one_of(key, value, words)
        if (bounds := metadata.get(BOUNDS)) is not None:
            _check_numbers(key, value, bounds)


def _value(config: object, key: str) -> Any:
    for name in key.split("."):
        if config is None:
            return None
        try:
            config = getattr(config, name, None)
        except MissingMandatoryValue:
            return None
    return config


def _check_numbers(key: str, value: Any, bounds: Bounds) -> None:
    values: Sequence[Any] = (value,)
    if isinstance(value, Mapping):
        values = tuple(value.values())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        values = value
        if bounds.length not in (None, len(value)):
            raise ConfigError(f"{key}={_shown(value)}: must be a list of {bounds.length} numbers.")
        if bounds.ascending and list(value) != sorted(value):
            raise ConfigError(f"{key}={_shown(value)}: the smaller number comes first.")
    for number in values:
        chosen, kind = bounds, " if it is an integer"
        if bounds.fraction is None:
            kind = ""
        elif isinstance(number, float):
            chosen, kind = bounds.fraction, " if it is a fraction"
        if isinstance(number, int | float) and not isinstance(number, bool) and not chosen.contain(number):
            each = "must be" if number is value else "each number must be"
            raise ConfigError(f"{key}={_shown(value)}: {each} {chosen}{kind}.")


def one_of(key: str, value: str, options: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse `value` unless it is one of `options`; names the nearest."""
    options = list(options)
    if value in options:
        return
    hint = nearest(str(value), options, most=1, cutoff=0.4)
    raise ConfigError(f"{key}={value}: unknown.{hint} There are: {' '.join(options)}")


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, str | int | float) else f"[{','.join(map(str, value))}]"
