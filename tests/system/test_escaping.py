"""Names of files and classes are escaped before a terminal prints them."""

import csv
import io
import logging
import logging.config
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from graft.cli import TASKS, main
from graft.config import conf_dir
from graft.config.registration import register
from graft.review.evaluation_tables import class_table, confusion_csv, most_confused
from graft.review.predictions import Prediction, prediction_table, writing
from graft.system.escaping import CsvWriter, PrintableFormatter, csv_cell, from_csv_cell, printable
from graft.system.terminal import PlainConsole

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\b\u202e[/red][bold]:dog:"


def control_characters(text: str) -> set[str]:
    return {character for character in text if not character.isprintable() and character not in "\n\t"}


@pytest.mark.parametrize("task", [task for task in TASKS if (conf_dir() / f"{task}.yaml").is_file()])
def test_the_log_of_every_command_is_printable(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    with initialize_config_dir(str(conf_dir())):
        config = compose(task, return_hydra_config=True)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for name in ("job_logging", "hydra_logging"):
        chosen = OmegaConf.masked_copy(config.hydra, name)[name]
        chosen.disable_existing_loggers = False
        if name == "job_logging":
            chosen.handlers.file.filename = str(tmp_path / "log")
        logging.config.dictConfig(OmegaConf.to_container(chosen))  # type: ignore[arg-type]
        try:
            logging.getLogger("graft").warning("%s", HOSTILE)
            try:
                raise ValueError(HOSTILE)
            except ValueError:
                logging.getLogger("graft").exception("failed")
        finally:
            for handler in set(root.handlers) - set(before):
                handler.close()
            root.handlers[:] = before
            root.setLevel(level)
    written = capsys.readouterr().out + ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else "")
    assert written.count("owned") >= 4
    assert not control_characters(written)


def test_an_error_is_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cats", HOSTILE.replace("/", "")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "photos" / name / f"{index}.jpg").write_bytes(b"broken")
    words = ["data=folder", f"data.root={tmp_path}/photos", "model=vgg_mini", "strategy=scratch"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, f"hydra.run.dir={tmp_path}/run"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        main("train")
    out, err = capsys.readouterr()
    assert "\\x1b]0;owned" in err
    assert not control_characters(out + err)


def test_tables_show_names_verbatim(tmp_path: Path) -> None:
    row = {"images": 3, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    tables = [class_table({HOSTILE: row}), prediction_table([Prediction(HOSTILE, (HOSTILE,), (1.0,), (0,))])]
    own = Table(title=HOSTILE)
    own.add_column(HOSTILE)
    own.add_row(HOSTILE)
    own.add_row(Text(HOSTILE))
    for table in (*tables, own):
        output = io.StringIO()
        PlainConsole(file=output, width=400).print(table)
        assert not control_characters(output.getvalue())
        assert "[/red][bold]:dog:" in output.getvalue()
    assert not control_characters(most_confused([HOSTILE, "b"], [[0, 1], [0, 0]]))


def test_a_stack_trace_in_the_log_is_printable() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (HOSTILE,), sys.exc_info())
    text = PrintableFormatter("%(message)s").format(record)
    assert text.count("owned") == 2
    assert not control_characters(text)


CELLS = ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "\n=1", "'=1", "''", "＝1", "a", "", "a\rb", 'a"b', "a,b", "-x"]


def test_predictions_and_confusions_contain_no_formulas_and_are_read_back(tmp_path: Path) -> None:
    with writing(tmp_path / "predictions.csv") as write:
        for name in CELLS:
            write(Prediction(name, (name, "other"), (0.75, 1e-5), (0, 1), true=name))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [from_csv_cell(row["image"]) for row in rows] == CELLS
    assert [from_csv_cell(row["predicted"]) for row in rows] == CELLS
    assert {row["probability"] for row in rows} == {"0.75"}
    header, *body = csv.reader(io.StringIO(confusion_csv(CELLS, [[0] * len(CELLS)] * len(CELLS)), newline=""))
    assert list(map(from_csv_cell, header[1:])) == [from_csv_cell(line[0]) for line in body] == CELLS
    for cell in (*header, *(cell for row in rows for cell in row.values())):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))


@pytest.mark.parametrize("value", [-1, -0.5, float("-inf"), 0, True, None])
def test_a_number_stays_a_number(value: float | None) -> None:
    assert csv_cell(value) is value


def test_every_line_break_is_quoted() -> None:
    text = io.StringIO()
    CsvWriter(text).writerow(["a\rb", "c\r\nd", "e\nf", "-1"])
    assert next(csv.reader(io.StringIO(text.getvalue(), newline=""))) == ["a\rb", "c\r\nd", "e\nf", "'-1"]


def test_printable_keeps_ordinary_text() -> None:
    text = "Müller, 벌, 🐝, café"
    assert printable(text) == text
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable("a\nb") == "a\\nb"
