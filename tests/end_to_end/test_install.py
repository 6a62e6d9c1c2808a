"""The installed wheel works outside of the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import ROOT


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("graft_vision-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_configs_and_weights(unpacked: Path) -> None:
    ours = {str(file.relative_to(ROOT / "conf")) for file in (ROOT / "conf").rglob("*.yaml")}
    assert {
        str(file.relative_to(unpacked / "graft" / "conf")) for file in (unpacked / "graft" / "conf").rglob("*")
    } >= ours
    weights = unpacked / "graft" / "models" / "bundled" / "vgg_mini.safetensors"
    assert weights.stat().st_size < 5_000_000
    assert not (unpacked / "tests").exists()


def test_graft_trains_from_the_wheel_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    words = ["-m", "graft.cli", "train", "experiment=quickstart", "trainer.max_epochs=1", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
