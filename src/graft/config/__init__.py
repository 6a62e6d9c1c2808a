"""The schema of every command, its parts named by `_target_`, and the folder of option files."""

from pathlib import Path

FEATURES = "graft-features"
"""The folder in `paths.cache` that holds the feature cache."""

COPIES = "graft-copies"
"""The folder in `paths.cache` that holds descriptions of images, by which their copies are recognised."""


def conf_dir() -> Path:
    """The folder of config groups: inside an installed package, else `conf/` of the checkout."""
    installed = Path(__file__).resolve().parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "conf"
