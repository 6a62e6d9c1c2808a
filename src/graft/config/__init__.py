"""Where the configuration lives and what it may say."""

from pathlib import Path


def conf_dir() -> Path:
    """The folder of config groups: inside an installed package, else `conf/` of the checkout."""
    installed = Path(__file__).resolve().parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "conf"
