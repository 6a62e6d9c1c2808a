"""Environment of new Python processes, and faster imports of large libraries."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable with the effect of `python -P`."""


@contextmanager
def safe_path() -> Iterator[None]:
    """Let Python processes that are started in the block not import from the working directory first.

    multiprocessing and joblib start them with `python -c` and `python -m`, so a random.py among the user's images would
    be imported instead of the standard library's. multiprocessing then sets their sys.path to that of this process.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Disable Python's garbage collection in the block.

    Used for imports: torch, torchvision and Lightning import four thousand modules, none of them garbage, and repeated
    collections take a fifth of the time.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if first:
                gc.freeze()  # later collections skip these modules
                atexit.register(gc.unfreeze)  # some libraries report objects that are still frozen at exit as leaks
            gc.enable()
