"""Names of the classes of weights that do not contain them, as `model.classes` gives them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from graft.errors import ConfigError
from graft.system.files import read_regular

KEY = "model.classes"
LARGEST = 2**24
"""Maximum bytes of a file of names."""


def class_names(value: object) -> tuple[str, ...] | None:
    """The names in `model.classes`, by class index; None for null.

    Args:
        value: a list of names, or the path of a file: text with one name per line, a JSON array of names, or a JSON
            object with such an array under "classes", as `graft export` writes it.

    Raises:
        ConfigError: no such file, no names in it, or a name that is empty or occurs twice.
    """
    if value is None:
        return None
    if not isinstance(value, str | Sequence):
        raise ConfigError(f"{KEY}={value}: must be a list of names, or a file with one name per line.")
    names = _names_in_file(value) if isinstance(value, str) else [str(name) for name in value]
    shown = f"{KEY}={value}" if isinstance(value, str) else KEY
    if not names:
        raise ConfigError(f"{shown}: has no names. Give a list, e.g. {KEY}=[ants,bees], or a file with one per line.")
    for index, name in enumerate(names):
        if not name:
            raise ConfigError(f"{shown}: the name of class {index} is empty.")
        if name in names[:index]:
            raise ConfigError(f"{shown}: classes {names.index(name)} and {index} are both called {name!r}.")
    return tuple(names)


def _names_in_file(value: str) -> list[str]:
    file = Path(value).expanduser()
    try:
        text = read_regular(file, LARGEST).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{KEY}={value}: no readable file of names ({error}).\nGive a list, e.g. {KEY}=[ants,bees], or a file with "
            "one name per line."
        ) from error
    if file.suffix.lower() != ".json":
        return [line.strip() for line in text.strip().splitlines()]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{KEY}={value}: not valid JSON ({error}).") from error
    names = content.get("classes") if isinstance(content, Mapping) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'{KEY}={value}: must be a JSON array of names, or an object with one under "classes".')
    return names
