"""The program in docs/hand-over.md that uses an ONNX file names the classes that `graft predict` does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, command, succeeded
from PIL import Image

import graft
from graft.data.loading import load_splits


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program, as a reader copies it."""
    (text,) = re.findall(
        r"```python\n(# predict_onnx\.py.*?)```", (ROOT / "docs" / "hand-over.md").read_text(), re.DOTALL
    )
    file = tmp_path / "predict_onnx.py"
    file.write_text(text)
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures wider than high, higher than wide, square, and turned by their EXIF data."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = load_splits("digits", root=None, seed=0).test
    turned = Image.Exif()
    turned[0x0112] = 6
    for index, size in enumerate([(64, 64), (90, 61), (61, 90), (41, 200), (35, 35)]):
        images.load(index).resize(size).save(folder / f"{index}.png", exif=turned if index == 3 else None)
    return folder


@pytest.mark.parametrize("preprocess", [False, True])
def test_the_program_names_the_classes_that_predict_does(
    preprocess: bool, program: Path, pictures: Path, digits_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    words = (f"checkpoint={digits_run}", f"preprocess={preprocess}", "folder=exported", "name=model")
    succeeded(command(tmp_path / "run", "-m", "graft.cli", "export", *words))
    predictions = graft.predict(pictures, f"checkpoint={digits_run}", "topk=1")
    expected = {Path(each.image).name: each for each in predictions}
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "exported", alone)
    files = sorted(pictures.iterdir())
    done = subprocess.run(
        [sys.executable, "-P", program, "model.onnx", *files], cwd=alone, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        path, label, probability = line.split("\t")
        prediction = expected.pop(Path(path).name)
        assert label == prediction.classes[0]
        assert float(probability) == pytest.approx(prediction.probabilities[0], abs=2e-3)
    assert not expected
