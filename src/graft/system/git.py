"""Which commit a checkout is at, found without running what its `.git/config` names.

`git` runs programs that the configuration of a repository names (core.fsmonitor, filters), so that standing in a folder
from a stranger would be enough. The commit is read from the files; git only compares the files with it, in a repository
of ours that has the objects and the index of theirs, but not its configuration.
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
"""Bytes of a reference, and of a list of references or an index."""

SECONDS = 5.0


def checkout(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that `folder` (default: the working directory) is in; None outside of one.

    "changed" is None where git cannot tell.
    """
    found = _repository((folder or Path.cwd()).absolute())
    if found is None:
        return None
    tree, own, common = found
    commit = _commit(own, common)
    return None if commit is None else {"commit": commit, "changed": _changed(tree, own, common, commit)}


def _repository(folder: Path) -> tuple[Path, Path, Path] | None:
    """(work tree, its git folder, the one that all work trees share) of the checkout that holds `folder`."""
    for tree in (folder, *folder.parents):
        git = tree / ".git"
        if git.is_dir():
            return tree, git, git
        if git.is_file():  # a linked work tree or a submodule
            own = tree / _text(git).removeprefix("gitdir:").strip()
            return tree, own, own / (_text(own / "commondir").strip() or ".")
    return None


def _commit(own: Path, common: Path) -> str | None:
    """What HEAD points to."""
    name = "HEAD"
    for _ in range(5):
        said = _text(own / name).strip() or (_text(common / name).strip() if name != "HEAD" else "")
        said = said or _packed(common, name)
        if COMMIT.fullmatch(said):
            return said
        name = said.removeprefix("ref:").strip()
        if not REFERENCE.fullmatch(name):
            return None
    return None


def _packed(common: Path, name: str) -> str:
    lines = _text(common / "packed-refs", LARGE).splitlines()
    return next((commit for commit, _, rest in (line.partition(" ") for line in lines) if rest == name), "")


def _changed(tree: Path, own: Path, common: Path, commit: str) -> bool | None:
    """Whether files are not as in the commit, or new, by `git status` in a repository that has nothing but the objects
    and a copy of the index; submodules are not entered."""
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
    """The file's text; empty where it cannot be read or is longer."""
    try:
        return read_regular(file, most).decode(errors="replace")
    except OSError:
        return ""
