"""Metadata of schema fields: range, allowed words, literal text, and nodes that accept further keys."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_type_hints

from omegaconf import MissingMandatoryValue

from graft.errors import ConfigError, nearest

BOUNDS, WORDS, LITERAL, LISTED = "bounds", "words", "literal", "listed"


@dataclass(frozen=True)
class Bounds:
    """Range of a number, or of each number in a list or a mapping.

    Attributes:
        least, above: inclusive and exclusive lower bound.
        most, below: inclusive and exclusive upper bound.
        fraction: range of a float, if the key takes integers and fractions; the other bounds are those of an integer.
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
    """A field with a range, and words allowed instead of a number; null is in the range if the type allows it."""
    metadata = {BOUNDS: Bounds(least, above, most, below, fraction, length, ascending, infinite)}
    if words:
        metadata |= {WORDS: tuple(words)}  # type: ignore[dict-item]
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: Any, *words: str) -> Any:
    """A field whose value is one of `words`."""
    return dataclasses.field(default=default, metadata={WORDS: words})


def literal(default: Any, *, listed: bool = False) -> Any:
    """A field for a path or a name, whose value on the command line is text and not parsed by Hydra.

    Args:
        default: of the field.
        listed: whether a list, [A,B], of such texts is possible, too.
    """
    return dataclasses.field(default=default, metadata={LITERAL: True, **({LISTED: True} if listed else {})})


def same_range(schema: type, name: str) -> Any:
    """An optional field with the range of the field `name` of another schema."""
    (field,) = (field for field in dataclasses.fields(schema) if field.name == name)
    return dataclasses.field(default=None, metadata=field.metadata)


@dataclass
class Open:
    """A node that accepts keys besides its fields, without `+` on the command line; they become attributes too."""

    def extra(self) -> dict[str, Any]:
        """The keys that are not fields of the schema."""
        known = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in vars(self).items() if name not in known}


@dataclass
class Part(Open):
    """A group whose option names the class or function to build with `_target_`; its other keys are the arguments.

    Attributes:
        own: names of the fields that Graft reads itself and does not pass to the target.
    """

    own: ClassVar[tuple[str, ...]] = ()
    _target_: str | None = None

    def arguments(self) -> dict[str, Any]:
        """`_target_` and its arguments without null values, for which the target's defaults are used."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in self.own}


@dataclass
class Parts(Open):
    """A group of named parts: each extra key is a node with a `_target_`; null and false remove a part.

    Attributes:
        own: names of the keys of a node that Graft reads itself and does not pass to the target.
    """

    own: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, parts: Mapping[str, Mapping[str, Any]]) -> Self:
        """The group with these parts."""
        group = cls()
        vars(group).update(parts)
        return group

    def parts(self) -> dict[str, dict[str, Any]]:
        """Name -> the node of each part."""
        return {name: node for name, node in self.extra().items() if node not in (None, False)}

    def arguments(self) -> dict[str, dict[str, Any]]:
        """Name -> `_target_` and its arguments, of each part."""
        return {
            name: {key: value for key, value in node.items() if key not in self.own}
            for name, node in self.parts().items()
        }


def keys_of(schema: type, prefix: str = "") -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Yield (dotted key, type, metadata of the field) of each leaf of a schema."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        node = node_type(hint)
        if node is not None:
            yield from keys_of(node, f"{key}.")
        else:
            yield key, hint, field.metadata


def node_type(hint: Any) -> type | None:
    """The dataclass in the type of a field; None for a leaf."""
    return next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)  # type: ignore[return-value]


def check_ranges(config: object, schema: type) -> None:
    """Refuse numbers out of range and words that a key does not allow.

    Args:
        config: an instance of `schema`, or a DictConfig composed of it.

    Raises:
        ConfigError: names the key, the value and the allowed values.
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
            raise ConfigError(f"{key}={_shown(value)}: must be in ascending order.")
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
    """Refuse `value` unless it is one of `options`; the error suggests the nearest."""
    options = list(options)
    if value in options:
        return
    hint = nearest(str(value), options, most=1, cutoff=0.4)
    raise ConfigError(f"{key}={value}: unknown.{hint} There are: {' '.join(options)}")


def _shown(value: Any) -> str:
    """`value` as written on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, str | int | float) else f"[{','.join(map(str, value))}]"
