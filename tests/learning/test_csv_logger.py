"""metrics.csv"""

import csv
import os
from pathlib import Path

import pytest

from graft.errors import DataError
from graft.learning.csv_logger import TableLogger


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_step_regardless_of_the_order(tmp_path: Path) -> None:
    table = TableLogger(tmp_path / "metrics.csv")
    table.log_metrics({"val/loss": 0.5, "epoch": 0}, 0)
    table.save()
    table.log_metrics({"train/loss": 0.25, "epoch": 0}, 20)
    table.save()
    table.log_metrics({"val/loss": 0.125, "epoch": 0}, 20)
    table.log_metrics({"val/loss": 0.1, "epoch": 1}, 40)
    table.save()
    assert read(table.path) == [
        {"step": "0", "epoch": "0", "val/loss": "0.5", "train/loss": ""},
        {"step": "20", "epoch": "0", "val/loss": "0.125", "train/loss": "0.25"},
        {"step": "40", "epoch": "1", "val/loss": "0.1", "train/loss": ""},
    ]


def test_rows_are_written_during_a_long_epoch(tmp_path: Path) -> None:
    """Nothing is saved, yet each step is there when the next one comes, whole."""
    table = TableLogger(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        table.log_metrics({"train/loss": 1 / step, "epoch": 0}, step)
        table.log_metrics({"lr/head": 0.5}, step)
    assert [(row["step"], row["train/loss"], row["lr/head"]) for row in read(table.path)] == [
        ("10", "0.1", "0.5"),
        ("20", "0.05", "0.5"),
    ]


def test_appending_gives_the_same_file_as_writing_at_once(tmp_path: Path) -> None:
    often, once = TableLogger(tmp_path / "often.csv"), TableLogger(tmp_path / "once.csv")
    for step in range(5):
        for table in (often, once):
            table.log_metrics({"train/loss": 1 / (step + 3), "epoch": step // 2}, step)
        often.save()
    once.finalize("success")
    assert often.path.read_bytes() == once.path.read_bytes()


def test_a_class_may_have_a_comma_a_quotation_mark_or_two_lines_in_its_name(tmp_path: Path) -> None:
    names = ["test/acc/a,b", 'test/acc/"c"', "test/acc/d\ne", "test/acc/f\rg", "test/acc/벌"]
    for step in range(2):
        table = TableLogger(tmp_path / "metrics.csv")  # goes on with what is there
        table.log_metrics(dict.fromkeys(names, 0.5 + step), step)
        table.save()
    assert [[row[name] for name in names] for row in read(table.path)] == [["0.5"] * 5, ["1.5"] * 5]


def test_resuming_drops_the_rows_that_are_logged_again(tmp_path: Path) -> None:
    whole = TableLogger(tmp_path / "whole.csv")
    for step in range(4):
        whole.log_metrics({"train/loss": step / 7, "epoch": 0}, step)
    whole.save()
    before = whole.path.read_bytes()
    resumed = TableLogger(tmp_path / "whole.csv")
    resumed.resume_after(1)
    for step in (2, 3):
        resumed.log_metrics({"train/loss": step / 7, "epoch": 0}, step)
    resumed.save()
    assert whole.path.read_bytes() == before


WHOLE = "step,epoch,train/loss\n0,0,0.5\n10,0,0.25\n"


@pytest.mark.parametrize("torn", ["20,0,0.1", "20,0", "2", "20,0,1e", ",,", '"20', "\0\0\0\0", "20,0,0.1,7", "\x1b"])
def test_a_torn_last_line_is_dropped_with_a_warning(
    torn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(WHOLE + torn)
    table = TableLogger(path)
    assert [row["step"] for row in table.rows] == [0, 10]
    assert "last line is incomplete" in caplog.text
    table.log_metrics({"train/loss": 0.125, "epoch": 0}, 20)
    table.finalize("success")
    assert path.read_text() == WHOLE + "20,0,0.125\n"


@pytest.mark.parametrize("torn", ["", "step", "step,epoch,tra"])
def test_a_torn_first_line_leaves_an_empty_table(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(torn)
    table = TableLogger(path)
    table.log_metrics({"train/loss": 0.5, "epoch": 0}, 0)
    table.finalize("success")
    assert path.read_text() == "step,epoch,train/loss\n0,0,0.5\n"


def test_damaged_lines_are_dropped_counted_and_kept_in_a_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    damaged = (
        b"step,epoch,train/loss\n0,0,0.5\n1\xff,0,0.3\n2,0,0.2,0.1\nx,0,1\ninf,0,1\n"
        + b"9" * 200_000
        + b",0,1\n10,0,0.25\n"
    )
    path.write_bytes(damaged)
    table = TableLogger(path)
    assert [row["step"] for row in table.rows] == [0, 10]
    assert "(5)" in caplog.text
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == damaged
    table.finalize("success")
    assert path.read_text() == WHOLE


def test_a_named_pipe_as_metrics_csv_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(DataError, match=r"metrics\.csv: not a regular file"):
        TableLogger(tmp_path / "metrics.csv")
