"""The range of each number in the configuration, written next to its field in the schema."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from graft.errors import ConfigError

BOUNDS = "bounds"


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
) -> Any:
    """A field of a schema with the `Bounds` of its value; null, where its type allows it, is always within them."""
    bounds = Bounds(least, above, most, below, fraction, length, ascending, infinite)
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={BOUNDS: bounds})
    return dataclasses.field(default=default, metadata={BOUNDS: bounds})


def bounded_as(schema: type, name: str) -> Any:
    """A field that is null, or within the bounds that the field `name` of another schema has."""
    (field,) = (field for field in dataclasses.fields(schema) if field.name == name)
    return dataclasses.field(default=None, metadata=field.metadata)


def keys_of(schema: type, prefix: str = "") -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Each leaf of a schema: its dotted key, its type and the metadata of its field."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        node = next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        if isinstance(node, type):
            yield from keys_of(node, f"{key}.")
        else:
            yield key, hint, field.metadata


def check_bounds(config: Any, schema: type) -> None:
    """Refuse numbers outside of their bounds.

    Args:
        config: composed of `schema`.

    Raises:
        ConfigError: names the key, the value and the bounds.
    """
    from omegaconf import OmegaConf

    for key, _, metadata in keys_of(schema):
        bounds: Bounds | None = metadata.get(BOUNDS)
        if bounds is None:
            continue
        value = OmegaConf.select(config, key, throw_on_missing=False)
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


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, str | int | float) else f"[{','.join(map(str, value))}]"
