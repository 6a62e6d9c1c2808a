"""Downloads over broken connections, from servers without ranges, and in several processes."""

import contextlib
import email.utils
import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial as functools_partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import graft
from graft.errors import DataError, NotAvailable
from graft.system import downloads
from graft.system.downloads import download, locked, require_reachable, verify

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(http_server: Any) -> Any:
    (http_server.folder / "file.bin").write_bytes(CONTENT)
    return http_server


def fetch(server: Any, target: Path, **options: Any) -> Path:
    return download(f"{server.url}/file.bin", target, what="a file", **options)


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF", 0.001)


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def ranges(server: Any) -> list[str | None]:
    return [ranges for _, ranges in server.requests]


# ---- transfer


def test_a_file_is_downloaded_completely_and_only_once(served: Any, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    for _ in range(2):
        assert fetch(served, target, sha256=SHA256).read_bytes() == CONTENT
    assert len(served.requests) == 1
    assert visible(target.parent) == ["file.bin"]


def test_a_broken_connection_is_resumed_at_the_last_byte(served: Any, tmp_path: Path) -> None:
    served.cut_after = 300_000
    assert fetch(served, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=300000-"]


def test_the_part_of_an_earlier_run_is_resumed(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(served, tmp_path / "file.bin", monkeypatch)
    assert fetch(served, tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=300000-"]
    assert everything(tmp_path) == [".file.bin.lock", "file.bin"]


def interrupted(server: Any, target: Path, monkeypatch: pytest.MonkeyPatch, size: int = 300_000) -> None:
    """A run that ended after `size` bytes."""
    server.cut_after = size
    with monkeypatch.context() as limited:
        limited.setattr(downloads._settings, "attempts", 1)
        limited.setattr(downloads, "PROGRESS", 1 << 30)
        with pytest.raises(NotAvailable, match="run again to resume"):
            fetch(server, target)
    assert (target.parent / f".{target.name}.part").read_bytes() == CONTENT[:size]


def test_a_user_file_with_the_name_of_a_partial_download_is_kept(served: Any, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"the user's")
    assert fetch(served, tmp_path / "file.bin").read_bytes() == CONTENT
    assert (tmp_path / "file.bin.part").read_bytes() == b"the user's"


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, other: os.mkfifo(path)])
def test_a_partial_file_that_is_not_a_regular_file_is_refused(
    served: Any, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "other").write_bytes(b"the user's")
    make(tmp_path / ".file.bin.part", tmp_path / "other")
    with pytest.raises(DataError, match=r"\.file\.bin\.part: not a regular file"):
        fetch(served, tmp_path / "file.bin")
    assert (tmp_path / "other").read_bytes() == b"the user's"


def test_a_server_without_ranges_restarts_the_download(served: Any, tmp_path: Path) -> None:
    served.ranges, served.cut_after = False, 300_000
    assert fetch(served, tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=300000-"]


def test_a_damaged_partial_file_is_discarded_after_the_checksum_fails(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(served, tmp_path / "file.bin", monkeypatch)
    (tmp_path / ".file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(served, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=1000-", None]


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_no_file_behind(served: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"file\.bin: its checksum is not the published one"):
        fetch(served, tmp_path / "file.bin", **{name: "0" * 32})
    assert visible(tmp_path) == []


def test_a_missing_file_is_requested_only_once(served: Any, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="HTTP 404"):
        download(f"{served.url}/other.bin", tmp_path / "other.bin", what="a file")
    assert len(served.requests) == 1
    assert visible(tmp_path) == []


def test_a_refused_connection_names_the_address_and_the_local_path(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable) as raised:
        download("http://127.0.0.1:1/x.zip", tmp_path / "x.zip", what="the x data", manual_path="the shelf")
    message = str(raised.value)
    assert message.startswith("the x data: ")
    assert "http://127.0.0.1:1/x.zip" in message
    assert "Connection refused" in message
    assert message.endswith("Download it elsewhere and put it at the shelf.")


def test_after_repeated_disconnects_the_download_fails_and_keeps_the_partial_file(
    tmp_path: Path, breaking: str
) -> None:
    with pytest.raises(NotAvailable, match="run again to resume"):
        download(f"{breaking}/x", tmp_path / "x", what="a file")
    assert (tmp_path / ".x.part").read_bytes() == b"abc"


@pytest.fixture
def breaking() -> Iterator[str]:
    """A server that promises 100 bytes and, from each start, sends three at the most, once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            resuming = self.headers.get("Range") is not None
            self.send_response(206 if resuming else 200)
            self.send_header("ETag", '"1"')
            if resuming:
                self.send_header("Content-Range", "bytes 3-99/100")
            self.send_header("Content-Length", "97" if resuming else "100")
            self.end_headers()
            self.wfile.write(b"" if resuming else b"abc")

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_server_is_unreachable(silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads._settings, "timeout", 0.2)
    with pytest.raises(NotAvailable, match="no answer"):
        require_reachable(f"{silent}/x", what="x", manual_path="there")
    with pytest.raises(NotAvailable, match="no answer"):
        download(f"{silent}/x", tmp_path / "x", what="x")


def test_a_silent_name_server_does_not_block_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver knows no timeout of ours; here it never answers at all."""
    monkeypatch.setattr(downloads._settings, "timeout", 0.2)
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait())
    with pytest.raises(NotAvailable, match="no answer in time"):
        require_reachable("http://example.invalid/x", what="x", manual_path="there")


def test_a_reachability_check_downloads_no_content(served: Any) -> None:
    require_reachable(f"{served.url}/file.bin", what="x", manual_path="there")
    assert served.requests == []  # a HEAD, no GET
    with pytest.raises(NotAvailable, match="HTTP 404"):
        require_reachable(f"{served.url}/none", what="x", manual_path="there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(served: Any, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DataError, match="cannot be written"):
        fetch(served, tmp_path / "file.bin")


def test_a_file_in_place_of_the_folder_is_named(served: Any, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(DataError, match=r"occupied/file\.bin: cannot be written"):
        fetch(served, tmp_path / "occupied" / "file.bin")


def test_a_full_disk_is_reported(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        fetch(served, tmp_path / "file.bin")


def test_a_manually_downloaded_file_is_verified_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    verify(tmp_path / "x", sha256=SHA256)
    with pytest.raises(DataError, match="damaged, or another file"):
        verify(tmp_path / "x", sha256="0" * 64)
    assert (tmp_path / "x").is_file()


HOLD = """
import sys
from pathlib import Path
from graft.system.downloads import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_waiting_for_another_process_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "set")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        order: list[str] = []

        def wait() -> None:
            with locked(tmp_path / "set"):
                order.append("acquired here")

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert order == []
        other.stdin.write("let go\n")
        other.stdin.flush()
        waiting.join(30)
    assert order == ["acquired here"]
    output = capsys.readouterr().err
    assert "waiting for " in output
    assert "which is downloading set" in output
    if sys.platform == "linux":
        assert f"waiting for process {other.pid} (" in output


def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "set")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.kill()
    with locked(tmp_path / "set"):
        pass


def test_importing_downloads_imports_no_large_library() -> None:
    heavy = ("torch", "rich.progress", "numpy")
    code = f"import sys, graft.system.downloads; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- hostile servers, byte by byte

Step = bytes | Callable[[socket.socket], None]


class Scripted:
    """A server that plays one step for each connection, the last one for all others: bytes to send, or a function.

    `requests` are the raw request headers.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self.listener.accept()
                request = b""
                while b"\r\n\r\n" not in request and (more := connection.recv(65536)):
                    request += more
                self.requests.append(request.decode())
                step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
                threading.Thread(target=self._play, args=(connection, step), daemon=True).start()

    @staticmethod
    def _play(connection: socket.socket, step: Step) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(step) if isinstance(step, bytes) else step(connection)

    def header(self, name: str) -> list[str | None]:
        """The values of a header in all requests."""
        found = [re.search(rf"^{name}: (.*?)\r$", request, re.MULTILINE) for request in self.requests]
        return [match and match[1] for match in found]


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*steps: Step) -> Scripted:
        servers.append(Scripted(*steps))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


def response(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def partial(body: bytes, span: str, *headers: str) -> bytes:
    return response(body, f"Content-Range: bytes {span}", *headers, status="206 Partial Content")


OLD, NEW = b"old " * 50_000, b"new " * 50_000
CUT = response(OLD[:100_000], 'ETag: "old"', length=len(OLD))


SPLICES = {
    "If-Range is ignored": partial(NEW[100_000:], "100000-199999/200000", 'ETag: "new"'),
    "If-Range is ignored and the version kept secret": partial(NEW[100_000:], "100000-199999/200000"),
    "another length": partial(NEW[100_000:], "100000-199999/300000", 'ETag: "old"'),
    "another start": partial(NEW[50_000:], "50000-199999/200000", 'ETag: "old"'),
    "no range": partial(NEW[100_000:], "100000/200000", 'ETag: "old"'),
    "a range beyond the end": partial(NEW[100_000:], "100000-999999/200000", 'ETag: "old"'),
    "the range is not that of the content": partial(NEW[100_000:] * 2, "100000-199999/200000", 'ETag: "old"'),
    "another version": response(NEW, 'ETag: "new"'),
    "nothing satisfies the range": response(b"", status="416 Range Not Satisfiable"),
}


@pytest.mark.parametrize("answer", SPLICES)
def test_parts_of_different_versions_are_never_joined(
    answer: str, scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(CUT, SPLICES[answer], response(NEW, 'ETag: "new"'))
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == NEW
    assert server.header("If-Range")[:2] == [None, '"old"']
    assert everything(tmp_path) == [".x.lock", "x"]


def test_a_file_that_changes_with_every_request_fails(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    """Each second request throws the part away, so that each other one seems to get far."""
    server = scripted(*[CUT, partial(NEW[100_000:], "100000-199999/200000", 'ETag: "new"')] * 50)
    with pytest.raises(NotAvailable, match="in 5 attempts"):
        download(f"{server.url}/x", tmp_path / "x", what="x")
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        (['ETag: W/"weak"'], None),
        (["Last-Modified: Mon, 05 Jan 2026 10:00:00 GMT", "Date: Mon, 05 Jan 2026 10:00:00 GMT"], None),
        (["Last-Modified: Mon, 05 Jan 2026 10:00:00 GMT"], None),
        (
            ["Last-Modified: Mon, 05 Jan 2026 10:00:00 GMT", "Date: Mon, 05 Jan 2026 11:00:00 GMT"],
            "Mon, 05 Jan 2026 10:00:00 GMT",
        ),
    ],
)
def test_only_what_identifies_a_version_is_resumed(
    headers: list[str], validator: str | None, scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(response(OLD[:100_000], *headers, length=len(OLD)), response(OLD, *headers))
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == OLD
    assert server.header("If-Range") == [None, validator]
    assert server.header("Range") == [None, validator and "bytes=100000-"]


def test_a_short_response_is_followed_by_another_request(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    server = scripted(
        CUT,
        partial(OLD[100_000:170_000], "100000-169999/200000", 'ETag: "old"'),
        partial(OLD[170_000:], "170000-199999/200000", 'ETag: "old"'),
    )
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == OLD
    assert server.header("Range") == [None, "bytes=100000-", "bytes=170000-"]


def endless(connection: socket.socket, head: bytes = b"", piece: bytes = b"x" * 65536, pause: float = 0.0) -> None:
    connection.sendall(head)
    while True:
        connection.sendall(piece)
        time.sleep(pause)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS: dict[str, tuple[Step, str]] = {
    "chunks": (functools_partial(endless, head=CHUNKED, piece=b"10000\r\n" + b"x" * 65536 + b"\r\n"), "more than"),
    "no length": (functools_partial(endless, head=b"HTTP/1.1 200 OK\r\n\r\n"), "does not announce the length"),
    "too much announced": (response(b"", length=1 << 50), "1,125,899,906,842,624 bytes are announced"),
    "a redirect": (
        functools_partial(endless, head=b"HTTP/1.1 302 Found\r\nLocation: ftp://x/y\r\n\r\n"),
        "redirected from http to ftp, which is not followed",
    ),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_body_is_refused(
    kind: str, scripted: Callable[..., Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MAX_UNANNOUNCED", 1 << 20)
    step, reason = ENDLESS[kind]
    with pytest.raises(NotAvailable, match=reason):
        download(f"{scripted(step).url}/x", tmp_path / "x", what="x")
    assert everything(tmp_path) == [".x.lock"]


def test_a_body_longer_than_announced_is_refused(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    server = scripted(functools_partial(endless, head=response(b"x" * 1000)))
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == b"x" * 1000


def test_an_unexpected_length_is_refused_before_the_download(served: Any, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="has 1,024,000 bytes at this address, but 1,000 are published"):
        fetch(served, tmp_path / "file.bin", size=1000)
    assert everything(tmp_path) == [".file.bin.lock"]


def test_a_file_that_does_not_fit_on_the_disk_is_refused_before_the_download(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match=r"1,024,000 bytes do not fit, 1 are free"):
        fetch(served, tmp_path / "file.bin")
    assert not (tmp_path / ".file.bin.part").exists()


TRICKLES = {
    "body": functools_partial(endless, head=response(b"", length=1000), piece=b"x", pause=0.05),
    "header of a chunk": functools_partial(endless, head=CHUNKED + b"1;", piece=b"x", pause=0.05),
    "header": functools_partial(endless, head=b"HTTP/1.1 200 OK\r\n", piece=b"x: y\r\n", pause=0.05),
}


@pytest.mark.parametrize("kind", TRICKLES)
def test_a_too_slow_transfer_fails(
    kind: str, scripted: Callable[..., Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads._settings, "timeout", 0.2)
    monkeypatch.setattr(downloads._settings, "attempts", 2)
    with pytest.raises(NotAvailable, match=r"slower than 1,000 bytes per second, in 2 attempts|no answer in time"):
        download(f"{scripted(TRICKLES[kind]).url}/x", tmp_path / "x", what="x")


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_an_overloaded_server_is_retried_after_the_requested_delay(
    status: str, scripted: Callable[..., Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(downloads, "time", clock)
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    busy = [response(b"", f"Retry-After: {value}", status=status) for value in ("7", later)]
    server = scripted(*busy, response(b"", status=status), response(OLD))
    require_reachable(f"{server.url}/x", what="x", manual_path="there")
    server.steps[:0] = busy
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == OLD
    assert waited[0] == 7
    assert 25 < waited[1] <= 30
    assert len(waited) == 3


def test_a_server_that_requests_a_delay_of_hours_fails_at_once(
    scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(response(b"", "Retry-After: 7200", status="503 \x1b[31mGo away"))
    with pytest.raises(NotAvailable, match="503 Service Unavailable, which asks to try again in 7200 s") as raised:
        download(f"{server.url}/x", tmp_path / "x", what="x")
    assert len(server.requests) == 1
    assert "\x1b" not in str(raised.value)


def test_a_persistent_server_error_fails_after_the_configured_attempts(
    scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(response(b"", status="500 Internal Server Error"))
    with pytest.raises(NotAvailable, match=r"HTTP 500 Internal Server Error, in 5 attempts"):
        download(f"{server.url}/x", tmp_path / "x", what="x")
    assert len(server.requests) == 5


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "javascript:x"])
def test_redirects_to_other_schemes_are_not_followed(
    target: str, scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(response(b"", f"Location: {target}", status="302 Found"))
    for act in (
        lambda url: require_reachable(url, what="x", manual_path="there"),
        lambda url: download(url, tmp_path / "x", what="x"),
    ):
        with pytest.raises(NotAvailable, match=r"redirect(ed from http to ftp, which)?.* is not followed"):
            act(f"{server.url}/x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_other_schemes_are_not_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="unknown url type"):
        download(url, tmp_path / "x", what="x")


def test_a_redirect_keeps_the_method_of_the_request(
    served: Any, scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    server = scripted(response(b"moved", f"Location: {served.url}/file.bin", status="302 Found"))
    require_reachable(f"{server.url}/x", what="x", manual_path="there")
    assert served.requests == []  # HEAD stayed HEAD
    assert download(f"{server.url}/x", tmp_path / "x", what="x").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "head", [response(b"", status="403 Forbidden"), response(b"", status="405 No"), b"", b"\x00\x01 nonsense\r\n\r\n"]
)
def test_a_failed_head_request_is_ignored_if_get_works(head: bytes, scripted: Callable[..., Scripted]) -> None:
    server = scripted(head, response(OLD))
    require_reachable(f"{server.url}/x", what="x", manual_path="there")
    assert [request.split()[0] for request in server.requests] == ["HEAD", "GET"]
    assert set(server.header("User-Agent")) == {f"graft/{graft.__version__}"}


def test_a_killed_download_is_resumed_by_the_next_process(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    stuck = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.sendall(CUT)
        stuck.wait(60)

    server = scripted(hang, partial(OLD[100_000:], "100000-199999/200000", 'ETag: "old"'))
    target = tmp_path / "x"
    load = "import pathlib, sys; from graft.system.downloads import download"
    code = f"{load}; download(sys.argv[1], pathlib.Path('x'), what='x')"
    with subprocess.Popen([sys.executable, "-c", code, f"{server.url}/x"], cwd=tmp_path) as other:
        while not (tmp_path / ".x.part").is_file() or (tmp_path / ".x.part").stat().st_size < 100_000:
            time.sleep(0.02)
            assert other.poll() is None
        other.kill()
    stuck.set()
    assert download(f"{server.url}/x", target, what="x").read_bytes() == OLD
    assert server.header("Range") == [None, "bytes=100000-"]
