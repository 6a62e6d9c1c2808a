"""Only regular files are opened."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.system.files import NotARegularFile, open_regular, read_regular, why_unreadable


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": a_socket,
    "a character device": lambda path: path.symlink_to("/dev/tty"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_files_that_could_block_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    SPECIAL[kind](path)
    with pytest.raises(NotARegularFile, match=f"not a regular file but {kind}"):
        open_regular(path)
    assert why_unreadable(path) == f"not a regular file but {kind}"


def test_a_fifo_that_replaces_the_file_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    os.mkfifo(path)
    usual = os.stat(Path(__file__))
    monkeypatch.setattr(os, "stat", lambda *_, **__: usual)
    with pytest.raises(NotARegularFile):
        open_regular(path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b") == b"content"
    assert why_unreadable(tmp_path / "b") is None
    assert why_unreadable(tmp_path) == "is a folder"
    assert why_unreadable(tmp_path / "a" / "b") == "no such file"
