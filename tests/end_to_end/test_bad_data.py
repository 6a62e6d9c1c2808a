"""Folders with broken files and unusual names: the run stops with a clear error or reports what it excludes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, command, succeeded, train
from PIL import Image

CHANCE = np.random.RandomState(0)


def picture() -> Image.Image:
    return Image.fromarray(CHANCE.randint(0, 256, (40, 40, 3), dtype=np.uint8))


def fill(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture().save(folder / name / f"{i:02d}.png")
    return folder


def spoil_the_middle(path: Path) -> None:
    """Damage that neither the header nor the end of the file tells of."""
    content = bytearray(path.read_bytes())
    content[500:520] = bytes(20)
    path.write_bytes(content)


SMALL = (
    *(word for word in QUICK if not word.startswith(("data=", "trainer.limit"))),
    "data=folder",
    "data.batch_size=4",
)


NAMES = ("한국어 이름", "a space", 'it\'s "quoted"', "[bold]", "a,b;c", "🐝", "Cats", "cats", "$HOME", "%d{x}")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Split folders of oddly named classes, with a file that is empty and two that are damaged in the middle."""
    root = fill(tmp_path / "사진 (1)", {f"{part}/{name}": 4 for part in ("train", "val", "test") for name in NAMES})
    (root / "labels.csv").write_text("file,label\n")
    (root / "train" / "cats" / "labels.csv").write_text("file,label\n")
    (root / "train" / "🐝" / "link.png").symlink_to(root / "train" / "cats" / "00.png")
    (root / "train" / "[bold]" / "03.png").write_bytes(b"")
    spoil_the_middle(root / "train" / "cats" / "02.png")
    spoil_the_middle(root / "test" / "a space" / "01.png")
    return root


PROBE = """
import sys
from graft.cli import main
try:
    main("train")
finally:
    print("torch imported:", "torch" in sys.modules)
"""


def test_a_broken_file_stops_the_run_before_torch_is_imported(photos: Path, tmp_path: Path) -> None:
    words = (f"hydra.run.dir={tmp_path}/run", *SMALL, f"data.root={photos}")
    run = command(tmp_path / "run", "-c", PROBE, *words)
    assert run.code == 1
    assert "torch imported: False" in run.out
    assert "1 image cannot be read:\n  train/[bold]/03.png  (empty: 0 bytes)\n" in run.err
    assert "data.on_error=skip" in run.err
    assert run.summary["status"] == "failed"


def test_skip_continues_training_and_reports_excluded_and_unreadable_images(photos: Path, tmp_path: Path) -> None:
    before = {(file, file.lstat().st_mtime_ns) for file in photos.rglob("*")}
    words = (*SMALL, f"data.root={photos}", "data.on_error=skip", "data.resident_gb=0", "data.num_workers=1")
    run = succeeded(train(tmp_path / "run", *words))
    data = run.summary["data"]
    assert run.summary["classes"] == sorted(NAMES)
    assert data["left_out"] == {"train/[bold]/03.png": "empty: 0 bytes"}
    assert data["counts"]["train"] == dict.fromkeys(sorted(NAMES), 4) | {"[bold]": 3, "🐝": 5}
    assert set(run.summary["unreadable"]) == {"train/cats/02.png", "test/a space/01.png"}
    notes = " ".join(run.summary["notes"])
    assert "1 image excluded, unreadable (data.on_error=skip): train/[bold]/03.png" in notes
    assert "2 images could not be read while training (data.on_error=skip): test/a space/01.png, train/cats" in notes
    assert "could not be read while training" in run.out
    assert {(file, file.lstat().st_mtime_ns) for file in photos.rglob("*")} == before
    header, *rows = csv.reader((run.folder / "metrics.csv").open())
    assert {f"test/acc/{name}" for name in NAMES} <= set(header) & set(run.summary["metrics"])
    assert {len(row) for row in rows} == {len(header)}


def test_an_image_damaged_during_training_is_named_without_a_stack_trace(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "[bold]" / "03.png").unlink()
    words = (*SMALL, f"data.root={photos}", "data.resident_gb=0", "data.num_workers=1", "trainer.baseline=false")
    run = train(tmp_path / "run", *words)
    assert run.code == 1
    assert "train/cats/02.png: cannot be read as an image (" in run.err
    assert "Traceback" not in run.err + run.out + run.summary["error"]
