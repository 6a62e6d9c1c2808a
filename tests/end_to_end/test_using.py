"""`graft evaluate`, `predict` and `export` as a user runs them."""

import csv
import json
from pathlib import Path

import pytest
from commands import command, succeeded
from PIL import Image

OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos (2024)"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    Image.new("RGB", (30, 40), "blue").save(folder / "sub" / "é.jpg")
    return folder


def test_predicting_a_folder_skips_a_broken_image_and_exits_with_1(
    digits_run: Path, photos: Path, tmp_path: Path
) -> None:
    words = ("-m", "graft.cli", "predict", f"checkpoint={digits_run}", f"source={photos}", "output=out.csv")
    done = succeeded(command(tmp_path / "work" / "x", *words, fresh=True))
    with (tmp_path / "work" / "out.csv").open() as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["a.png", "é.jpg"]
    assert "a.png" in done.out
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["out.csv"], "nothing else is left behind"

    (photos / "b.png").write_text("no picture")
    done = command(tmp_path / "work" / "x", *words)
    assert done.code == 1
    assert "b.png" in done.err
    assert "1 of 3 images could not be read" in done.err
    assert "Traceback" not in done.err


def test_missing_weights_are_reported_with_their_address(photos: Path, tmp_path: Path) -> None:
    words = ("-m", "graft.cli", "predict", "experiment=imagenet_predict", f"source={photos}")
    done = command(tmp_path / "x", *words, **OFFLINE, TORCH_HOME=str(tmp_path / "torch"))
    assert done.code == 1
    for word in (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        str(tmp_path / "torch"),
        "model.weights=FILE",
    ):
        assert word in done.err
    assert "Traceback" not in done.err


def test_an_evaluation_writes_its_own_folder_and_compares_its_metrics_with_the_run(
    digits_run: Path, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in digits_run.rglob("*")}
    words = ("-m", "graft.cli", "evaluate", f"checkpoint={digits_run}")
    done = succeeded(command(tmp_path / "x", *words, fresh=True))
    (folder,) = (tmp_path / "outputs" / "evaluate").iterdir()
    left = {"evaluation.json", "predictions.csv", "confusion_matrix.csv", "evaluate.log", ".hydra"}
    assert {file.name for file in folder.iterdir()} == left
    assert "equal to the run's metrics" in done.out
    assert "per class" in done.out
    metrics = json.loads((digits_run / "summary.json").read_text())["metrics"]
    assert json.loads((folder / "evaluation.json").read_text())["metrics"]["test/loss"] == metrics["test/loss"]
    assert {file: file.stat().st_mtime_ns for file in digits_run.rglob("*")} == before


def test_an_export_reports_its_comparison_and_leaves_only_the_exported_files(digits_run: Path, tmp_path: Path) -> None:
    words = ("-m", "graft.cli", "export", f"checkpoint={digits_run}", "format=torch_export", "folder=out")
    done = succeeded(command(tmp_path / "x", *words, fresh=True))
    assert "32 images" in done.out
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/vgg_mini.pt2",
        "out/vgg_mini.pt2.json",
    ]
