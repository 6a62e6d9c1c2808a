"""The partial file of a download and the version of the remote file that its bytes belong to."""

import json
import re
from dataclasses import asdict, dataclass
from http.client import HTTPResponse
from pathlib import Path

from graft.errors import DataError
from graft.system.files import write_atomically
from graft.system.http_client import strong_validator


@dataclass(frozen=True)
class RemoteVersion:
    """Version of a remote file; stored as JSON next to a partial file of it.

    Attributes:
        url: its address.
        validator: a strong ETag or an equivalent Last-Modified date; None if the server sends neither.
        total: its length in bytes; None if unknown.
    """

    url: str
    validator: str | None = None
    total: int | None = None

    @classmethod
    def of(cls, url: str, response: HTTPResponse) -> "RemoteVersion":
        return cls(url, strong_validator(response.headers), response.length)


@dataclass
class PartialFile:
    """The partial file of a download. The caller holds the lock of the target.

    Attributes:
        file: `.NAME.part` next to the target.
        version: of the remote file that its bytes come from.
        verifiable: a checksum will detect bytes of two versions in one file.
        size: the published length in bytes; None if unknown.
    """

    file: Path
    version: RemoteVersion
    verifiable: bool
    size: int | None

    @classmethod
    def open(cls, target: Path, url: str, *, verifiable: bool, size: int | None) -> "PartialFile":
        """Open the partial file that an earlier download of `url` left, or an empty one.

        Raises:
            DataError: its path is a link, a folder or another non-regular file.
        """
        file = target.with_name(f".{target.name}.part")
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise DataError(f"{file}: not a regular file; partial downloads go there.\nRemove it.")
        part = cls(file, RemoteVersion(url), verifiable, size)
        try:
            part.version = RemoteVersion(**json.loads(part._version_file.read_text()))
        except (OSError, ValueError, TypeError):
            part.version = RemoteVersion("")
        if part.version.url != url or (part.version.total or 0) < part.offset:
            part.discard()
            part.version = RemoteVersion(url)
        return part

    @property
    def _version_file(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    @property
    def offset(self) -> int:
        """Number of bytes downloaded so far."""
        return self.file.stat().st_size if self.file.is_file() else 0

    @property
    def resumable(self) -> bool:
        return self.offset > 0 and (self.version.validator is not None or self.verifiable)

    @property
    def complete(self) -> bool:
        """Whether all bytes are downloaded, judged by the length."""
        return self.resumable and self.offset == self.version.total

    def restart(self, version: RemoteVersion) -> None:
        """Remove the bytes downloaded so far and begin with those of `version`."""
        self.discard()
        self.version = version

    def save_version(self) -> None:
        """Write the version next to the file, so that a later process can resume."""
        write_atomically(self._version_file, json.dumps(asdict(self.version)).encode())

    def is_continued_by(self, response: HTTPResponse) -> bool:
        """Whether a partial response (206) has the next bytes of the same version."""
        span = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if span is None or self.version.total is None:
            return False
        first, last = int(span[1]), int(span[2])
        repeated = (response.headers.get("ETag"), response.headers.get("Last-Modified"))
        return (
            first == self.offset
            and first <= last < self.version.total
            and span[3] in ("*", str(self.version.total))
            and response.length in (None, last - first + 1)
            and (self.version.validator is None or self.version.validator in repeated)
        )

    def discard(self) -> None:
        """Remove the partial file and its version file; the names and the lock make sure that both are Graft's."""
        self.file.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)
