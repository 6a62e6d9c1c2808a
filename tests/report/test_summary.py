"""Invalid summaries are read as far as they are valid, or skipped and named."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft.errors import DataError
from graft.report.comparison import as_csv, as_markdown, rows
from graft.report.page import as_page
from graft.report.summary import LARGEST, find_summaries, read_summary
from graft.tasks.compare import show

WHOLE: dict[str, Any] = {
    "status": "finished", "seed": 0, "seconds": 2.0, "fold": None, "epochs": 3, "attempts": 1, "identity": "0" * 16,
    "metrics": {"val/acc": 0.9, "test/acc": 0.8, "test/loss": 0.5}, "error": "", "overrides": ["optimizer.lr=0.1"],
    "config": {"model": "vgg16", "optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.999], "optimized_metric": "val/acc"},
    "checkpoint": "checkpoints/best.ckpt", "classes": ["ants", "bees"],
    "started": "2024-01-01T00:00:00+00:00",
    "data": {"content": "abc", "fingerprint": "abc", "root": "photos", "validates_on_test": False},
}  # fmt: skip

WRONG = (
    None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "", "[/red]", "\x1b]0;x\x07\x1b[2J", "../../x", "/etc",
    "\ud800", "x" * 5000, [], [None], [[[[[[[[[[1]]]]]]]]]], {}, {"": {}}, {"a": {"b": {"c": [{}]}}},
    {"val/acc": "much"}, {"val/acc": 10**400}, {"val/acc": True}, {"[bold]\n|": 1e308}, {"val/acc": float("-inf")},
)  # fmt: skip


def a_run(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(WHOLE | changed), errors="surrogatepass")
    return folder


def compared(folder: Path) -> str:
    """Everything that `graft compare` makes of the runs below `folder`."""
    show(folder)
    return "".join((folder / f"compare.{ending}").read_text() for ending in ("md", "csv", "html"))


@pytest.mark.parametrize("key", [*WHOLE, *(f"data.{key}" for key in WHOLE["data"])])
def test_any_wrong_value_of_any_key_is_accepted_or_named(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, _, name = key.rpartition(".")
    for number, value in enumerate(WRONG):
        changed = {group: WHOLE[group] | {name: value}} if group else {key: value}
        a_run(tmp_path / f"{number}", **changed)
    a_run(tmp_path / "good", config={"model": "good"})
    found, unreadable = find_summaries(tmp_path)
    assert len(found) + len(unreadable) == len(WRONG) + 1
    text = compared(tmp_path)
    printed = capsys.readouterr().out
    assert "good" in text
    assert "\x1b" not in printed
    if unreadable:
        assert f"{len(unreadable)} files could not be read" in printed
        assert str(unreadable[0].file) in printed


@pytest.mark.parametrize("key", ["status", "seed", "seconds", "metrics"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    a_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({name: value for name, value in WHOLE.items() if name != key}))
    with pytest.raises(DataError, match=f"{key} is missing"):
        read_summary(tmp_path / "summary.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(st.sampled_from(sorted(WHOLE)), JSON, min_size=1, max_size=4), whole=JSON)
def test_no_summary_breaks_the_tables(changed: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "changed", **changed)
    a_run(tmp_path / "good", config={"model": "good"})
    (tmp_path / "other").mkdir(exist_ok=True)
    (tmp_path / "other" / "summary.json").write_text(json.dumps(whole), errors="surrogatepass")
    found, unreadable = find_summaries(tmp_path)
    assert len(found) + len(unreadable) == 3
    table = rows(found)
    for text in (as_markdown(table), as_csv(table), as_page(table, "runs", unreadable).text):
        assert "good" in text
    assert len(as_markdown(table).splitlines()) == 2 + len(table)


FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.touch(),
    "torn": lambda file: file.write_text(json.dumps(WHOLE)[:-9]),
    "not UTF-8": lambda file: file.write_bytes(b'{"status": "\xff\xfe"}'),
    "a list": lambda file: file.write_text("[1, 2]"),
    "nested a million deep": lambda file: file.write_text("[" * 1_000_000),
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a dead link": lambda file: file.symlink_to("nowhere"),
    "a link to itself": lambda file: file.symlink_to(file),
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "too large": lambda file: (file.touch(), os.truncate(file, LARGEST + 1)),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_summary_are_skipped_counted_and_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    FILES[kind](tmp_path / "bad" / "summary.json")
    a_run(tmp_path / "good")
    assert "good" in compared(tmp_path)
    printed = capsys.readouterr().out
    assert "1 files could not be read" in printed
    assert str(tmp_path / "bad" / "summary.json") in printed


def test_flipped_bits_break_nothing(tmp_path: Path) -> None:
    content, draw = json.dumps(WHOLE).encode(), random.Random(0)
    a_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    for _ in range(200):
        position = draw.randrange(len(content))
        flipped = content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]
        (tmp_path / "bad" / "summary.json").write_bytes(flipped)
        found, unreadable = find_summaries(tmp_path)
        assert len(found) + len(unreadable) == 2
        assert as_markdown(rows(found))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    a_run(tmp_path / "closed").chmod(0)
    _, unreadable = find_summaries(tmp_path)
    assert [each.file for each in unreadable] == [tmp_path / "closed"]


def test_a_folder_with_an_undecodable_name_is_compared(tmp_path: Path) -> None:
    a_run(tmp_path / os.fsdecode(b"\xff\x1b[31m[red]"))
    a_run(tmp_path / "good", seed=1, config={"model": "\ud800"})
    assert "\\udcff\\x1b[31m[red]" in compared(tmp_path)
