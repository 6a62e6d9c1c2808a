"""Errors whose messages the user reads without a stack trace, and suggestions of similar names for such messages."""

import difflib
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

DISTRIBUTION = "graft-vision"
"""The name under which pip and importlib.metadata know Graft."""


def pip_install(extra: str) -> str:
    """The command that installs one of Graft's optional dependencies, e.g. `pip install 'graft-vision[timm]'`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def similar(word: str, among: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names in `among` that are spelt most like `word`; those with the same letters in another order come first."""
    options = list(among)
    close = difflib.get_close_matches(word, options, n=max(1, len(options)), cutoff=cutoff)
    return sorted(close, key=lambda option: sorted(option) != sorted(word))[:most]


def did_you_mean(names: Iterable[str]) -> str:
    """Return " Did you mean vgg16 or vgg11?" for a message; an empty text without names."""
    listed = " or ".join(names)
    return f" Did you mean {listed}?" if listed else ""


def listed(names: Collection[str], most: int, *, counted: bool = True) -> str:
    """The first `most` names, and that there are more: "a, b and 3 more", or "a, b, …" if not `counted`."""
    first = ", ".join(itertools.islice(names, most))
    if len(names) <= most:
        return first
    return f"{first} and {len(names) - most:,} more" if counted else f"{first}, …"


def nearest(word: str, among: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """Return " Did you mean vgg16 or vgg11?" for a message; an empty text if none of `among` is similar."""
    return did_you_mean(similar(word, among, most=most, cutoff=cutoff))


class GraftError(Exception):
    """Base of all errors that the user can correct. The message names the thing, the reason and the way out."""


class AbortCommand(BaseException):
    """Carries an error to the user out of a Hydra callback, whose exceptions Hydra turns into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ConfigError(GraftError):
    """The configuration requests something impossible or unknown."""


class DataError(GraftError):
    """The data set is missing, empty or in a layout that its source does not expect."""


class UnreadableImage(DataError):
    """A file of the data set cannot be read as an image.

    Args:
        path: the file, or a description of where it is in an archive.
        kind: "empty", "no image", "truncated", "damaged", "too large", "missing", "refused",
            "not a regular file", or with another format than 8-bit RGB "channels" or "values".
        reason: details, e.g. "image file is truncated (12 bytes not processed)".
    """

    def __init__(self, path: Path | str, kind: str, reason: str) -> None:
        self.path, self.kind, self.reason = path, kind, reason
        super().__init__(f"{path}: cannot be read as an image ({reason}).\nRemove or replace it.")

    def __reduce__(self) -> tuple[type, tuple[Path | str, str, str]]:
        return type(self), (self.path, self.kind, self.reason)


class WeightsError(GraftError):
    """A weight file is unreadable or does not fit the network."""


class RecordError(GraftError):
    """A value recorded in a file has the wrong type or is out of range."""


class TrainingError(GraftError):
    """Training cannot continue, or cannot be resumed."""


class ExportError(GraftError):
    """An exported network does not compute what the original computes."""


class NotAvailable(GraftError):
    """A file is not on this machine and cannot be downloaded.

    Args:
        what: description of the file, e.g. "hymenoptera data" or "ImageNet weights of vgg16".
        url: its address.
        manual_path: the file or folder where the user can put it.
        reason: why it cannot be downloaded, e.g. "no network: Name or service not known".
    """

    def __init__(self, what: str, url: str, manual_path: str, reason: str) -> None:
        self.what, self.url, self.manual_path, self.reason = what, url, manual_path, reason
        super().__init__(
            f"{what}: not on this machine, and {url} cannot be downloaded ({reason}).\n"
            f"Download it elsewhere and put it at {manual_path}."
        )

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.what, self.url, self.manual_path, self.reason)
