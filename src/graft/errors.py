"""What a user is told when something cannot be done: a plain sentence, never a stack trace."""

import difflib
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "graft-vision"
"""The name under which pip and importlib.metadata know Graft."""


def pip_install(extra: str) -> str:
    """The command that installs one of Graft's optional dependencies, e.g. `pip install 'graft-vision[timm]'`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def similar(word: str, among: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Those of `among` that are spelt most like `word`, those with the same letters in another order first."""
    options = list(among)
    close = difflib.get_close_matches(word, options, n=max(1, len(options)), cutoff=cutoff)
    return sorted(close, key=lambda option: sorted(option) != sorted(word))[:most]


def did_you_mean(names: Iterable[str]) -> str:
    """Return " Did you mean vgg16 or vgg11?" for a message; an empty text without names."""
    listed = " or ".join(names)
    return f" Did you mean {listed}?" if listed else ""


def nearest(word: str, among: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """Return " Did you mean vgg16 or vgg11?" for a message; an empty text where none of `among` is similar."""
    return did_you_mean(similar(word, among, most=most, cutoff=cutoff))


class GraftError(Exception):
    """A mistake the user can mend. The message names the thing, the reason and the way out."""


class Refused(BaseException):
    """Carries an error to the user through code that turns exceptions into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ConfigError(GraftError):
    """The configuration asks for something impossible or unknown."""


class DataError(GraftError):
    """The data set is missing, empty or not as its source expects."""


class UnreadableImage(DataError):
    """A file of the data set that is no picture, or no longer.

    Args:
        path: the file.
        kind: "empty", "no image", "truncated", "damaged", "too large", "missing", "refused" or
            "not a regular file".
        reason: the same in more words, e.g. "image file is truncated (12 bytes not processed)".
    """

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        self.path, self.kind, self.reason = path, kind, reason
        super().__init__(f"{path}: cannot be read as an image ({reason}).\nRemove or replace it.")

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        return type(self), (self.path, self.kind, self.reason)


class WeightsError(GraftError):
    """A weight file is unreadable or does not fit the network."""


class RecordError(GraftError):
    """A file says of itself what it cannot be: a value of another type, or beyond its limit."""


class TrainingError(GraftError):
    """Training cannot go on, or cannot be taken up again."""


class ExportError(GraftError):
    """A network handed over is not the one that was to be handed over."""


class NotAvailable(GraftError):
    """Something that would be downloaded is neither here nor within reach.

    Args:
        what: the thing, e.g. "hymenoptera data" or "ImageNet weights of vgg16".
        url: its address.
        place: the file or folder where it belongs when fetched by hand.
        reason: why it could not be fetched, e.g. "no network: Name or service not known".
    """

    def __init__(self, what: str, url: str, place: str, reason: str) -> None:
        self.what, self.url, self.place, self.reason = what, url, place, reason
        super().__init__(
            f"{what}: not on this machine, and {url} cannot be fetched ({reason}).\nPut it by hand at {place}."
        )

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.what, self.url, self.place, self.reason)
