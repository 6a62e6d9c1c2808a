"""A run neither mixes its files with those of another run in the same folder nor removes them."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from commands import QUICK, ROOT, TINY, command, succeeded, train

import graft
from graft.errors import ConfigError
from graft.system.folder_lock import FolderLock

WORDS = (*TINY, "trainer.max_epochs=2", "trainer.baseline=false", "logger.tensorboard=false", "callbacks.progress=none")
YEAR = "${now:%Y}"


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graft.train(*WORDS, folder=tmp_path_factory.mktemp("finished") / "run", echo=False).folder


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run that was killed after it had written checkpoints."""
    folder = Path(shutil.copytree(finished, tmp_path / "stopped"))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    return folder


def test_a_second_run_into_the_folder_of_a_finished_one_changes_nothing(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=\S+: holds a finished run\.\nGive another folder, or"):
        graft.train(*WORDS, "seed=5", folder=finished, echo=False)
    refused = train(finished, *WORDS, "seed=5")
    assert refused.code == 1
    assert "holds a finished run" in refused.err
    assert "Traceback" not in refused.err
    assert contents(finished) == before, ".hydra/ and train.log included"


def test_an_interrupted_run_is_not_restarted_unasked(stopped: Path) -> None:
    before = contents(stopped)
    message = r"(?s)holds last\.ckpt and best\.ckpt of a run .* interrupted.*resume=auto continues.*resume=\S+stopped"
    with pytest.raises(ConfigError, match=message):
        graft.train(*WORDS, folder=stopped, echo=False)
    assert contents(stopped) == before


def test_a_restarted_run_keeps_nothing_of_an_earlier_attempt(stopped: Path, tmp_path: Path) -> None:
    fresh = graft.train(*WORDS, "seed=3", folder=tmp_path / "fresh", echo=False)
    (stopped / "checkpoints" / "last.ckpt").unlink()  # killed before its first
    (stopped / "unreadable.jsonl").write_text('{"name": "a", "reason": "of the earlier attempt"}\n')
    again = graft.train(*WORDS, "seed=3", "resume=auto", folder=stopped, echo=False)
    assert again.metrics == fresh.metrics
    assert (again.folder / "metrics.csv").read_bytes() == (fresh.folder / "metrics.csv").read_bytes()
    assert again.summary["unreadable"] == {}
    assert {file.name for file in stopped.iterdir()} == {file.name for file in fresh.folder.iterdir()}


def test_a_finished_run_without_last_checkpoint_is_not_retrained(tmp_path: Path) -> None:
    folder = graft.train(*WORDS, "callbacks.keep=best", folder=tmp_path / "run", echo=False).folder
    before = contents(folder)
    with pytest.raises(
        ConfigError, match=r"finished run that has kept no last\.ckpt to resume from \(callbacks\.keep\)"
    ):
        graft.train(*WORDS, "callbacks.keep=best", "resume=auto", folder=folder, echo=False)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "checkpoints/best.ckpt", "events.out.tfevents.mine"])
@pytest.mark.parametrize("resume", ["null", "auto"])
def test_a_folder_with_other_files_is_refused(name: str, resume: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=\S+: holds "):
        graft.train(*WORDS, f"resume={resume}", folder=tmp_path, echo=False)
    assert contents(tmp_path) == {tmp_path / name: b"mine"}


def test_a_folder_in_use_is_refused_whether_to_begin_or_to_resume(stopped: Path) -> None:
    before = contents(stopped)
    with FolderLock(stopped, "elsewhere"):
        for word in ("resume=null", "resume=auto"):
            refused = train(stopped, *WORDS, word)
            assert refused.code == 1
            assert f"in use by process {os.getpid()} on " in refused.err
            assert "Traceback" not in refused.err
    assert contents(stopped) == before


def test_an_invalid_configuration_leaves_no_folder(tmp_path: Path) -> None:
    for word in ("optimizer.lr=-1", "resume=nowhere", "trainer.limit_val_batches=0", "freeze=backbone"):
        refused = command(tmp_path / "x", str(ROOT / "train.py"), *QUICK, word)
        assert refused.code == 1
        assert "Traceback" not in refused.err
    assert not list(tmp_path.iterdir())


def test_runs_that_start_in_the_same_second_have_separate_folders(tmp_path: Path) -> None:
    """As if a second lasted a year."""
    words = (str(ROOT / "train.py"), *WORDS, "trainer.max_epochs=1", f"hydra.run.dir=outputs/{YEAR}")
    for seed in range(2):
        succeeded(command(tmp_path / "x", *words, f"seed={seed}"))
    year = f"{datetime.now():%Y}"
    for seed, name in enumerate((year, f"{year}_1")):
        folder = tmp_path / "outputs" / name
        assert json.loads((folder / "summary.json").read_text())["seed"] == seed
        assert f"seed={seed}" in (folder / ".hydra" / "overrides.yaml").read_text()


def test_sweeps_that_start_in_the_same_second_have_separate_folders(tmp_path: Path) -> None:
    words = (str(ROOT / "train.py"), "-m", *WORDS, "trainer.max_epochs=1", f"sweep_name={YEAR}")
    year = f"{datetime.now():%Y}"
    (tmp_path / "outputs" / "sweep" / year).mkdir(parents=True)
    done = succeeded(command(tmp_path / "x", *words, "seed=0,1"))
    assert f"outputs/sweep/{year}_1" in done.out
    assert not list((tmp_path / "outputs" / "sweep" / year).iterdir())
    jobs = tmp_path / "outputs" / "sweep" / f"{year}_1"
    assert [json.loads((jobs / job / "summary.json").read_text())["status"] for job in "01"] == ["finished"] * 2


def test_evaluations_exports_and_inspections_have_separate_folders(finished: Path, tmp_path: Path) -> None:
    graft_cli, run = ("-m", "graft.cli"), f"checkpoint={finished}"
    year = f"{datetime.now():%Y}"
    for words in (
        ("evaluate", run, f"hydra.run.dir=out/evaluate/{YEAR}"),
        ("export", run, "format=state_dict", f"folder=out/export/{YEAR}"),
        ("inspect", "data=digits", "model=vgg_mini", "model.weights=bundled", f"folder=out/inspect/{YEAR}"),
    ):
        for _ in range(2):
            command(tmp_path / "x", *graft_cli, *words)
        folders = {
            folder.name: {file.name for file in folder.iterdir()} for folder in (tmp_path / "out" / words[0]).iterdir()
        }
        assert folders.keys() == {year, f"{year}_1"}
        assert folders[year] == folders[f"{year}_1"]


def test_an_evaluation_overwrites_neither_a_run_nor_another_evaluation(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    refused = command(
        tmp_path / "x", "-m", "graft.cli", "evaluate", f"checkpoint={finished}", f"hydra.run.dir={finished}"
    )
    assert refused.code == 1
    assert "holds summary.json of a run" in refused.err
    assert contents(finished) == before
