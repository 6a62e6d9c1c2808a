"""A network as plain values: what a configuration describes and a checkpoint contains. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from graft.data.image_format import MOST_CHANNELS
from graft.data.preprocessing import LARGEST_INPUT
from graft.errors import ConfigError, RecordError, nearest
from graft.models.configurations import CLASSIFIERS, M
from graft.system.values import (
    Check,
    UnexpectedValue,
    among,
    either,
    flag,
    integer,
    line,
    mapping,
    number,
    optional,
    read_values,
    scalar,
    sequence,
    tree,
)

MOST_VALUES = 1_000
DEEPEST_VALUE = 8


def dotted_path(value: object) -> str:
    """The dotted path of a class or function, e.g. "my_package.Net"."""
    path: str = line(200)(value)
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UnexpectedValue(value, "the dotted path of a class or function, e.g. my_package.Net")
    return path


def arguments(value: object) -> dict[str, Any]:
    """Arguments by name: numbers, texts, true, false and null, in lists and mappings of limited size."""
    checked = {}
    for name, each in mapping(value).items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise UnexpectedValue(name, "the name of an argument", f".{ascii(str(name)[:80])[1:-1]}")
        try:
            checked[name] = tree(_plain_value, MOST_VALUES, DEEPEST_VALUE)(each)
        except UnexpectedValue as error:
            raise UnexpectedValue(error.value, error.expected, f".{name}{error.within}") from None
        _refuse_targets(checked[name], f".{name}")
    return checked


def _plain_value(value: object) -> bool | int | float | str | None:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise UnexpectedValue(value, "numbers, texts, true, false and null, in lists and mappings")
    return scalar(value)


def _refuse_targets(value: object, within: str) -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        if key == "_target_":
            raise UnexpectedValue(value, "plain values; build a part of the network inside its own class", within)
        _refuse_targets(each, f"{within}.{key}")


RECORDED: dict[str, Check] = {
    "name": line(200),
    "table": optional(sequence(either(integer(1, 65_536), among(M)), 1000, least=1)),
    "batch_norm": optional(flag),
    "classifier": optional(among(*CLASSIFIERS)),
    "dropout": optional(number(0, 1)),
    "input_size": optional(integer(1, LARGEST_INPUT)),
    "average_pool": optional(integer(0, 64)),
    "hidden": optional(integer(1, 65_536)),
    "family": optional(among("timm")),
    "target": optional(dotted_path),
    "arguments": optional(arguments),
    "channels": optional(integer(1, MOST_CHANNELS)),
}
"""The values that a recipe in a file may have; a recipe of the user's own configuration has no such limits."""


@dataclass(frozen=True)
class Recipe:
    """The name of a network and the options that change it; None leaves the named network as it is.

    Attributes:
        name: one of `graft.models.families.known_models()`, or any name when `table` is given (a custom VGG) or
            `target`; with family="timm" one of timm's, with or without the tag of its weights ("resnet50",
            "resnet50.a1_in1k").
        table: convolutions (channels) and pools ("M") of a VGG, from input to output.
        batch_norm: BatchNorm after every convolution of a VGG.
        classifier: of a VGG: "vgg" (three linear layers), "linear" (one on the flattened features)
            or "pooled" (average pool, BatchNorm, one linear layer).
        dropout: probability of the dropout layers, in [0, 1).
        input_size: side of the square image, in pixels.
        average_pool: side of the adaptive average pool before a VGG's classifier; 0 is none.
        hidden: width of the two hidden linear layers of classifier="vgg".
        family: "timm" for a name of timm's; None for all others.
        target: dotted path of the class or function that makes a custom network; None for all others.
        arguments: what `target` is called with besides the number of classes, as plain values.
        channels: of the images; None is 3.

    Raises:
        ConfigError: `target` or `arguments` of another type.
    """

    name: str
    table: tuple[int | str, ...] | None = None
    batch_norm: bool | None = None
    classifier: str | None = None
    dropout: float | None = None
    input_size: int | None = None
    average_pool: int | None = None
    hidden: int | None = None
    family: str | None = None
    target: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.table is not None:
            object.__setattr__(self, "table", tuple(self.table))
        if self.channels == 3:
            object.__setattr__(self, "channels", None)
        if self.family not in (None, "timm"):
            raise ConfigError(f'model.family="{self.family}": must be timm, or null for all other networks.')
        try:
            if self.target is not None:
                dotted_path(self.target)
            object.__setattr__(self, "arguments", arguments(self.arguments or {}))
        except UnexpectedValue as error:
            key = error.within or "._target_"
            raise ConfigError(f"model{key}={_shown(error.value)}: refused. Expected: {error.expected}.") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for a checkpoint, a summary or a JSON file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """The inverse of `to_dict`; missing keys have their defaults, as in checkpoints of older versions.

        Args:
            values: as a file contains them.
            source: the file, for messages.

        Raises:
            ConfigError: a key that no recipe has; names the nearest.
            RecordError: no name, or a value of another type or beyond its limit.
        """
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                shown = ascii(str(key)[:80])[1:-1]
                raise ConfigError(f"model.{shown}: no such key.{nearest(shown, names)} There are {', '.join(names)}.")
        checked = read_values(values, RECORDED, source, "recipe")
        if "name" not in checked:
            raise RecordError(f"{source}: recipe has no name.")
        return cls(**checked)


def _shown(value: object) -> str:
    return ascii(value)[:80] if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
