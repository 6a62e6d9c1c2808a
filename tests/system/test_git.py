"""The commit of a checkout is read without running programs that its configuration names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from graft.system.git import checkout

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *identity, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with two commits, whose second is checked out."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    for content in ("one", "two"):
        (folder / "file.txt").write_text(content)
        git(folder, "add", ".")
        git(folder, "commit", "-m", content)
    return folder


HOSTILE = """
[core]
    fsmonitor = "{program}"
    hooksPath = "{hooks}"
    pager = "{program}"
    sshCommand = "{program}"
    gitProxy = "{program}"
    editor = "{program}"
    alternateRefsCommand = "{program}"
[alias]
    status = "!{program}"
    rev-parse = "!{program}"
[diff]
    external = "{program}"
[filter "evil"]
    clean = "{program}"
    smudge = "{program}"
    process = "{program}"
    required = true
[include]
    path = more
[remote "origin"]
    url = ext::{program}
    promisor = true
    uploadpack = "{program}"
[submodule]
    recurse = true
"""


def test_a_hostile_configuration_runs_no_program(repository: Path, tmp_path: Path) -> None:
    program, mark, hooks = tmp_path / "program", tmp_path / "mark", tmp_path / "hooks"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-auto-gc"):
        (hooks / hook).symlink_to(program)
    commit = git(repository, "rev-parse", "HEAD")
    inner = repository / "inner"  # a repository within, as a submodule is
    inner.mkdir()
    git(inner, "init")
    git(inner, "commit", "--allow-empty", "-m", "inner")
    git(repository, "add", "inner")
    git(repository, "commit", "-m", "with inner")
    commit = git(repository, "rev-parse", "HEAD")
    untracked = repository / "untracked"
    untracked.mkdir()
    git(untracked, "init")
    for folder in (repository, inner, untracked):
        with (folder / ".git" / "config").open("a") as config:
            config.write(HOSTILE.format(program=program, hooks=hooks))
        (folder / ".git" / "more").write_text(f'[core]\n\tfsmonitor = "{program}"\n')
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    os.utime(repository / "file.txt", (1, 1))  # git must look into the file
    assert checkout(repository) == {"commit": commit, "changed": True}
    assert not mark.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True)
    assert mark.exists(), "git itself runs it: this test tells"


def test_committed_changed_and_new_files_are_distinguished(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "below").mkdir()
    assert checkout(repository / "below") == {"commit": commit, "changed": False}
    (repository / "file.txt").write_text("six")
    assert checkout(repository) == {"commit": commit, "changed": True}
    git(repository, "add", ".")
    assert checkout(repository) == {"commit": commit, "changed": True}
    git(repository, "commit", "-m", "three")
    assert checkout(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "changed": False}
    (repository / ".gitignore").write_text("ignored\n")
    (repository / "ignored").write_text("")
    git(repository, "add", ".gitignore")
    git(repository, "commit", "-m", "four")
    assert checkout(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "changed": False}
    (repository / "new.txt").write_text("")
    assert checkout(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "changed": True}


def test_packed_references_detached_heads_and_linked_work_trees_are_read(repository: Path, tmp_path: Path) -> None:
    first, second = git(repository, "rev-parse", "HEAD~1"), git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    git(repository, "gc")
    assert checkout(repository) == {"commit": second, "changed": False}
    git(repository, "worktree", "add", "-b", "other", str(tmp_path / "linked"), first)
    assert checkout(tmp_path / "linked") == {"commit": first, "changed": False}
    git(repository, "checkout", first)
    assert checkout(repository) == {"commit": first, "changed": False}


def test_outside_of_a_checkout_or_before_the_first_commit_there_is_none(tmp_path: Path) -> None:
    assert checkout(tmp_path) is None
    git(tmp_path, "init")
    assert checkout(tmp_path) is None


@pytest.mark.parametrize(
    "head", ["ref: ../../secret", "ref: refs/heads/../../../secret", "ref: HEAD", "x" * 10_000, ""]
)
def test_a_head_that_points_outside_the_repository_is_ignored(head: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a" * 40)
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / ".git" / "HEAD").write_text(head)
    assert checkout(tmp_path / "repository") is None


def test_a_reference_that_is_a_fifo_or_endless_is_not_read(repository: Path) -> None:
    branch = repository / ".git" / "refs" / "heads" / "main"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        branch.unlink()
        make(branch)
        assert checkout(repository) is None
