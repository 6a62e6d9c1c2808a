"""What makes the start quick."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
