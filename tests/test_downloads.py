"""Transfers that break, servers that cannot resume, locks."""

import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from graft import downloads
from graft.downloads import download, locked, require_reachable, verify
from graft.errors import DataError, NotAvailable

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(http_server: Any) -> Any:
    (http_server.folder / "file.bin").write_bytes(CONTENT)
    return http_server


def fetch(server: Any, target: Path, **options: Any) -> Path:
    return download(f"{server.url}/file.bin", target, what="a file", **options)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def ranges(server: Any) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


# ---- transfer


def test_a_file_arrives_whole_and_a_second_call_fetches_nothing(served: Any, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    for _ in range(2):
        assert fetch(served, target, sha256=SHA256).read_bytes() == CONTENT
    assert len(served.requests) == 1
    assert visible(target.parent) == ["file.bin"]


def test_a_connection_cut_in_the_middle_is_taken_up_where_it_broke(served: Any, tmp_path: Path) -> None:
    served.cut_after = 300_000
    assert fetch(served, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=300000-"]


def test_the_part_of_an_earlier_run_is_resumed(served: Any, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(served, tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(served) == ["bytes=1000-"]
    assert visible(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_means_beginning_anew(served: Any, tmp_path: Path) -> None:
    served.ranges, served.cut_after = False, 300_000
    assert fetch(served, tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(served) == [None, "bytes=300000-"]


def test_the_part_of_another_file_is_thrown_away_when_the_checksum_tells(served: Any, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(served, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT
    assert ranges(served) == ["bytes=1000-", None]


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_no_file_behind(served: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"file\.bin: what arrived has not the checksum"):
        fetch(served, tmp_path / "file.bin", **{name: "0" * 32})
    assert visible(tmp_path) == []


def test_a_missing_file_is_not_asked_for_again(served: Any, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="HTTP 404"):
        download(f"{served.url}/other.bin", tmp_path / "other.bin", what="a file")
    assert len(served.requests) == 1
    assert visible(tmp_path) == []


def test_a_refused_connection_names_the_address_and_the_place(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable) as raised:
        download("http://127.0.0.1:1/x.zip", tmp_path / "x.zip", what="the x data", place="the shelf")
    message = str(raised.value)
    assert message.startswith("the x data: ")
    assert "http://127.0.0.1:1/x.zip" in message
    assert "Connection refused" in message
    assert message.endswith("Put it by hand at the shelf.")


def test_a_server_that_keeps_breaking_off_is_given_up_and_the_part_kept(tmp_path: Path, breaking: str) -> None:
    with pytest.raises(NotAvailable, match="run again to resume"):
        download(f"{breaking}/x", tmp_path / "x", what="a file")
    assert (tmp_path / "x.part").read_bytes() == b"abc"


@pytest.fixture
def breaking() -> Iterator[str]:
    """A server that promises 100 bytes and, from each start, sends three at the most, once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            resuming = self.headers.get("Range") is not None
            self.send_response(206 if resuming else 200)
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


def test_a_silent_server_is_unreachable(silent: str, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no answer"):
        require_reachable(f"{silent}/x", what="x", place="there", timeout=0.2)
    with pytest.raises(NotAvailable, match="no answer"):
        download(f"{silent}/x", tmp_path / "x", what="x", timeout=0.2)


def test_a_name_server_that_keeps_silent_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver knows no timeout of ours; here it never answers at all."""
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait())
    with pytest.raises(NotAvailable, match=r"no answer within 0\.2 seconds"):
        require_reachable("http://example.invalid/x", what="x", place="there", timeout=0.2)


def test_reachable_is_silent_and_moves_no_content(served: Any) -> None:
    require_reachable(f"{served.url}/file.bin", what="x", place="there")
    assert served.requests == []  # a HEAD, no GET
    with pytest.raises(NotAvailable, match="HTTP 404"):
        require_reachable(f"{served.url}/none", what="x", place="there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(served: Any, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DataError, match="cannot be written"):
        fetch(served, tmp_path / "file.bin")


def test_a_file_in_the_way_of_the_folder_is_named(served: Any, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(DataError, match=r"occupied/file\.bin: cannot be written"):
        fetch(served, tmp_path / "occupied" / "file.bin")


def test_a_full_disk_is_said_to_be_full(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        fetch(served, tmp_path / "file.bin")


def test_a_file_put_by_hand_is_verified_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    verify(tmp_path / "x", sha256=SHA256)
    with pytest.raises(DataError, match="damaged or another file"):
        verify(tmp_path / "x", sha256="0" * 64)
    assert (tmp_path / "x").is_file()


HOLD = """
import sys
from pathlib import Path
from graft.downloads import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_held_by_another_process_is_waited_for_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "set")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        order: list[str] = []

        def wait() -> None:
            with locked(tmp_path / "set"):
                order.append("held here")

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert order == []
        other.stdin.write("let go\n")
        other.stdin.flush()
        waiting.join(30)
    assert order == ["held here"]
    said = capsys.readouterr().err
    assert "waiting for " in said
    assert "which is fetching set" in said
    if sys.platform == "linux":
        assert f"waiting for process {other.pid} (" in said


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


def test_downloads_are_light() -> None:
    heavy = ("torch", "rich.progress", "numpy")
    code = f"import sys, graft.downloads; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
