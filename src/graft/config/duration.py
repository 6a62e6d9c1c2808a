"""Durations in a configuration: HH:MM:SS, or DD:HH:MM:SS."""

import re

from graft.errors import ConfigError

SECONDS = (86_400, 3600, 60, 1)


def seconds_of(key: str, value: str) -> int:
    """The seconds of a duration, e.g. 1800 of "00:30:00".

    Raises:
        ConfigError: of another form, or 0; names the key.
    """
    if not re.fullmatch(r"(\d+:)?\d+:[0-5]?\d:[0-5]?\d", value):
        raise ConfigError(f"{key}={value}: must be HH:MM:SS or DD:HH:MM:SS, e.g. {key}=00:30:00 for half an hour.")
    parts = [int(part) for part in value.split(":")]
    seconds = sum(part * unit for part, unit in zip(parts, SECONDS[-len(parts) :], strict=True))
    if not seconds:
        raise ConfigError(f"{key}={value}: nothing to train; give at least one second.")
    return seconds
