"""Python programs that start without importing torch again: each forks from a server that has imported it.

Importing torch, torchvision and Lightning takes several seconds, a short training run takes one. The programs are
separate processes all the same, with their own arguments, environment, working directory and output; modules of
Graft are not imported before the fork.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NoReturn

WITHOUT_TORCH = ("hydra", "omegaconf", "numpy", "yaml", "logging.config", "concurrent.futures", "multiprocessing")
WITH_TORCH = (
    "torch", "torch.utils.data", "torch.utils.tensorboard", "torchvision.models", "torchvision.transforms.v2",
    "torchmetrics.classification", "lightning.pytorch", "lightning.pytorch.callbacks", "lightning.pytorch.loggers",
    "hydra", "omegaconf", "matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.datasets",
    "safetensors.torch", "rich.console", "filelock",
)  # fmt: skip
"""Modules that a server imports before it forks: most of those that Graft imports, but no module of Graft."""


ENVIRONMENT = dict(os.environ)
"""Environment of the servers: that of the session, without the changes of the test that starts them."""


class Program:
    """A program that runs; the part of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path,
        modules: Sequence[str] = WITH_TORCH,
    ) -> None:
        self.args = list(words)
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server(tuple(modules)))
        self._lines = self._connection.makefile("r")
        request = {
            "words": self.args,
            "cwd": str(cwd),
            "env": dict(environment),
            "out": str(stdout),
            "err": str(stderr),
        }
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal as in `subprocess`.

        Raises:
            subprocess.TimeoutExpired: the program runs on; it is not killed.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def running(self) -> bool:
        """Whether the program has not ended yet."""
        try:
            self.wait(0.001)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """End the program at once if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@cache
def _server(modules: tuple[str, ...]) -> str:
    """The address of a server that has imported `modules`; it is started at the first call."""
    folder = tempfile.mkdtemp(prefix="preloaded-")
    address = os.path.join(folder, "socket")
    # It ends when the other end of its standard input is closed, which the end of this process does.
    words = [sys.executable, __file__, address, *modules]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, cwd=folder, env=ENVIRONMENT)
    while not os.path.exists(address):
        assert server.poll() is None, "the server of preloaded programs did not start"
        time.sleep(0.02)
    atexit.register(_end, server, folder)
    return address


def _end(server: "subprocess.Popen[bytes]", folder: str) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.terminate()  # a process that this one forked may have the other end of the pipe open
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _serve(address: str, modules: Sequence[str]) -> None:
    """Fork a supervisor for each connection, until standard input is closed."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{address}.new")
    listening.listen()
    os.rename(f"{address}.new", address)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _supervise(connection)
        connection.close()


def _supervise(connection: socket.socket) -> NoReturn:
    """Fork the program, tell its process id and, when it has ended, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile("r").readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(**request)
    connection.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(words: Sequence[str], cwd: str, env: Mapping[str, str], out: str, err: str) -> NoReturn:
    """Run `python WORDS` in this process; `words` begin with a script, -m and a module, or -c and code."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, stream)
        os.close(file)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored by its children
    _fork_interpreters(1 if {"-m", "--multirun"} & set(words[1:]) else 2 if "trainer.devices=2" in words else 0)
    _execute(lambda: _run(words, cwd))


def _fork_interpreters(count: int) -> None:
    """Fork `count` processes that stand in for the interpreters that multiprocessing starts: its fork server, which a
    sweep uses, or the two processes of a run. They have torch imported, but nothing of the program."""
    connections = []
    for _ in range(count):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _interpreter(theirs)
        theirs.close()
        connections.append((pid, ours))
    start = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]

    def spawnv_passfds(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
        words = [os.fsdecode(word) for word in args]
        code = words[words.index("-c") + 1]
        if not connections or "resource_tracker" in code:
            return start(path, args, passfds)
        pid, connection = connections.pop(0)
        request = {
            "code": code,
            "argv": ["-c", *words[words.index("-c") + 2 :]],
            "env": dict(os.environ),
            "fds": list(passfds),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        }
        socket.send_fds(connection, [json.dumps(request).encode()], list(passfds))
        connection.close()
        return pid

    multiprocessing.util.spawnv_passfds = spawnv_passfds  # type: ignore[attr-defined]


def _interpreter(connection: socket.socket) -> NoReturn:
    """Run what the program asks for, as `python -P -c CODE` would; end when the program does."""
    message, received, _, _ = socket.recv_fds(connection, 2**20, 64)
    connection.close()
    if not message:
        os._exit(0)
    request = json.loads(message)
    os.environ.clear()
    os.environ.update(request["env"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD, 512) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(aside, request["fds"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = request["argv"]
    sys.modules["__main__"] = main = ModuleType("__main__")
    _execute(lambda: exec(request["code"], main.__dict__))


def _execute(program: Callable[[], None]) -> NoReturn:
    """Call `program` and end as an interpreter would."""
    try:
        program()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    # an interpreter that was forked reports libraries that were loaded before as leaks when it is finalised
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(words: Sequence[str], cwd: str) -> None:
    if words[0] == "-m":
        sys.path.insert(0, cwd)
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path.insert(0, os.path.dirname(words[0]))
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    _serve(sys.argv[1], sys.argv[2:])
