"""Predictions as files that other programs read, for any name of images and classes."""

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from graft.data.stream import Found
from graft.errors import ConfigError
from graft.review.annotate import LONGEST, annotated
from graft.review.predictions import Prediction, prediction_table, writing

AWKWARD = [
    Prediction('a,"b"\n.jpg', ("it's [red]", "x,y"), (0.75, 0.25), (7, 0)),
    Prediction("\x1b[31m.jpg", ("é", "日本"), (0.9999999, 1e-7), (1, 2)),
]


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".JSON"])
def test_written_predictions_are_read_back(ending: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / f"out{ending}"
    with writing(file) as write:
        for prediction in AWKWARD:
            write(prediction)
        assert not file.exists(), "it gets its name when it is whole"
    text = file.read_text()
    if ending == ".csv":
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
        read = [(r["image"], (r["predicted"], r["class_2"]), (r["probability"], r["probability_2"])) for r in rows]
        indices = [(int(row["index"]), int(row["index_2"])) for row in rows]
    else:
        values = json.loads(text) if ending.lower() == ".json" else [json.loads(line) for line in text.splitlines()]
        read = [
            (v["image"], *zip(*((p["class"], p["probability"]) for p in v["predictions"]), strict=True)) for v in values
        ]
        indices = [tuple(each["index"] for each in value["predictions"]) for value in values]
    assert indices == [prediction.indices for prediction in AWKWARD]
    assert [(image, tuple(names)) for image, names, _ in read] == [(p.image, p.classes) for p in AWKWARD]
    assert [[float(f) for f in figures] for _, _, figures in read] == [
        pytest.approx(list(p.probabilities), rel=1e-5) for p in AWKWARD
    ]


def test_an_undecodable_file_name_can_be_written(tmp_path: Path) -> None:
    name = str(Found(Path(os.fsdecode(b"caf\xe9.jpg")), "x"))
    with writing(tmp_path / "out.csv") as write:
        write(Prediction(name, ("a",), (1.0,), (0,)))
    assert r"caf\xe9.jpg" in (tmp_path / "out.csv").read_text()


def test_no_predictions_are_valid_json(tmp_path: Path) -> None:
    with writing(tmp_path / "out.json"):
        pass
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")

    def fail() -> None:
        with writing(tmp_path / "out.csv") as write:
            write(AWKWARD[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.csv", "old")]


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out\.txt.*\.csv, \.json, \.jsonl"), writing(tmp_path / "out.txt"):
        pass


def test_the_table_escapes_control_characters_in_names() -> None:
    console = Console(width=80, force_terminal=False, record=True)
    with console.capture() as captured:
        console.print(prediction_table(AWKWARD))
    assert "it's [red]" in captured.get()
    assert "\x1b[31m.jpg" not in captured.get()
    assert "75.00%" in captured.get()


def test_an_annotated_copy_shows_bars_as_long_as_the_probabilities() -> None:
    picture = Image.new("RGB", (1000, 500), (0, 200, 0))
    sheet = annotated(picture, Prediction("x", ("a", "b" * 500), (0.75, 0.25), (0, 1)))
    assert sheet.width == LONGEST
    assert sheet.getpixel((10, 10)) == (0, 200, 0)
    bars = [
        sum(sheet.getpixel((x, sheet.height - 24 * line + 1)) == (167, 205, 242) for x in range(LONGEST))
        for line in (2, 1)
    ]
    assert bars[0] == pytest.approx(0.75 * LONGEST, rel=0.1)
    assert bars[1] == pytest.approx(0.25 * LONGEST, rel=0.1)
    assert annotated(Image.new("RGB", (8, 8)), AWKWARD[1]).width == 320, "small pictures are magnified"
