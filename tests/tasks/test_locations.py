"""Nothing is written into a data set, and no data set may be in the cache folder."""

import os
from pathlib import Path
from typing import Any

import pytest
from commands import command, train
from image_folders import fill, state

import graft
from graft.errors import ConfigError
from graft.tasks.locations import FEATURES, check_locations, check_written

NAMES = {"a": 12, "b": 12}
SMALL = (
    "model=vgg_mini", "model.weights=bundled", "data=folder", "strategy=feature_extract", "augment=none",
    "trainer.max_epochs=1", "review=none", "logger=none", "callbacks.progress=none", "trainer.baseline=false",
)  # fmt: skip


def check(root: Path | str, written: Path | str | None = None, **paths: Path | str) -> None:
    words = [f"paths.{name}='{path}'" for name, path in paths.items()]
    config: Any = graft.compose("data=folder", "strategy=scratch", f"data.root='{root}'", *words).config
    check_locations(config, {"hydra.run.dir": written})


def test_the_cache_must_be_outside_of_the_data_set(tmp_path: Path) -> None:
    root = fill(tmp_path / "data" / "flowers", NAMES)
    check(root, tmp_path / "outputs", cache=tmp_path / "cache")
    check(root, tmp_path / "outputs", cache=tmp_path / "data-cache")
    check(root, tmp_path / "data" / "flowers-outputs", cache=tmp_path / "data" / "cache")
    for cache in (root, root / "cache", root / "a" / "deep" / "cache"):
        with pytest.raises(ConfigError, match=r"(?s)paths\.cache=.*: is in data\.root=.*or set cache=none"):
            check(root, cache=cache)
    for cache in (tmp_path, tmp_path / "data"):
        with pytest.raises(ConfigError, match=r"(?s)data\.root=.*: is in paths\.cache=.*or cache=none"):
            check(root, cache=cache)
    config: Any = graft.compose("data=folder", f"data.root={root}", f"paths.cache={root}", "cache=none").config
    check_locations(config, {})


def test_links_are_followed_both_ways(tmp_path: Path) -> None:
    root = fill(tmp_path / "real" / "flowers", NAMES)
    outside, linked, inside = tmp_path / "outside", tmp_path / "linked", tmp_path / "to_the_data"
    linked.symlink_to(root)
    inside.symlink_to(root / "a")
    for data, written in ((linked, root / "run"), (root, linked / "run"), (root, inside / "run" / "1")):
        with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*: is in data\.root"):
            check(data, written)
    (outside / FEATURES).parent.mkdir()
    (outside / FEATURES).symlink_to(root)
    with pytest.raises(ConfigError, match=r"paths\.cache=.*: is in data\.root"):
        check(root, cache=outside)


@pytest.mark.parametrize("below", ["", "train"])
def test_classes_that_are_linked_into_the_set_belong_to_it(below: str, tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "set" / below, fill(tmp_path / "elsewhere", NAMES)
    root.mkdir(parents=True)
    (root / "a").symlink_to(elsewhere / "a")
    with pytest.raises(ConfigError, match=r"is in data\.root"):
        check(tmp_path / "set", elsewhere / "a" / "run")
    check(tmp_path / "set", elsewhere / "run")


def test_a_loop_of_links_and_a_new_folder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check(tmp_path / "loop", tmp_path / "run", cache=tmp_path / "cache")
    check(tmp_path / "not_yet", tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"is in data\.root"):
        check(tmp_path / "not_yet", tmp_path / "not_yet" / "run")


def test_a_data_set_without_a_folder_allows_any_cache_folder(tmp_path: Path) -> None:
    config: Any = graft.compose("data=digits", f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}").config
    check_locations(config, {"hydra.run.dir": tmp_path})
    check_written(None, "outputs", {"folder": "/"})


def test_a_data_set_around_the_working_directory_is_refused_with_a_folder_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "photos", NAMES)
    monkeypatch.chdir(root)
    words = rf"paths\.outputs=outputs: is in data\.root=\..*\n.*paths\.outputs={tmp_path}/photos-outputs\."
    with pytest.raises(ConfigError, match=words):
        check(".", "outputs/train/now")
    check(".", "../photos-outputs/train/now", outputs="../photos-outputs", cache="../photos-outputs/cache")
    check("../photos/a", "outputs/train/now")
    with pytest.raises(ConfigError, match=r"paths\.outputs=outputs: is in data\.root"):
        graft.train("data=folder", "data.root=.", "strategy=scratch")
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_bind_mount_is_the_same_folder(tmp_path: Path) -> None:
    import subprocess

    root, other = fill(tmp_path / "photos", NAMES), tmp_path / "other"
    other.mkdir()
    if subprocess.run(["mount", "--bind", str(root), str(other)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(ConfigError, match=r"is in data\.root"):
            check(root, other / "run")
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_a_command_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", NAMES)
    before = state(tmp_path)
    run = (str(Path(__file__).resolve().parents[2] / "train.py"), *SMALL)
    for cwd, words, text in (
        (root, ("data.root=.",), "paths.outputs=outputs: is in data.root=."),
        (tmp_path, (f"data.root={root}", f"hydra.run.dir={root}/run"), f"hydra.run.dir={root}/run: is in"),
        (tmp_path, (f"data.root={root}", "paths.cache=."), f"data.root={root}: is in paths.cache=."),
        (root, ("-m", "data.root=.", "seed=0,1"), "paths.outputs=outputs: is in data.root=."),
        (root, ("-m", "data.root=/elsewhere,.", "sweep_name=x"), "paths.outputs=outputs: is in data.root=."),
    ):
        done = command(cwd / "none", *run, *words)
        assert (done.code, text in done.err) == (1, True), done.err
        assert "Traceback" not in done.err
        assert state(tmp_path) == before, words


def test_neighbours_of_a_cache_survive_a_run(tmp_path: Path) -> None:
    """`paths.cache` is a folder in which there is something else, at the default cache.max_gb."""
    backup = fill(tmp_path / "shared" / "backup", NAMES)
    root = fill(tmp_path / "photos", NAMES)
    before = state(backup)
    done = train(tmp_path / "run", *SMALL, f"data.root={root}", f"paths.cache={tmp_path}/shared", "cache=features")
    assert done.code == 0, done.err
    assert done.summary["cache"]["folder"] == str(tmp_path / "shared" / FEATURES)
    assert state(backup) == before
