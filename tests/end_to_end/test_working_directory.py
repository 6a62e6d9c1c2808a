"""Modules in the working directory, for example among a user's images, are not imported."""

from pathlib import Path

import pytest
from commands import TINY, Finished, command, succeeded

SHADOWS = ("pickle", "random", "json", "logging", "torch", "graft")
"""Modules that every process of a run imports."""

RUN = (*TINY, "trainer.max_epochs=1", "logger=none", "trainer.baseline=false")

STARTS = {
    "one process": (),
    "a sweep": ("-m", "seed=0,1"),
    "joblib": ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "ddp": ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A working directory whose modules leave a mark when they are imported."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"import os; os.mkdir({str(tmp_path / f'mark of {name}')!r})\n")
    return folder


def graft(photos: Path, task: str, *words: str) -> Finished:
    """The `graft` command as it is installed, a script in another folder, in the working directory `photos`."""
    script = photos.parent / "bin" / "graft"
    script.parent.mkdir()
    script.write_text("from graft.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    return command(photos / "run", str(script), task, *words, timeout=500, fresh=True)


SLOW = ("joblib", "ddp")


@pytest.mark.parametrize("start", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in STARTS])
def test_no_process_of_a_run_imports_from_the_working_directory(start: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (f"hydra.run.dir={out}", f"hydra.sweep.dir={out}", f"paths.outputs={tmp_path}/outputs", *RUN)
    run = graft(photos, "train", *words, *STARTS[start])
    assert not [path.name for path in tmp_path.glob("mark of *")]
    succeeded(run)
    assert list(out.glob("**/best.ckpt"))


def test_a_custom_module_in_the_working_directory_is_imported_by_its_name(photos: Path, tmp_path: Path) -> None:
    (photos / "my_set").mkdir()
    (photos / "my_set" / "digits.py").write_text("from graft.data.sources.digits import load\n")
    words = ("data=digits", "data._target_=my_set.digits.load", f"folder={tmp_path}/sheets", "sheets=0")
    succeeded(graft(photos, "inspect", *words))
    assert not [path.name for path in tmp_path.glob("mark of *")]
