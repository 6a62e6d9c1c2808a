"""Fixtures shared by all tests."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: tests side by side (pytest -n) share the cores out, or their threads fight.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GRAFT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def _forget_modules_of_a_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test writes and imports is unknown to the next test, which may write another of its name."""
    known = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures in the layout of the original data sets; set GRAFT_SHARED if they lie elsewhere."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set GRAFT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Real pretrained weights; set GRAFT_SHARED if they lie elsewhere."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip(f"no pretrained weights at {folder} (set GRAFT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of seconds: vgg_mini on digits."""
    from commands import succeeded, train

    words = ("model=vgg_mini", "data=digits", "augment=none", "optimizer.lr=0.02", "data.split_seed=3")
    limits = ("trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.baseline=false", "logger=none")
    return succeeded(train(tmp_path_factory.mktemp("digits") / "run", *words, *limits)).folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB (a tmpfs), skipped if this machine does not permit mounting one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_shared_memory(tmp_path: Path) -> Path:
    """A program that runs its arguments with a /dev/shm of 512 kB; skipped if this machine does not permit it."""
    program = tmp_path / "small_shared_memory"
    program.write_text(
        '#!/bin/sh\nexec unshare -m sh -c \'mount -t tmpfs -o size=512k none /dev/shm && exec "$@"\' sh "$@"\n'
    )
    program.chmod(0o755)
    tried = subprocess.run([program, "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"/dev/shm cannot be made small here: {tried.stderr.decode().strip()}")
    return program


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real, headless Chromium driven by playwright (Debian: `apt-get install chromium`)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on this machine ({', '.join(names)})")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class FileServer:
    """A local HTTP server over `folder`: `requests` lists (path, Range header) in their order, `headers` go out."""

    folder: Path
    url: str = ""
    ranges: bool = True
    cut_after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: object, server_state: FileServer, **kwargs: object) -> None:
        self.state = server_state
        super().__init__(*args, directory=str(server_state.folder), **kwargs)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in self.state.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.state.requests.append((self.path, requested))
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        etag = self.state.headers.get("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        fresh = self.headers.get("If-Range", etag) == etag
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested and self.state.ranges and fresh else 0
        self.send_response(206 if start else 200)
        if "ETag" not in self.state.headers:
            self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.state.cut_after is not None:  # a connection that breaks in the middle, once
            body, self.state.cut_after = body[: self.state.cut_after], None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)


@pytest.fixture
def http_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Put files into `http_server.folder`, fetch them from `http_server.url + "/name"`."""
    state = FileServer(tmp_path_factory.mktemp("served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, server_state=state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
