"""Fetching files: resumed, verified, locked against a second process, complete or absent under their name."""

import contextlib
import email.utils
import hashlib
import json
import os
import queue
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from functools import cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self
from urllib.parse import urlsplit

from graft import __version__
from graft.errors import DataError, NotAvailable
from graft.system import locks
from graft.system.files import telling_write_errors, write_atomically

CHUNK = 1 << 20
MIN_RATE = 1000
"""Bytes per second below which a transfer counts as stalled, averaged over three timeouts."""
PROGRESS = 64 << 10
"""Bytes by which a transfer must get further than ever before for the count of failed attempts to start again."""
BACKOFF = 0.5
"""Seconds before the second attempt; doubled before each further one."""
MAX_WAIT = 60.0
"""Longest `Retry-After`, in seconds, that is waited for."""
MAX_BYTES = 8 << 30
"""Largest file that is fetched; the largest weights of torchvision are 2.6 GB."""
MAX_UNANNOUNCED = 256 << 20
"""Largest file that is fetched when neither the server nor the caller knows its size."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""


class Settings(Protocol):
    """The configuration group `download`."""

    timeout: float
    attempts: int


@dataclass
class _Settings:
    timeout: float = 10.0
    attempts: int = 5


_settings = _Settings()


def configure(settings: Settings) -> None:
    """Set timeout and number of attempts of all later downloads of this process."""
    _settings.timeout, _settings.attempts = settings.timeout, settings.attempts


def timeout() -> float:
    """`download.timeout`, in seconds."""
    return _settings.timeout


def download(
    url: str,
    target: Path,
    *,
    what: str,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    place: str | None = None,
) -> Path:
    """Fetch `url` into `target` unless that exists; two processes share one transfer.

    The bytes go to a hidden partial file next to `target`. An interrupted transfer is resumed, also by a later call, if
    the server confirms that the file has not changed; otherwise it starts again. The file gets its name when its
    length and checksum are verified and it is synced to disk.

    Args:
        url: http or https.
        target: the file; its folder is created.
        what: the file in the user's words, e.g. "hymenoptera data".
        sha256, md5: hex, where the publisher's checksum is known; the first digits of the SHA-256 are enough.
        size: in bytes, where the publisher states it.
        place: where to put the file by hand, for the error message; None: `target`.

    Raises:
        NotAvailable: unreachable, or the transfer fails repeatedly.
        DataError: the file has another checksum (it is removed), or `target` cannot be written.
    """
    place = place or str(target.absolute())
    with telling_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if target.is_file():
            return target
        with telling_write_errors(target):
            part = _Part.open(target, url, verifiable=bool(sha256 or md5), size=size)
            resumed = part.offset > 0
            _transfer(part, what, place)
            if resumed and not _matches(part.file, sha256, md5):  # the first bytes may be of another version
                part.discard()
                _transfer(part, what, place)
            if not _matches(part.file, sha256, md5):
                part.discard()
                raise DataError(
                    f"{url}: the file does not have the checksum that its publisher states, and was removed.\n"
                    f"Try again, or put {what} by hand at {place}."
                )
            part.file.replace(target)
            part.discard()
    return target


def require_reachable(url: str, *, what: str, place: str) -> None:
    """Raise NotAvailable, within `download.timeout` seconds, unless the server has `url`.

    Some servers refuse or mishandle HEAD, so that a GET, closed before its content arrives, decides.
    """
    deadline = time.monotonic() + _settings.timeout
    with contextlib.suppress(OSError, HTTPException, ValueError):
        _open(urllib.request.Request(url, method="HEAD"), _settings.timeout / 2).close()
        return
    try:
        _open(urllib.request.Request(url, headers={"Range": "bytes=0-0"}), deadline - time.monotonic()).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in TRANSIENT:  # an overloaded server is there; the transfer waits for it
            raise NotAvailable(what, url, place, _reason(error)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise NotAvailable(what, url, place, _reason(error)) from error


def verify(file: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Raise DataError when an existing file has another checksum; it is left as it is."""
    if not _matches(file, sha256, md5):
        raise DataError(
            f"{file}: damaged or another file (its checksum is not the publisher's).\nRemove it, or fetch it again."
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a hidden file next to it; prints a note when another process holds it."""

    def say(holder: str) -> None:
        print(f"waiting for {holder}, which is fetching {path.name} …", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        with telling_write_errors(path):
            stack.enter_context(locks.locked(path.with_name(f".{path.name}.lock"), say))
        yield


class _Failed(Exception):
    """One attempt failed.

    Args:
        reason: why, in a few words.
        transient: another attempt may succeed.
        answered: the server was reached.
        wait: seconds that the server asks to wait; None: it does not say.
    """

    def __init__(
        self, reason: str, *, transient: bool = True, answered: bool = True, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.transient, self.answered, self.wait = transient, answered, wait


@dataclass(frozen=True)
class _Version:
    """Which version of which file a partial file is of; kept in a JSON file next to it.

    Attributes:
        url: its address.
        validator: a strong ETag, or a Last-Modified date that is as good; None: the server gives neither.
        total: its length in bytes; None: unknown.
    """

    url: str
    validator: str | None = None
    total: int | None = None

    @classmethod
    def of(cls, url: str, response: HTTPResponse) -> "_Version":
        return cls(url, _validator(response.headers), response.length)


@dataclass
class _Part:
    """The partial file of a download; its lock is held.

    Attributes:
        file: `.NAME.part` next to the target.
        version: what it is a part of.
        verifiable: a checksum will tell whether parts of two versions were joined.
        size: the length that the publisher states.
    """

    file: Path
    version: _Version
    verifiable: bool
    size: int | None

    @classmethod
    def open(cls, target: Path, url: str, *, verifiable: bool, size: int | None) -> "_Part":
        """The partial file that an earlier call left of `url`, else an empty one."""
        file = target.with_name(f".{target.name}.part")
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise DataError(f"{file}: not a regular file; partial downloads go there.\nRemove it.")
        part = cls(file, _Version(url), verifiable, size)
        try:
            part.version = _Version(**json.loads(part._description.read_text()))
        except (OSError, ValueError, TypeError):
            part.version = _Version("")
        if part.version.url != url or (part.version.total or 0) < part.offset:
            part.discard()
            part.version = _Version(url)
        return part

    @property
    def _description(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    @property
    def offset(self) -> int:
        """Number of bytes that are here."""
        return self.file.stat().st_size if self.file.is_file() else 0

    @property
    def resumable(self) -> bool:
        return self.offset > 0 and (self.version.validator is not None or self.verifiable)

    @property
    def complete(self) -> bool:
        """Whether all bytes are here, as far as the length tells."""
        return self.resumable and self.offset == self.version.total

    def restart(self, version: _Version) -> None:
        """Remove what is here; the bytes that follow are of `version`."""
        self.discard()
        self.version = version

    def describe(self) -> None:
        """Write down the version, so that a later run can resume."""
        write_atomically(self._description, json.dumps(asdict(self.version)).encode())

    def continued_by(self, response: HTTPResponse) -> bool:
        """Whether a partial response (206) has the bytes that come next, of the same version."""
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
        """Remove the partial file and its description; both are ours by their names and by the lock."""
        self.file.unlink(missing_ok=True)
        self._description.unlink(missing_ok=True)


def _transfer(part: _Part, what: str, place: str) -> None:
    """Fetch what is missing of `part` in several attempts; without a response to the first there is no second."""
    url, failures, answered, furthest = part.version.url, 0, False, part.offset
    with _Meter(what, url) as meter:
        while not part.complete:
            try:
                if _attempt(part, meter):
                    return
                failed = _Failed("the connection broke off")
            except _Failed as error:
                failed = error
            answered = answered or failed.answered
            failures += 1
            if part.offset - furthest >= PROGRESS:
                failures, furthest = 1, part.offset
            if not (failed.transient and answered):
                raise NotAvailable(what, url, place, str(failed)) from failed.__cause__
            if failures >= _settings.attempts:
                again = "; run again to resume" if part.resumable else ""
                raise NotAvailable(what, url, place, f"{failed}, in {failures} attempts{again}") from failed.__cause__
            wait = BACKOFF * 2 ** (failures - 1) if failed.wait is None else failed.wait
            if wait >= 5:
                print(f"{what}: {failed}; next attempt in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)


def _attempt(part: _Part, meter: "_Meter") -> bool:
    """One request for what is missing; True when `part` is complete, False when more must be requested."""
    headers = {}
    if part.resumable:
        headers["Range"] = f"bytes={part.offset}-"
        if part.version.validator is not None:
            headers["If-Range"] = part.version.validator
    try:
        response = _open(urllib.request.Request(part.version.url, headers=headers), _settings.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            part.discard()
            raise _Failed("the file has changed on the server") from error
        wait = _retry_after(error.headers)
        patient = wait is None or wait <= MAX_WAIT
        reason = _reason(error) + ("" if patient else f", which asks to try again in {wait:.0f} s")
        raise _Failed(reason, transient=error.code in TRANSIENT and patient, wait=wait) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _Failed(_reason(error), answered=isinstance(error, HTTPException)) from error
    with response:
        if response.status == 206 and headers:
            if not part.continued_by(response):
                part.discard()
                raise _Failed("the server resumes with another part, or another version, of the file")
        elif response.status == 200:
            part.restart(_Version.of(part.version.url, response))
        else:
            raise _Failed(f"unexpected response HTTP {response.status}", transient=False)
        limit = _limit(part, response)
        part.describe()
        meter.begin(part.offset, part.version.total)
        with part.file.open("ab") as file:
            ended = _copy(response, file, meter, limit)
            file.flush()
            os.fsync(file.fileno())
        if part.offset > limit:
            part.discard()
            raise _Failed(f"the server sends more than {limit:,} bytes", transient=False)
        return ended and part.offset == (part.version.total or part.size or part.offset)


def _limit(part: _Part, response: HTTPResponse) -> int:
    """How many bytes the file may have.

    Raises:
        _Failed: the server announces another length than the publisher, or too many bytes, or no way to tell the end.
        DataError: there is not that much room.
    """
    total = part.version.total
    if total is not None and part.size not in (None, total):
        reason = f"the server has {total:,} bytes under this address, where the publisher states {part.size:,}"
        raise _Failed(reason, transient=False)
    if total is not None and total > MAX_BYTES:
        raise _Failed(f"{total:,} bytes are announced, more than the {MAX_BYTES:,} allowed", transient=False)
    if total is None and response.headers.get("Transfer-Encoding") is None and not part.verifiable:
        reason = "the server does not announce the length, so that a broken transfer would go unnoticed"
        raise _Failed(reason, transient=False)
    free = shutil.disk_usage(part.file.parent).free
    if (total or 0) - part.offset > free:
        raise DataError(
            f"{part.file.parent}: {total or 0:,} bytes do not fit, {free:,} are free.\n"
            "Make room, or use another folder."
        )
    return total or part.size or MAX_UNANNOUNCED


def _copy(response: HTTPResponse, file: IO[bytes], meter: "_Meter", limit: int) -> bool:
    """Append the response to `file`, until one chunk beyond `limit`; False when the connection breaks off.

    Raises:
        _Failed: slower than MIN_RATE.
    """
    with _minimum_rate(response, lambda: meter.received) as stalled:
        while file.tell() <= limit:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, HTTPException):
                chunk = None
            if stalled.is_set():
                raise _Failed(f"slower than {MIN_RATE:,} bytes per second")
            if not chunk:
                return chunk is not None
            file.write(chunk)
            meter.advance(len(chunk))
    return False


@contextlib.contextmanager
def _minimum_rate(response: HTTPResponse, received: Callable[[], int]) -> Iterator[threading.Event]:
    """Inside, the connection is shut down once `received` grows too slowly; yields the event that tells so.

    A socket's own timeout starts again with each byte, also within a header of a chunk, where our code is not reached.
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


def _validator(headers: Message) -> str | None:
    """What If-Range may carry (RFC 9110, 13.1.5): a strong ETag, or the date of a file that has not just changed."""
    if (etag := headers.get("ETag")) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        return etag
    changed, sent = (_date(headers.get(name)) for name in ("Last-Modified", "Date"))
    return headers["Last-Modified"] if changed is not None and sent is not None and sent - changed >= 1 else None


def _retry_after(headers: Message) -> float | None:
    """Seconds to wait as `Retry-After` has it, as a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    until = _date(value)
    return None if until is None else max(0.0, until - time.time())


def _date(value: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() if value else None
    except (ValueError, OverflowError):
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects over http and https, never from https to http, and reads no content of theirs."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise urllib.error.URLError(f"redirected from {req.type} to {scheme}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is not None:
            request.method = req.get_method()  # HEAD stays HEAD
        return request


@cache
def user_agent() -> str:
    """Name that requests give in their User-Agent header."""
    return f"graft/{__version__}"


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Only http and https, with the environment's proxies: no ftp, no local files, also after redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", user_agent())]
    return opener


def _open(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    """The response, or TimeoutError after `timeout` seconds, also while a name is resolved or a header trickles in."""
    responses: queue.Queue[HTTPResponse | Exception] = queue.Queue()
    late = threading.Event()

    def send() -> None:
        try:
            response = _opener().open(request, timeout=timeout)
        except Exception as error:
            responses.put(error)
            return
        responses.put(response)
        if late.is_set():
            response.close()

    threading.Thread(target=send, daemon=True).start()
    try:
        response = responses.get(timeout=max(0.0, timeout))
    except queue.Empty:
        late.set()
        raise TimeoutError(f"no answer within {timeout:.3g} seconds") from None
    if isinstance(response, Exception):
        raise response
    return response


def _reason(error: Exception) -> str:
    """What went wrong, in a few words; nothing that the server wrote."""
    if isinstance(error, urllib.error.HTTPError):
        known = error.code in HTTPStatus._value2member_map_
        phrase = f" {HTTPStatus(error.code).phrase}" if known else ""
        return f"HTTP {error.code}{phrase}" + (", a redirect that is not followed" if 300 <= error.code < 400 else "")
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"no network: {cause.strerror}"
    if isinstance(cause, TimeoutError):
        return f"no answer in time: {cause}"
    if isinstance(cause, HTTPException) and not isinstance(cause, OSError):
        return f"not an HTTP response ({type(cause).__name__})"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


def _matches(file: Path, sha256: str | None, md5: str | None) -> bool:
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with file.open("rb") as content:
                if not hashlib.file_digest(content, name).hexdigest().startswith(expected.lower()):
                    return False
    return True


class _Meter:
    """Progress of a transfer on stderr: a bar on a terminal, otherwise a line for each quarter or 100 MB."""

    def __init__(self, what: str, url: str) -> None:
        self.what, self.url = what, url
        self.bar: Any = None
        self.total: int | None = None
        self.done = self.received = self.printed = 0

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
            self.printed = self._steps()

    def advance(self, count: int) -> None:
        """`count` more bytes are here."""
        self.done += count
        self.received += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif self._steps() > self.printed:
            self.printed = self._steps()
            progress = f"{25 * self.printed} %" if self.total else f"{100 * self.printed} MB"
            print(f"{self.what}: {progress}", file=sys.stderr)

    def _steps(self) -> int:
        return 4 * self.done // self.total if self.total else self.done // 100_000_000

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
