"""Runs side by side."""

import csv
import io
import json
from pathlib import Path

import pytest

from graft.errors import DataError
from graft.review.comparison import as_csv, as_markdown, differing, read_summaries, rows, significance
from graft.tasks.compare import show


def a_run(folder: Path, *, seed: int, acc: float, status: str = "finished", **choices: object) -> None:
    folder.mkdir(parents=True)
    metrics = {"test/acc": acc, "val/acc": acc, "test/loss": 1 - acc}
    summary = {
        "status": status,
        "seed": seed,
        "seconds": 2.0,
        "metrics": metrics if status == "finished" else {},
    }
    (folder / "summary.json").write_text(
        json.dumps(summary | {"config": {"model": "vgg16", "strategy": "x", **choices}})
    )


def test_seeds_become_one_row_with_mean_and_deviation_best_first(tmp_path: Path) -> None:
    for seed, acc in enumerate((0.8, 0.9)):
        a_run(tmp_path / f"s{seed}", seed=seed, acc=acc, strategy="scratch")
        a_run(tmp_path / f"f{seed}", seed=seed, acc=acc + 0.05, strategy="finetune")
    found = rows(read_summaries(tmp_path))
    assert [row.choices["strategy"] for row in found] == ["finetune", "scratch"]
    assert found[0].text("test/acc") == "0.900 ± 0.071"
    assert found[0].folder == str(tmp_path / "f1")
    assert differing(found) == ["strategy"]


def test_losses_sort_upwards(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="a")
    a_run(tmp_path / "b", seed=0, acc=0.9, strategy="b")
    assert [row.choices["strategy"] for row in rows(read_summaries(tmp_path), "test/loss")] == ["b", "a"]


def test_configurations_that_differ_in_any_key_stay_apart(tmp_path: Path) -> None:
    for lr in (0.1, 0.01):
        a_run(tmp_path / str(lr), seed=0, acc=0.5, **{"optimizer.lr": lr})
    found = rows(read_summaries(tmp_path))
    assert len(found) == 2
    assert differing(found) == ["optimizer.lr"]


def test_what_follows_from_a_shown_choice_gets_no_column(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="scratch", **{"strategy.pretrained": False})
    a_run(tmp_path / "b", seed=0, acc=0.5, strategy="finetune", **{"strategy.pretrained": True})
    assert differing(rows(read_summaries(tmp_path))) == ["strategy"]


def test_a_failed_run_counts_in_no_mean_but_is_told(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5)
    a_run(tmp_path / "b", seed=1, acc=0.0, status="failed")
    (row,) = rows(read_summaries(tmp_path))
    assert row.text("test/acc") == "0.500"
    assert "1 (+1 failed)" in as_markdown([row])


def test_a_broken_summary_is_passed_over(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.json").write_text("{")
    assert len(read_summaries(tmp_path)) == 1


def test_csv_holds_every_figure_and_markdown_survives_bars(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.25, strategy="a|b,c")
    found = rows(read_summaries(tmp_path))
    (line,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert float(line["test/acc mean"]) == 0.25
    assert line["strategy"] == "a|b,c"
    a_run(tmp_path / "b", seed=0, acc=0.25, strategy="d")
    assert r"a\|b,c" in as_markdown(rows(read_summaries(tmp_path)))


def test_no_runs_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        show(tmp_path, sort="test/acc")


def test_the_difference_of_the_first_two_is_tested_paired_by_seed(tmp_path: Path) -> None:
    # The seeds differ far more than the configurations do.
    for seed, (a, b) in enumerate([(0.50, 0.48), (0.70, 0.69), (0.90, 0.87), (0.60, 0.58)]):
        a_run(tmp_path / f"a{seed}", seed=seed, acc=a, strategy="a")
        a_run(tmp_path / f"b{seed}", seed=seed, acc=b, strategy="b")
    a_run(tmp_path / "b9", seed=9, acc=0.0, strategy="b")  # has no partner
    said = significance(rows(read_summaries(tmp_path)), "test/acc")
    # differences .02 .01 .03 .02: mean .02, sd .008165, t = 4.899 with 3 degrees of freedom
    assert (
        said == "First against second by test/acc: +0.0200 ± 0.0082, paired by seed: paired t-test, n = 4, p = 0.016."
    )


def test_one_seed_is_not_enough_for_a_test(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="a")
    assert significance(rows(read_summaries(tmp_path)), "test/acc") is None
    a_run(tmp_path / "b", seed=0, acc=0.4, strategy="b")
    assert "1 seed in common" in str(significance(rows(read_summaries(tmp_path)), "test/acc"))


def test_what_became_of_the_others_and_the_best_checkpoint_are_told(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "pruned", "failed", "pruned")):
        a_run(tmp_path / f"{number}", seed=number, acc=0.5, status=status)
    file = tmp_path / "0" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "checkpoints/best.ckpt"}))
    found = rows(read_summaries(tmp_path))
    assert "| 1 (+1 failed, +2 pruned) |" in as_markdown(found)
    assert "| 0/checkpoints/best.ckpt |" in as_markdown(found)
    (line,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert (line["failed"], line["pruned"], line["interrupted"]) == ("1", "2", "0")
    assert line["checkpoint"] == str(tmp_path / "0/checkpoints/best.ckpt")
