"""Transfer learning on images: `graft` on the command line, the same from Python.

    import graft
    run = graft.train("experiment=quickstart", "seed=1")

Importing this loads neither torch nor Hydra; see `graft.api`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.api import Built, Experiment, FinishedRun, advise, build, compose, improve, load, predict, train

for switch, value in {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
    os.environ.setdefault(switch, value)  # no library sends telemetry unless the user enables it

__version__ = "0.1.0"

__all__ = ["Built", "Experiment", "FinishedRun", "advise", "build", "compose", "improve", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("graft.api"), name)
    raise AttributeError(f"module 'graft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
