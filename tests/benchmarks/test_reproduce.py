"""The table of results agrees with the stored runs and has a row for every preset."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reproduce
from benchmarks.rows import ROWS, Row
from graft.config import conf_dir

OURS = {"quickstart", "cifar10_vgg_mini", "cifar10_vgg_mini_polish", "imagenet_predict"}
"""The first has its figures in the README, the next two in the bundled weights, the last has none."""


def entry(row: str, seed: int, machine: str, accuracy: float) -> dict[str, Any]:
    return {"row": row, "seed": seed, "machine": machine, "precision": "32-true", "seconds": 10.0,
            "metrics": {"test/acc": accuracy, "train/loss": 0.25}, "val/acc": [0.5, accuracy]}  # fmt: skip


def test_every_preset_has_a_row() -> None:
    presets = {file.stem for file in (conf_dir() / "experiment").glob("*.yaml")}
    assert {row.preset for row in ROWS if row.preset and not row.example} == presets - OURS
    assert len({row.folder for row in ROWS}) == len(ROWS)


def test_the_page_in_the_docs_is_generated_from_the_stored_runs() -> None:
    stored = json.loads((reproduce.DOCS / "results.json").read_text())
    assert (reproduce.DOCS / "results.md").read_text() == reproduce.page(stored)


def test_seeds_are_averaged_into_one_line_per_machine() -> None:
    name = "cifar10_vgg16"
    text = reproduce.page([entry(name, 0, "here", 0.7), entry(name, 1, "here", 0.8), entry(name, 0, "there", 0.9)])
    assert "| 0.750 ± 0.071 | 0.750 ± 0.071 | 0 1 | 10 | here, 32-true |" in text
    assert "| 0.900 | 0.900 | 0 | 10 | there, 32-true |" in text


def test_a_run_that_never_validated_has_no_best_validation() -> None:
    text = reproduce.page([entry("cifar10_speed", 0, "here", 0.7) | {"val/acc": []}])
    (line,) = (line for line in text.splitlines() if line.startswith("| `cifar10_speed`"))
    assert "| 0.700 | – | 0 |" in line
    assert "nan" not in text
    assert "Validation accuracy by epoch" not in text


def test_a_new_run_replaces_the_old_one_of_the_same_machine_only() -> None:
    old = [entry("cifar10_vgg16", 0, "here", 0.1), entry("cifar10_vgg16", 0, "there", 0.2), entry("gone", 0, "here", 1)]
    found = reproduce.merged(old, [entry("cifar10_vgg16", 0, "here", 0.3)])
    assert [(each["machine"], each["metrics"]["test/acc"]) for each in found] == [("here", 0.3), ("there", 0.2)]


def test_finished_runs_are_reused_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("quick", "quickstart", "Chapter", overrides=("strategy=finetune", "trainer.max_epochs=2"), seeds=(3,))
    monkeypatch.setattr(reproduce, "ROWS", (row,))
    monkeypatch.setattr(reproduce, "DOCS", tmp_path)
    words = ["--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["run", "quick", *words])
    assert ended.value.code == 0
    summary = tmp_path / "runs" / "quick" / "3" / "summary.json"
    written = summary.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        reproduce.main(["run", *words, "quick"])
    assert summary.stat().st_mtime_ns == written
    reproduce.main(["table", *words])
    (kept,) = json.loads((tmp_path / "results.json").read_text())
    made = json.loads(summary.read_text())
    assert kept["metrics"]["test/acc"] == round(made["metrics"]["test/acc"], 4)
    with (summary.parent / "metrics.csv").open(newline="") as file:
        validated = [float(line["val/acc"]) for line in csv.DictReader(file) if line["val/acc"] and line["train/loss"]]
    assert kept["val/acc"] == [round(value, 4) for value in validated]
    assert len(validated) == 2
    assert f"{made['metrics']['test/acc']:.3f}" in (tmp_path / "results.md").read_text()
