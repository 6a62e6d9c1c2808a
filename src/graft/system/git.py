"""Commit of a checkout, determined without running programs that its `.git/config` names.

`git` runs programs that the configuration of a repository names (core.fsmonitor, filters), so that working in an
untrusted folder would be enough to run them. The commit is read from the files. git only compares the files with it, in
a temporary repository with the objects and the index of the checkout, but not its configuration.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from graft.system.files import read_regular

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REFERENCE = re.compile(r"refs/(?!.*\.\.)[\w./+@-]+", re.ASCII)

SMALL, LARGE = 2**12, 2**26
"""Largest size in bytes of a reference, and of a list of references or an index."""

SECONDS = 5.0


def checkout(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that contains `folder` (default: the working directory), and whether files are changed.

    Returns:
        {"commit": hash, "changed": bool, or None if git cannot tell}; None outside of a checkout.
    """
    found = _repository((folder or Path.cwd()).absolute())
    if found is None:
        return None
    tree, own, common = found
    commit = _commit(own, common)
    return None if commit is None else {"commit": commit, "changed": _changed(tree, own, common, commit)}


def _repository(folder: Path) -> tuple[Path, Path, Path] | None:
    """(work tree, its git folder, the git folder shared by all work trees) of the checkout that contains `folder`."""
    for tree in (folder, *folder.parents):
        git = tree / ".git"
        if git.is_dir():
            return tree, git, git
        if git.is_file():  # a linked work tree or a submodule
            own = tree / _text(git).removeprefix("gitdir:").strip()
            return tree, own, own / (_text(own / "commondir").strip() or ".")
    return None


def _commit(own: Path, common: Path) -> str | None:
    """The commit that HEAD points to."""
    name = "HEAD"
    for _ in range(5):
        content = _text(own / name).strip() or (_text(common / name).strip() if name != "HEAD" else "")
        content = content or _packed(common, name)
        if COMMIT.fullmatch(content):
            return content
        name = content.removeprefix("ref:").strip()
        if not REFERENCE.fullmatch(name):
            return None
    return None


def _packed(common: Path, name: str) -> str:
    lines = _text(common / "packed-refs", LARGE).splitlines()
    return next((commit for commit, _, rest in (line.partition(" ") for line in lines) if rest == name), "")


def _changed(tree: Path, own: Path, common: Path, commit: str) -> bool | None:
    """Whether files are changed or new since the commit; submodules are ignored.

    Runs `git status` in a temporary repository with the objects and a copy of the index.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
        "GIT_WORK_TREE": str(tree),
        "GIT_OBJECT_DIRECTORY": str(common / "objects"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    kind = "sha256" if len(commit) == 64 else "sha1"
    try:
        with tempfile.TemporaryDirectory(prefix="graft-git-") as name:
            blank = Path(name)
            for part in ("objects", "refs", "info"):
                (blank / part).mkdir()
            (blank / "HEAD").write_text(f"{commit}\n")
            (blank / "index").write_bytes(read_regular(own / "index", LARGE))
            (blank / "info" / "exclude").write_text(_text(common / "info" / "exclude", LARGE))
            (blank / "config").write_text(
                f"[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = {kind}\n"
            )
            words = ["git", "status", "--porcelain", "--ignore-submodules=all"]
            done = subprocess.run(
                words, cwd=tree, env=environment | {"GIT_DIR": name}, capture_output=True, timeout=SECONDS, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout.strip())


def _text(file: Path, most: int = SMALL) -> str:
    """Text of a file; empty if it cannot be read or is longer than `most` bytes."""
    try:
        return read_regular(file, most).decode(errors="replace")
    except OSError:
        return ""
