"""Where the files of a packed data set are: a folder, an HTTP server, or a bucket of S3."""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from graft.errors import ConfigError, DataError, GraftError, NotAvailable, pip_install
from graft.system import downloads
from graft.system.files import explaining_write_errors, sha256, writing_atomically

T = TypeVar("T")

REMOTE = re.compile(r"(https?|s3):/+(.+)")
"""An address; `Path` has merged the slashes after its scheme."""

MAX_SMALL = 1 << 28
"""Largest file that is read into memory at once, in bytes."""

CHUNK = 1 << 20
CONNECTIONS = 16
"""Number of single images, or of shards, that each process reads over the network at once."""

MANUAL = "a folder, together with the other files, and set data.root=FOLDER"


def remote_address(root: Path) -> str | None:
    """The address that data.root is, without a slash at its end; None for a folder."""
    found = REMOTE.fullmatch(str(root))
    return None if found is None else f"{found[1]}://{found[2].rstrip('/')}"


def open_store(root: Path) -> "Store":
    """The store at a folder or an address.

    Raises:
        ConfigError: S3, and boto3 is not installed; or an address without a bucket.
    """
    address = remote_address(root)
    if address is None:
        return FolderStore(root)
    return S3Store(address) if address.startswith("s3:") else HttpStore(address)


class Store(ABC):
    """The files of a packed data set, by name.

    Attributes:
        address: of the folder, for messages.
    """

    address: str

    def url(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.address}/{name}"

    @abstractmethod
    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes of a file from `start` on, or all of it.

        Raises:
            DataError: it does not exist, or ends before.
            NotAvailable: it cannot be reached.
        """

    def require(self, name: str) -> None:
        """Raise NotAvailable, within `download.timeout` seconds, unless a file can be reached."""
        self.read(name, 0, 1)

    @abstractmethod
    def fetch(self, name: str, target: Path, size: int, digest: str) -> None:
        """Copy a file of a remote store to `target`, whose folder exists.

        Args:
            name: of the file.
            target: gets its name when its SHA-256 is `digest`.
            size: of the file in bytes.
            digest: SHA-256 in hex.

        Raises:
            DataError: another size or checksum; names the file.
            NotAvailable: it cannot be reached.
        """


class PerProcess(Generic[T]):
    """An object that each process makes for itself when it first needs it, such as one with connections or threads.

    Args:
        make: makes the object.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        """The object of this process."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._make()
        return self._made[1]

    def __reduce__(self) -> "tuple[type[PerProcess[T]], tuple[Callable[[], T]]]":
        return PerProcess, (self._make,)


def new_client() -> Any:
    """A client of S3, which threads can share."""
    import boto3
    from botocore.config import Config

    timeout = downloads.timeout()
    retries: Any = {"mode": "standard", "total_max_attempts": downloads.attempts()}
    config = Config(connect_timeout=timeout, read_timeout=timeout, retries=retries, max_pool_connections=CONNECTIONS)
    return boto3.session.Session().client("s3", config=config)


class FolderStore(Store):
    """A folder of this machine or of a network file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                content = file.read() if size is None else file.read(size)
        except OSError as error:
            raise DataError(f"{self.url(name)}: cannot be read ({error.strerror}).") from error
        return complete(content, self.url(name), start, size)

    def fetch(self, name: str, target: Path, size: int, digest: str) -> None:
        raise NotImplementedError("the files of a folder are read where they are")


class HttpStore(Store):
    """A folder of an HTTP server that answers requests of byte ranges."""

    def __init__(self, address: str) -> None:
        self.address = address

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        url = f"{self.address}/{quote(name)}"
        return downloads.read(url, what=f"data set {name}", manual_path=MANUAL, start=start, size=size, most=MAX_SMALL)

    def require(self, name: str) -> None:
        url = f"{self.address}/{quote(name)}"
        downloads.require_reachable(url, what=f"data set {name}", manual_path=MANUAL)

    def fetch(self, name: str, target: Path, size: int, digest: str) -> None:
        downloads.download(
            f"{self.address}/{quote(name)}",
            target,
            what=f"data set {name}",
            sha256=digest,
            size=size,
            manual_path=MANUAL,
            quiet=True,
        )


class S3Store(Store):
    """A prefix of a bucket of Amazon S3, or of another server of its protocol (AWS_ENDPOINT_URL).

    Credentials, region and endpoint are found as boto3 finds them: in the environment, in ~/.aws, or from the role of
    the machine.
    """

    def __init__(self, address: str) -> None:
        try:
            import boto3  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"data.root={address}: needs boto3, which is not installed: {pip_install('s3')}"
            ) from error
        self.address = address
        self.bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._client = PerProcess(new_client)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        span = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        content = self._retried(name, lambda: self._object(name, **span).read(MAX_SMALL if size is None else size))
        return complete(content, self.url(name), start, size)

    def fetch(self, name: str, target: Path, size: int, digest: str) -> None:
        with explaining_write_errors(target), writing_atomically(target) as file:

            def copy() -> int:
                file.seek(0)
                file.truncate()
                for chunk in self._object(name).iter_chunks(CHUNK):
                    if file.tell() <= size:
                        file.write(chunk)
                return file.tell()

            received = self._retried(name, copy)
            file.flush()
            if received != size or sha256(Path(file.name)) != digest:
                raise DataError(
                    f"{self.url(name)}: its checksum is not that of the index ({received:,} of {size:,} bytes).\n"
                    "Copy the packed data set there again."
                )

    def _retried(self, name: str, action: Callable[[], T]) -> T:
        """The result of `action`, repeated where a connection breaks while an object is received.

        Raises:
            NotAvailable: it breaks each time.
        """
        for attempt in range(1, downloads.attempts() + 1):
            try:
                return action()
            except (GraftError, OSError):
                raise
            except Exception as error:  # botocore's own and urllib3's
                failure = error
            if attempt < downloads.attempts():
                time.sleep(downloads.BACKOFF * 2 ** (attempt - 1))
        raise self._not_available(name, failure) from failure

    def _object(self, name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._client.get().get_object(Bucket=self.bucket, Key=f"{self.prefix}{name}", **arguments)["Body"]
        except (ClientError, BotoCoreError, ValueError) as error:
            raise self._not_available(name, error) from error

    def _not_available(self, name: str, error: Exception) -> NotAvailable:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return NotAvailable(f"data set {name}", self.url(name), MANUAL, reason)


def complete(content: bytes, url: str, start: int, size: int | None) -> bytes:
    """`content`; raises DataError if it has fewer than `size` bytes."""
    if size is not None and len(content) < size:
        raise DataError(f"{url}: ends at byte {start + len(content):,}, before {start + size:,}: it is truncated.")
    return content
