"""Tables that compare runs."""

import csv
import html
import io
import json
import re
from pathlib import Path

import pytest

from graft.errors import ConfigError, DataError
from graft.report.comparison import Row, as_csv, as_markdown, differing, rows, significance
from graft.report.page import as_page
from graft.report.summary import find_summaries
from graft.system.escaping import FORMULA, from_csv_cell, printable
from graft.system.terminal import PlainConsole
from graft.tasks.compare import show, show_table


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


def rows_of(folder: Path, sort: str | None = None) -> list[Row]:
    return rows(find_summaries(folder)[0], sort)


def test_seeds_become_one_row_with_mean_and_deviation_best_first(tmp_path: Path) -> None:
    for seed, acc in enumerate((0.8, 0.9)):
        a_run(tmp_path / f"s{seed}", seed=seed, acc=acc, strategy="scratch")
        a_run(tmp_path / f"f{seed}", seed=seed, acc=acc + 0.05, strategy="finetune")
    found = rows_of(tmp_path)
    assert [row.choices["strategy"] for row in found] == ["finetune", "scratch"]
    assert found[0].text("test/acc") == "0.900 ± 0.071"
    assert found[0].folder == str(tmp_path / "f1")
    assert differing(found) == ["strategy"]


def test_losses_sort_upwards(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="a")
    a_run(tmp_path / "b", seed=0, acc=0.9, strategy="b")
    assert [row.choices["strategy"] for row in rows_of(tmp_path, "test/loss")] == ["b", "a"]


def test_rows_are_ordered_in_the_direction_that_the_summaries_record(tmp_path: Path) -> None:
    for number, (ece, acc) in enumerate(((0.3, 0.9), (0.1, 0.5))):
        a_run(tmp_path / str(number), seed=0, acc=acc, strategy=str(number), optimized_metric="val/ece")
        content = json.loads((tmp_path / str(number) / "summary.json").read_text())
        content["metrics"]["val/ece"] = ece
        (tmp_path / str(number) / "summary.json").write_text(json.dumps(content | {"higher_is_better": {"ece": False}}))
    found = rows_of(tmp_path)
    assert [row.choices["strategy"] for row in found] == ["1", "0"]
    assert [row.best.metrics["val/ece"] for row in found] == [0.1, 0.3]
    assert [row.choices["strategy"] for row in rows_of(tmp_path, "val/acc")] == ["0", "1"]


def test_configurations_that_differ_in_any_key_are_separate_rows(tmp_path: Path) -> None:
    for lr in (0.1, 0.01):
        a_run(tmp_path / str(lr), seed=0, acc=0.5, **{"optimizer.lr": lr})
    found = rows_of(tmp_path)
    assert len(found) == 2
    assert differing(found) == ["optimizer.lr"]


def test_columns_implied_by_another_come_after_the_metrics(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="scratch", **{"strategy.pretrained": False})
    a_run(tmp_path / "b", seed=0, acc=0.5, strategy="finetune", **{"strategy.pretrained": True})
    found = rows_of(tmp_path)
    assert differing(found) == ["strategy", "strategy.pretrained"]
    header = as_markdown(found).splitlines()[0].strip("| ").split(" | ")
    assert header[0] == "strategy"
    assert header[-1] == "strategy.pretrained"


def test_every_key_that_was_searched_is_shown_first(tmp_path: Path) -> None:
    """As after sweep=finetune: the options of the groups alone would distinguish all rows."""
    for number, (freeze, augment, lr, multiplier) in enumerate(
        [("none", "basic", 0.1, 0.5), ("none", "none", 0.01, 0.1), ("features", "basic", 0.001, 0.2)]
    ):
        keys = {"optimizer.lr": lr, "strategy.lr_multipliers.features": multiplier, "freeze.every": number}
        words = [f"augment={augment}", f"freeze={freeze}", *(f"{key}={value}" for key, value in [*keys.items()][:2])]
        config = {"augment": augment, "freeze": freeze, "trainer.max_epochs": 3 + 2 * (number % 2), **keys}
        a_run(tmp_path / f"{number}", seed=0, acc=0.5, **config)
        change(tmp_path / f"{number}", overrides=words, epochs=3 + 2 * (number % 2))
    found = rows_of(tmp_path)
    searched = ["augment", "freeze", "optimizer.lr", "strategy.lr_multipliers.features"]
    assert differing(found) == [*searched, "trainer.max_epochs", "freeze.every"]
    console = io.StringIO()
    show_table(PlainConsole(file=console, width=240), found, "runs")
    for text in (as_markdown(found), as_page(found, "runs").text, console.getvalue()):
        assert all(name in text for name in [*searched, "trainer.max_epochs", "epochs"])


@pytest.mark.parametrize(("width", "omitted"), [(100, "freeze, strategy.x, strategy.y"), (130, "strategy.y")])
def test_a_narrow_terminal_names_the_columns_that_it_cannot_show(width: int, omitted: str, tmp_path: Path) -> None:
    for name in "ab":
        keys = {f"strategy.{key}": name * 20 for key in "xy"}
        a_run(tmp_path / name, seed=0, acc=0.5, strategy=name, freeze=name * 40, **keys)
    text = io.StringIO()
    show_table(PlainConsole(file=text, width=width), rows_of(tmp_path), "runs")
    *table, last = text.getvalue().splitlines()
    assert last == f"different too (see compare.md): {omitted}"
    assert "0.500" in "".join(table)
    assert max(map(len, table)) <= width


# -- what is an experiment ---------------------------------------------------------------------------------------------


def change(folder: Path, **changed: object) -> None:
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"content": "two", "root": "TWO"}},
        {"data": {"content": "two", "root": "BASE"}},
        {"classes": ["a", "c"]},
        {"config": {"model": "vgg16", "strategy": "x", "optimized_metric": "val/loss"}},
    ],
)
def test_runs_on_other_data_classes_or_metrics_are_not_averaged(other: dict[str, object], tmp_path: Path) -> None:
    config = {"model": "vgg16", "strategy": "x", "optimized_metric": "val/acc"}
    for number, acc in enumerate((0.083, 1.0)):
        a_run(tmp_path / f"{number}", seed=number, acc=acc)
        change(tmp_path / f"{number}", config=config, classes=["a", "b"], data={"content": "one", "root": "BASE"})
    change(tmp_path / "1", **other)
    found = rows_of(tmp_path)
    assert sorted(row.text("test/acc") for row in found) == ["0.083", "1.000"]
    lines = as_markdown(found).splitlines()[2:]
    assert lines[0].split("|")[1] != lines[1].split("|")[1], "the first column says in what they differ"


def test_the_same_data_in_two_folders_are_one_experiment(tmp_path: Path) -> None:
    for seed, root in enumerate(("/here", "/there")):
        a_run(tmp_path / f"{seed}", seed=seed, acc=0.5)
        change(tmp_path / f"{seed}", classes=["a", "b"], data={"content": "one", "root": root})
    assert len(rows_of(tmp_path)) == 1


def test_a_run_that_failed_before_its_data_were_read_is_grouped_with_its_seeds(tmp_path: Path) -> None:
    for seed, root in enumerate(("BASE", "BASE", "TWO")):
        a_run(tmp_path / f"{seed}", seed=seed, acc=0.5)
        change(tmp_path / f"{seed}", classes=["a", "b"], data={"content": root, "root": root})
    a_run(tmp_path / "3", seed=3, acc=0.0, status="failed")
    change(tmp_path / "3", data={"root": "BASE"})
    assert sorted(row.runs() for row in rows_of(tmp_path)) == ["1", "2 (+1 failed)"]


# -- what is best ------------------------------------------------------------------------------------------------------


def figures(folder: Path, seed: int, strategy: str, metric: str = "val/acc", **values: float) -> None:
    a_run(folder, seed=seed, acc=0.5, strategy=strategy, optimized_metric=metric)
    change(folder, metrics={name.replace("_", "/"): value for name, value in values.items()}, checkpoint="best.ckpt")


@pytest.mark.parametrize(("metric", "best"), [("val/acc", "b"), ("val/loss", "a"), ("test/acc", "b")])
def test_rows_and_checkpoints_are_ordered_by_what_was_optimized_on_the_validation(
    metric: str, best: str, tmp_path: Path
) -> None:
    figures(tmp_path / "a0", 0, "a", metric, val_acc=0.6, val_loss=0.1, test_acc=0.9)
    figures(tmp_path / "a1", 1, "a", metric, val_acc=0.7, val_loss=0.2, test_acc=0.8)
    figures(tmp_path / "b0", 0, "b", metric, val_acc=0.9, val_loss=0.8, test_acc=0.1)
    found = rows_of(tmp_path)
    assert found[0].choices["strategy"] == best
    of_a = next(row for row in found if row.choices["strategy"] == "a")
    assert of_a.folder == str(tmp_path / ("a0" if metric == "val/loss" else "a1")), "not by the 0.9 on the test images"


def test_a_metric_that_is_nan_is_the_worst(tmp_path: Path) -> None:
    figures(tmp_path / "a", 0, "a", "val/loss", val_loss=float("nan"))
    figures(tmp_path / "b", 0, "b", "val/loss", val_loss=5.0)
    figures(tmp_path / "c", 0, "c", "val/loss", val_loss=float("inf"))
    assert rows_of(tmp_path)[0].choices["strategy"] == "b"


def test_ordering_by_a_test_metric_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures(tmp_path / "a", 0, "a", val_acc=0.6, test_acc=0.9)
    figures(tmp_path / "b", 0, "b", val_acc=0.9, test_acc=0.6)
    show(tmp_path, sort="test/acc")
    assert "not to choose a run by" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Did you mean val/acc"):
        show(tmp_path, sort="val/ac")
    show(tmp_path)
    assert "not to choose a run by" not in capsys.readouterr().out


def test_the_table_notes_validation_on_the_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures(tmp_path / "a", 0, "a", val_acc=0.6)
    figures(tmp_path / "b", 0, "b", val_acc=0.9)
    show(tmp_path)
    assert "validated on" not in capsys.readouterr().out
    change(tmp_path / "b", data={"validates_on_test": True})
    show(tmp_path)
    printed = capsys.readouterr().out
    assert "validated on" in printed
    assert "their test metrics are too optimistic" in printed
    for file in ("compare.md", "compare.html"):
        assert "the test images" in (tmp_path / file).read_text()
    assert "other images" not in (tmp_path / "compare.csv").read_text(), "nothing is known of the other run"


# -- what a table is shown in ------------------------------------------------------------------------------------------

AWKWARD = ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "'=1", "'", "＝1", "a,b", 'a"b', "<img src=x>", "a|b",
           "[x](y)", "![x](http://a)", "`x`", "*x*", "_x_", "a\nb", "\x1b[31m", "&lt;", "\\", "~~x~~",
           "a_b", "$x$")  # fmt: skip


def test_no_spreadsheet_evaluates_a_cell_and_all_are_read_back(tmp_path: Path) -> None:
    for number, text in enumerate(AWKWARD):
        a_run(tmp_path / f"{number}", seed=0, acc=-0.25, strategy=text, **{f"{text}.x": -1})
    lines = list(csv.reader(io.StringIO(as_csv(rows_of(tmp_path)), newline="")))
    number = re.compile(r"-?\d+(\.\d+)?")
    for cell in (cell for line in lines for cell in line):
        assert not cell.startswith(FORMULA) or number.fullmatch(cell), "a number, or no formula"
    header, *body = [[from_csv_cell(cell) for cell in line] for line in lines]
    assert {line[header.index("strategy")] for line in body} == set(AWKWARD)
    assert {f"{text}.x" for text in AWKWARD} <= set(header)
    assert {float(line[header.index("val/acc mean")]) for line in body} == {-0.25}


def test_markdown_shows_every_cell_verbatim(tmp_path: Path) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    for number, text in enumerate(AWKWARD):
        a_run(tmp_path / f"{number}", seed=0, acc=0.5, strategy=text)
    page = as_markdown(rows_of(tmp_path))
    assert len(page.splitlines()) == 2 + len(AWKWARD)
    shown = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(page)
    assert set(re.findall(r"<(\w+)", shown)) == {"table", "thead", "tbody", "tr", "th", "td"}
    cells = [html.unescape(cell) for cell in re.findall(r"<tr>\s*<td>(.*?)</td>", shown)]
    assert set(cells) == {printable(text) for text in AWKWARD}


def test_a_failed_run_is_reported_and_not_averaged(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5)
    a_run(tmp_path / "b", seed=1, acc=0.0, status="failed")
    (row,) = rows_of(tmp_path)
    assert row.text("test/acc") == "0.500"
    assert "1 (+1 failed)" in as_markdown([row])


def test_csv_contains_every_metric_and_markdown_escapes_bars(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.25, strategy="a|b,c")
    found = rows_of(tmp_path)
    (line,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert float(line["test/acc mean"]) == 0.25
    assert line["strategy"] == "a|b,c"
    a_run(tmp_path / "b", seed=0, acc=0.25, strategy="d")
    assert r"a\|b,c" in as_markdown(rows_of(tmp_path))


def test_a_folder_without_runs_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        show(tmp_path, sort="test/acc")


def test_the_difference_of_the_first_two_is_tested_paired_by_seed(tmp_path: Path) -> None:
    # The seeds differ far more than the configurations do.
    for seed, (a, b) in enumerate([(0.50, 0.48), (0.70, 0.69), (0.90, 0.87), (0.60, 0.58)]):
        a_run(tmp_path / f"a{seed}", seed=seed, acc=a, strategy="a")
        a_run(tmp_path / f"b{seed}", seed=seed, acc=b, strategy="b")
    a_run(tmp_path / "b9", seed=9, acc=0.0, strategy="b")  # has no partner
    text = significance(rows_of(tmp_path), "test/acc")
    # differences .02 .01 .03 .02: mean .02, sd .008165, t = 4.899 with 3 degrees of freedom
    assert (
        text == "First against second by test/acc: +0.0200 ± 0.0082, paired by seed: paired t-test, n = 4, p = 0.016."
    )


def test_one_seed_is_not_enough_for_a_test(tmp_path: Path) -> None:
    a_run(tmp_path / "a", seed=0, acc=0.5, strategy="a")
    assert significance(rows_of(tmp_path), "test/acc") is None
    a_run(tmp_path / "b", seed=0, acc=0.4, strategy="b")
    assert "1 seed in common" in str(significance(rows_of(tmp_path), "test/acc"))


def test_unfinished_runs_and_the_best_checkpoint_are_reported(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "pruned", "failed", "pruned")):
        a_run(tmp_path / f"{number}", seed=number, acc=0.5, status=status)
    file = tmp_path / "0" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "checkpoints/best.ckpt"}))
    found = rows_of(tmp_path)
    assert "| 1 (+1 failed, +2 pruned) |" in as_markdown(found)
    assert "| 0/checkpoints/best.ckpt |" in as_markdown(found)
    (line,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert (line["failed"], line["pruned"], line["interrupted"]) == ("1", "2", "0")
    assert line["checkpoint"] == str(tmp_path / "0/checkpoints/best.ckpt")
