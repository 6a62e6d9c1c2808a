"""What makes the start quick, and what the processes that are started find."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""The environment variable that does what `python -P` does."""


@contextmanager
def safe_path() -> Iterator[None]:
    """Inside, Python processes that are started do not import from the working directory first.

    multiprocessing and joblib start them by `python -c` and `python -m`, so that a random.py among somebody's pictures
    would be imported in place of Python's own. Afterwards they have the same sys.path as this process.
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
def uncollected() -> Iterator[None]:
    """Inside, Python does not look for garbage.

    For imports: torch, torchvision and Lightning bring four thousand modules, none of them garbage, and Python would
    walk through all that is there again and again, a fifth of the time.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if first:
                gc.freeze()  # nor through those modules later
                atexit.register(gc.unfreeze)  # what is not let go of at the end, some of them call a leak
            gc.enable()
