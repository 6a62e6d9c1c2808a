"""Fetching files: resumed, checked, locked against a second process, never half there under their name."""

import contextlib
import hashlib
import math
import os
import queue
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from graft import locks
from graft.errors import DataError, NotAvailable
from graft.files import telling_write_errors

CHUNK = 1 << 20
ATTEMPTS = 5
"""How often a transfer is taken up again without having come further in between."""


def download(
    url: str,
    target: Path,
    *,
    what: str,
    sha256: str | None = None,
    md5: str | None = None,
    timeout: float = 5.0,
    place: str | None = None,
) -> Path:
    """Fetch `url` into `target`, unless it is there already; two processes share one transfer.

    The bytes go to `target.part` beside it; a broken transfer is resumed, also by a later call, or begun
    anew where the server cannot resume. The file gets its name when it is whole, checked and synced to disk.

    Args:
        url: http or https.
        target: the file; its folder is made.
        what: the thing in the user's words, e.g. "hymenoptera data".
        sha256, md5: hex, where the publisher's checksum is known; of SHA-256 its first digits will do.
        timeout: seconds to connect, and to wait for the next bytes.
        place: where it may be put by hand, for the error message; None: `target`.

    Raises:
        NotAvailable: unreachable, or it breaks off again and again.
        DataError: what arrives has another checksum (it is removed), or `target` cannot be written.
    """
    place = place or str(target.absolute())
    with telling_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if target.is_file():
            return target
        part = target.with_name(f"{target.name}.part")
        resumed = _size(part) > 0
        with telling_write_errors(target):
            _transfer(url, part, what=what, place=place, timeout=timeout)
            if resumed and not _matches(part, sha256, md5):  # the beginning may be of another file: once more, whole
                part.unlink()
                _transfer(url, part, what=what, place=place, timeout=timeout)
        if not _matches(part, sha256, md5):
            part.unlink()
            raise DataError(
                f"{url}: what arrived has not the checksum that its publisher gives, and was removed.\n"
                f"Try again, or put {what} by hand at {place}."
            )
        with telling_write_errors(target):
            part.replace(target)
    return target


def require_reachable(url: str, *, what: str, place: str, timeout: float = 5.0) -> None:
    """Raise NotAvailable, within `timeout` seconds, unless the server answers for `url`."""
    try:
        _open(urllib.request.Request(url, method="HEAD"), timeout).close()
    except urllib.error.HTTPError as error:
        if error.code not in (405, 501):  # a server that knows no HEAD, but is there
            raise NotAvailable(what, url, place, _reason(error)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise NotAvailable(what, url, place, _reason(error)) from error


def verify(file: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Raise DataError when a file that is already here has another checksum; leave it as it is."""
    if not _matches(file, sha256, md5):
        raise DataError(
            f"{file}: damaged or another file (its checksum is not the publisher's).\nRemove it, or fetch it again."
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a hidden file beside it; says so when it has to wait for another process."""

    def say(holder: str) -> None:
        print(f"waiting for {holder}, which is fetching {path.name} …", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        with telling_write_errors(path):
            stack.enter_context(locks.locked(path.with_name(f".{path.name}.lock"), say))
        yield


class _Unreachable(Exception):
    """The server, or the way to it, failed; `final` when asking again will not help."""

    def __init__(self, error: Exception) -> None:
        super().__init__(_reason(error))
        self.final = isinstance(error, urllib.error.HTTPError) and error.code < 500


def _transfer(url: str, part: Path, *, what: str, place: str, timeout: float) -> None:
    """Bring `part` to the whole length in as many attempts as it takes; unanswered, the first is the last."""
    failures, answered = 0, False
    with _Meter(what, url) as meter:
        while True:
            before = _size(part)
            try:
                if _attempt(url, part, before, meter, timeout):
                    return
                answered, problem = True, "the connection broke off"
            except _Unreachable as error:
                if error.final or not answered:
                    raise NotAvailable(what, url, place, str(error)) from error
                problem = str(error)
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise NotAvailable(what, url, place, f"{problem}, {ATTEMPTS} times; run again to resume")
            time.sleep(0.1 * failures)


def _attempt(url: str, part: Path, offset: int, meter: "_Meter", timeout: float) -> bool:
    """One request for what is missing; True when `part` is whole."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = _open(request, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise _Unreachable(error) from error
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(offset):
            return True
        part.unlink()  # longer than the file: of another version
        return False
    except (OSError, HTTPException, ValueError) as error:
        raise _Unreachable(error) from error
    with response:
        if response.status == 206 and _first_byte(response) != offset:
            part.unlink()
            return False
        offset = offset if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        meter.begin(offset, total)
        with part.open("ab" if offset else "wb") as file:
            whole = _copy(response, file, meter) and total in (None, file.tell())
            file.flush()
            os.fsync(file.fileno())
            return whole


def _copy(response: HTTPResponse, file: IO[bytes], meter: "_Meter") -> bool:
    """Copy until the answer ends; False when the connection breaks off."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, HTTPException):
            return False
        if not chunk:
            return True
        file.write(chunk)
        meter.advance(len(chunk))


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _first_byte(response: HTTPResponse) -> int:
    """Where a partial answer begins, from `Content-Range: bytes 10-99/100`."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _open(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    """`urlopen` that is over after `timeout` seconds, even when the name server is what keeps silent."""
    answers: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=timeout))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"no network: {cause.strerror}"
    if isinstance(cause, TimeoutError):
        return f"no answer in time: {cause}"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


def _matches(file: Path, sha256: str | None, md5: str | None) -> bool:
    for name, wanted in (("sha256", sha256), ("md5", md5)):
        if wanted is not None:
            with file.open("rb") as content:
                if not hashlib.file_digest(content, name).hexdigest().startswith(wanted.lower()):
                    return False
    return True


class _Meter:
    """How far a transfer is, on stderr: a bar on a terminal, elsewhere a line at each quarter."""

    def __init__(self, what: str, url: str) -> None:
        self.what, self.url = what, url
        self.bar: Any = None
        self.total: int | None = None
        self.done = self.told = 0

    def __enter__(self) -> Self:
        return self

    def begin(self, done: int, total: int | None) -> None:
        """A request was answered: `done` bytes are here, of `total` if that is known."""
        self.done, self.total = done, total
        if sys.stderr.isatty():
            self._bar().update(self.task, completed=done, total=total)
        else:
            size = f", {total / 1e6:.1f} MB" if total else ""
            verb = f"resuming at {done / 1e6:.1f} MB" if done else "downloading"
            print(f"{verb}: {self.what} from {self.url}{size}", file=sys.stderr)
            self.told = self._quarters()

    def advance(self, count: int) -> None:
        """`count` more bytes are here."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif self._quarters() > self.told:
            self.told = self._quarters()
            print(f"{self.what}: {25 * self.told} %", file=sys.stderr)

    def _quarters(self) -> int:
        return math.floor(4 * self.done / self.total) if self.total else 0

    def _bar(self) -> Any:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=None)
        return self.bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
