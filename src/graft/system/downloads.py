"""Downloads of files: resumed, verified, shared with other processes, and complete as soon as they have their name."""

import contextlib
import hashlib
import os
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Protocol

from graft.errors import DataError, NotAvailable
from graft.system import locks
from graft.system.files import explaining_write_errors
from graft.system.http_client import TRANSIENT, describe_error, open_url, retry_after
from graft.system.partial_file import PartialFile, RemoteVersion
from graft.system.transfer_progress import TransferProgress

CHUNK = 1 << 20
MIN_RATE = 1000
"""Bytes per second below which a transfer counts as stalled, averaged over three timeouts."""
PROGRESS = 64 << 10
"""A transfer that gets this number of bytes further resets the count of failed attempts."""
BACKOFF = 0.5
"""Seconds before the second attempt; doubled before each later one."""
MAX_WAIT = 60.0
"""Longest `Retry-After` in seconds; a longer one ends the download."""
MAX_BYTES = 8 << 30
"""Largest file that is downloaded; the largest weights of torchvision have 2.6 GB."""
MAX_UNANNOUNCED = 256 << 20
"""Largest file that is downloaded if neither the server nor the caller knows its size."""


class DownloadOptions(Protocol):
    """The configuration group `download`."""

    timeout: float
    attempts: int


@dataclass
class _Settings:
    timeout: float = 10.0
    attempts: int = 5


_settings = _Settings()


def configure(options: DownloadOptions) -> None:
    """Set the timeout and the number of attempts of all later downloads of this process."""
    _settings.timeout, _settings.attempts = options.timeout, options.attempts


def timeout() -> float:
    """`download.timeout`, in seconds."""
    return _settings.timeout


def attempts() -> int:
    """`download.attempts`."""
    return _settings.attempts


def download(
    url: str,
    target: Path,
    *,
    what: str,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    manual_path: str | None = None,
    quiet: bool = False,
) -> Path:
    """Download `url` to `target` unless that exists; concurrent processes share one transfer.

    The bytes go to a hidden partial file next to `target`. An interrupted transfer is resumed, also by a later call, if
    the server confirms that the file has not changed; otherwise it restarts. The file gets its name after its length
    and checksum are verified and it is synced to disk.

    Args:
        url: http or https.
        target: path of the file; its folder is created.
        what: description of the file for messages, e.g. "hymenoptera data".
        sha256, md5: published checksums in hex, or None; the first digits of the SHA-256 are enough.
        size: published length in bytes; None if unknown.
        manual_path: where the user can put the file, for the error message; None: `target`.
        quiet: show no progress.

    Raises:
        NotAvailable: unreachable, or the transfer fails repeatedly.
        DataError: the checksum is wrong (the file is removed), or `target` cannot be written.
    """
    manual_path = manual_path or str(target.absolute())
    with explaining_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if target.is_file():
            return target
        with explaining_write_errors(target):
            part = PartialFile.open(target, url, verifiable=bool(sha256 or md5), size=size)
            resumed = part.offset > 0
            _transfer(part, what, manual_path, quiet)
            if resumed and not _matches(part.file, sha256, md5):  # the first bytes may belong to another version
                part.discard()
                _transfer(part, what, manual_path, quiet)
            if not _matches(part.file, sha256, md5):
                part.discard()
                raise DataError(
                    f"{url}: its checksum is not the published one; the file was removed.\n"
                    f"Try again, or download {what} elsewhere and put it at {manual_path}."
                )
            part.file.replace(target)
            part.discard()
    return target


def require_reachable(url: str, *, what: str, manual_path: str) -> None:
    """Raise NotAvailable within `download.timeout` seconds if the server does not have `url`.

    Some servers refuse HEAD, so a GET, closed before its content arrives, decides.
    """
    deadline = time.monotonic() + _settings.timeout
    with contextlib.suppress(OSError, HTTPException, ValueError):
        open_url(urllib.request.Request(url, method="HEAD"), _settings.timeout / 2).close()
        return
    try:
        open_url(urllib.request.Request(url, headers={"Range": "bytes=0-0"}), deadline - time.monotonic()).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in TRANSIENT:  # an overloaded server exists; the transfer waits for it
            raise NotAvailable(what, url, manual_path, describe_error(error)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise NotAvailable(what, url, manual_path, describe_error(error)) from error


def read(
    url: str,
    *,
    what: str,
    manual_path: str,
    start: int = 0,
    size: int | None = None,
    most: int = MAX_UNANNOUNCED,
) -> bytes:
    """Read `url`, or `size` bytes of it from `start` on, into memory.

    Args:
        url: http or https.
        what: description of the file for messages.
        manual_path: where the user can put the file, for the error message.
        start: offset of the first byte.
        size: number of bytes; None: all.
        most: largest number of bytes that is read.

    Raises:
        NotAvailable: unreachable, or the transfer fails repeatedly.
        DataError: the server ignores byte ranges, or sends fewer or too many bytes.
    """
    for attempt in range(1, _settings.attempts + 1):
        wait = None
        try:
            return _read_once(url, start, size, most)
        except urllib.error.HTTPError as error:
            error.close()
            reason, cause = describe_error(error), error
            wait = retry_after(error.headers)
            if error.code not in TRANSIENT or (wait or 0) > MAX_WAIT:
                break
        except (OSError, HTTPException, ValueError) as error:
            reason, cause = describe_error(error), error  # type: ignore[assignment]
        if attempt < _settings.attempts:
            time.sleep(BACKOFF * 2 ** (attempt - 1) if wait is None else wait)
    raise NotAvailable(what, url, manual_path, reason) from cause


def _read_once(url: str, start: int, size: int | None, most: int) -> bytes:
    headers = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    with open_url(urllib.request.Request(url, headers=headers), _settings.timeout) as response:
        if size is not None and response.status != 206 and start:
            raise DataError(
                f"{url}: the server sends the whole file where a byte range is requested.\n"
                "Use another server, or download the files."
            )
        content = response.read(most + 1 if size is None else size)
    if size is not None and len(content) < size:
        raise DataError(f"{url}: ends at byte {start + len(content):,}, before {start + size:,}: it is truncated.")
    if len(content) > most:
        raise DataError(f"{url}: more than {most:,} bytes.")
    return content


def verify(file: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Raise DataError if an existing file has the wrong checksum; the file is kept."""
    if not _matches(file, sha256, md5):
        raise DataError(f"{file}: damaged, or another file (wrong checksum).\nRemove it, or download it again.")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a hidden file next to it; prints a note if another process holds it."""

    def report(holder: str) -> None:
        print(f"waiting for {holder}, which is downloading {path.name} …", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        with explaining_write_errors(path):
            stack.enter_context(locks.locked(path.with_name(f".{path.name}.lock"), report))
        yield


class _AttemptFailed(Exception):
    """A failed attempt of a transfer.

    Args:
        reason: why, in a few words.
        transient: whether another attempt may succeed.
        answered: whether the server responded.
        wait: seconds to wait, as the server requests; None without a request.
    """

    def __init__(
        self, reason: str, *, transient: bool = True, answered: bool = True, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.transient, self.answered, self.wait = transient, answered, wait


def _transfer(part: PartialFile, what: str, manual_path: str, quiet: bool) -> None:
    """Download the missing bytes of `part`, in several attempts if the server has responded at all."""
    url, failures, answered, furthest = part.version.url, 0, False, part.offset
    with TransferProgress(what, url, quiet) as meter:
        while not part.complete:
            try:
                if _attempt(part, meter):
                    return
                failed = _AttemptFailed("the connection broke")
            except _AttemptFailed as error:
                failed = error
            answered = answered or failed.answered
            failures += 1
            if part.offset - furthest >= PROGRESS:
                failures, furthest = 1, part.offset
            if not (failed.transient and answered):
                raise NotAvailable(what, url, manual_path, str(failed)) from failed.__cause__
            if failures >= _settings.attempts:
                again = "; run again to resume" if part.resumable else ""
                raise NotAvailable(
                    what, url, manual_path, f"{failed}, in {failures} attempts{again}"
                ) from failed.__cause__
            wait = BACKOFF * 2 ** (failures - 1) if failed.wait is None else failed.wait
            if wait >= 5:
                print(f"{what}: {failed}; next attempt in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)


def _attempt(part: PartialFile, meter: "TransferProgress") -> bool:
    """Request the missing bytes once; returns whether `part` is complete."""
    headers = {}
    if part.resumable:
        headers["Range"] = f"bytes={part.offset}-"
        if part.version.validator is not None:
            headers["If-Range"] = part.version.validator
    try:
        response = open_url(urllib.request.Request(part.version.url, headers=headers), _settings.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            part.discard()
            raise _AttemptFailed("the file has changed on the server") from error
        wait = retry_after(error.headers)
        patient = wait is None or wait <= MAX_WAIT
        reason = describe_error(error) + ("" if patient else f", which asks to try again in {wait:.0f} s")
        raise _AttemptFailed(reason, transient=error.code in TRANSIENT and patient, wait=wait) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _AttemptFailed(describe_error(error), answered=isinstance(error, HTTPException)) from error
    with response:
        if response.status == 206 and headers:
            if not part.is_continued_by(response):
                part.discard()
                raise _AttemptFailed("the server resumes with another part, or another version, of the file")
        elif response.status == 200:
            part.restart(RemoteVersion.of(part.version.url, response))
        else:
            raise _AttemptFailed(f"unexpected response HTTP {response.status}", transient=False)
        limit = _limit(part, response)
        part.save_version()
        meter.begin(part.offset, part.version.total)
        with part.file.open("ab") as file:
            ended = _copy(response, file, meter, limit)
            file.flush()
            os.fsync(file.fileno())
        if part.offset > limit:
            part.discard()
            raise _AttemptFailed(f"the server sends more than {limit:,} bytes", transient=False)
        return ended and part.offset == (part.version.total or part.size or part.offset)


def _limit(part: PartialFile, response: HTTPResponse) -> int:
    """Largest number of bytes that the file may have.

    Raises:
        _AttemptFailed: the server announces another length than the published one, too many bytes, or no length.
        DataError: the disk has too little space.
    """
    total = part.version.total
    if total is not None and part.size not in (None, total):
        reason = f"the server has {total:,} bytes at this address, but {part.size:,} are published"
        raise _AttemptFailed(reason, transient=False)
    if total is not None and total > MAX_BYTES:
        raise _AttemptFailed(f"{total:,} bytes are announced, more than the {MAX_BYTES:,} allowed", transient=False)
    if total is None and response.headers.get("Transfer-Encoding") is None and not part.verifiable:
        reason = "the server does not announce the length, so that a broken transfer would go unnoticed"
        raise _AttemptFailed(reason, transient=False)
    free = shutil.disk_usage(part.file.parent).free
    if (total or 0) - part.offset > free:
        raise DataError(
            f"{part.file.parent}: {total or 0:,} bytes do not fit, {free:,} are free.\n"
            "Make room, or use another folder."
        )
    return total or part.size or MAX_UNANNOUNCED


def _copy(response: HTTPResponse, file: IO[bytes], meter: "TransferProgress", limit: int) -> bool:
    """Append the response to `file`, at most one chunk more than `limit`; returns False if the connection breaks.

    Raises:
        _AttemptFailed: slower than MIN_RATE.
    """
    with _minimum_rate(response, lambda: meter.received) as stalled:
        while file.tell() <= limit:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException):
                chunk = None
            if stalled.is_set():
                raise _AttemptFailed(f"slower than {MIN_RATE:,} bytes per second")
            if not chunk:
                return chunk is not None
            file.write(chunk)
            meter.advance(len(chunk))
    return False


@contextlib.contextmanager
def _minimum_rate(response: HTTPResponse, received: Callable[[], int]) -> Iterator[threading.Event]:
    """Shut down the connection if `received` grows too slowly in the block; yields an event that is set then.

    A socket's own timeout restarts with each byte, also within a chunk header, where this module's code is not called.
    """
    window = 3 * _settings.timeout
    stalled, done = threading.Event(), threading.Event()

    def watch(connection: socket.socket) -> None:
        before = received()
        while not done.wait(window):
            if received() - before < MIN_RATE * window:
                stalled.set()
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                return
            before = received()

    with socket.fromfd(response.fileno(), socket.AF_INET, socket.SOCK_STREAM) as connection:
        watcher = threading.Thread(target=watch, args=(connection,), daemon=True)
        watcher.start()
        try:
            yield stalled
        finally:
            done.set()
            watcher.join()


def _matches(file: Path, sha256: str | None, md5: str | None) -> bool:
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with file.open("rb") as content:
                if not hashlib.file_digest(content, name).hexdigest().startswith(expected.lower()):
                    return False
    return True
