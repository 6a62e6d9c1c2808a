"""A sweep from its command line to its exit code; functions replace the training of each job."""

import ctypes
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from graft.cli import TRUSTED
from graft.config import conf_dir
from graft.config.config_hash import config_hash
from graft.config.registration import register, typed
from graft.config.schema import TrainConfig
from graft.errors import ConfigError, DataError
from graft.sweep import hooks as sweep_module
from graft.sweep.grid import require_gpu_for_jobs
from graft.sweep.job_folders import INDEX, existing_job_folder, job_folder, restore_index

SPACE = ("model=vgg_mini", "data=digits", "strategy=scratch")


@pytest.fixture(autouse=True)
def errors_come_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`train.py -m WORDS` with a function in place of training; returns the folder of the sweep."""

    def run(task: Callable[[Any], None], *words: str) -> Path:
        monkeypatch.setattr(
            sys, "argv", ["train.py", "-m", *SPACE, f"paths.outputs={tmp_path}", "sweep_name=it", *words]
        )
        register()
        sweep_module.register()
        hydra.main(config_path=str(conf_dir()), config_name="train", execution_whitelist=TRUSTED)(task)()
        return tmp_path / "sweep" / "it"

    return run


def a_job(config: Any, **changed: Any) -> None:
    """What a job leaves behind: a summary."""
    summary = {
        "status": "finished", "seed": config.seed, "seconds": 1.0, "metrics": {"val/acc": 0.5}, "attempts": 1,
        "identity": config_hash(typed(config, TrainConfig)), "config": {"model": "vgg_mini"},
        "overrides": [f"seed={config.seed}"],
    }  # fmt: skip
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "summary.json").write_text(json.dumps(summary | changed))


def second_fails(config: Any) -> None:
    error = "DataError: \x1b]0;owned\x07 [/red]\nmore"
    a_job(config, **({"status": "failed", "error": error} if config.seed == 1 else {}))


def foreign(folder: Path) -> None:
    """Summaries that no run has written, and a record that is none, where a sweep will look."""
    contents = {"list": b"[1]", "text": b"\xff", "keys": b'{"status": "failed"}', "deep": b"[" * 100_000, "empty": b""}
    for name, content in contents.items():
        (folder / "foreign" / name).mkdir(parents=True)
        (folder / "foreign" / name / "summary.json").write_bytes(content)
    (folder / "foreign" / "folder" / "summary.json").mkdir(parents=True)
    record = folder / "0" / "review.npz"
    record.parent.mkdir(exist_ok=True)
    record.write_bytes(b"PK\x03\x04 damaged")


def test_failed_jobs_are_reported_despite_foreign_and_damaged_files(
    grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def jobs(config: Any) -> None:
        if config.seed == 0:
            foreign(tmp_path / "sweep" / "it")
        second_fails(config)

    with pytest.raises(SystemExit) as ended:
        grid(jobs, "seed=0,1,2")
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "2 (+1 failed)" in out
    assert "7 files could not be read" in out
    assert f"failed  {tmp_path / 'sweep/it/1'}  seed=1" in err
    assert "\x1b" not in out + err
    assert "(+1 failed)" in (tmp_path / "sweep/it/compare.md").read_text()


def test_earlier_failures_do_not_fail_this_sweep(
    grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path / "sweep" / "it")
    folder = grid(a_job, "seed=0,1")
    assert "foreign/list/summary.json" in capsys.readouterr().out
    assert (folder / "compare.html").is_file()


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_depends_on_the_jobs_and_not_on_the_table(
    code: int, grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep" / "it" / "compare.md").mkdir(parents=True)  # where the table should be written
    with pytest.raises(SystemExit, match="1") if code else nullcontext():
        grid(second_fails if code else a_job, "seed=0,1")
    assert "The table could not be written" in capsys.readouterr().err


def test_a_job_without_a_status_counts_as_failed(grid: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def garbled(config: Any) -> None:
        a_job(config, **({"metrics": []} if config.seed else {}))

    with pytest.raises(SystemExit):
        grid(garbled, "seed=0,1")
    assert "metrics is a list" in capsys.readouterr().err


# -- the index of the jobs ---------------------------------------------------------------------------------------------


def counted(ran: list[int]) -> Callable[[Any], None]:
    def job(config: Any) -> None:
        ran.append(config.seed)
        a_job(config)

    return job


LOSSES: dict[str, Callable[[Path], object]] = {
    "all of it": lambda index: shutil.rmtree(index),
    "one entry": lambda index: entries(index)[0].unlink(),
    "a torn entry": lambda index: entries(index)[0].write_text(""),
    "entries that lead elsewhere": lambda index: [entry.write_text("../../..") for entry in entries(index)],
    "an entry that is a folder": lambda index: (entries(index)[0].unlink(), (index / "0123456789abcdef").mkdir()),
}


def entries(index: Path) -> list[Path]:
    return sorted(entry for entry in index.iterdir() if len(entry.name) == 16)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_job_is_run_twice_when_the_index_is_missing(loss: str, grid: Callable[..., Path], tmp_path: Path) -> None:
    ran: list[int] = []
    folder = grid(counted(ran), "seed=0,1")
    LOSSES[loss](folder / INDEX)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    grid(counted(ran), "seed=0,1,2")
    assert ran == [0, 1, 2]
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["0", "1", "2"]
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)} == before


@pytest.mark.parametrize("name", ["..", ".", "../1", "/etc", "a", "0\n1", "²", "", "x" * 100, "-1", "\0"])
def test_an_index_entry_refers_to_a_job_folder_or_is_ignored(name: str, tmp_path: Path) -> None:
    (tmp_path / "it" / INDEX).mkdir(parents=True)
    (tmp_path / "it" / "²").mkdir()
    (tmp_path / "it" / INDEX / ("0" * 16)).write_text(name)
    assert existing_job_folder(tmp_path / "it", "0" * 16) is None
    assert job_folder(tmp_path / "it", 0, "0" * 16) == "0"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("path", ["it", f"it/{INDEX}"])
def test_a_file_in_place_of_a_folder_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "sweep" / path).parent.mkdir(parents=True)
    (tmp_path / "sweep" / path).write_text("mine")
    with pytest.raises(DataError, match=r"\.jobs: cannot be created"):
        restore_index(tmp_path / "sweep" / "it")
    assert (tmp_path / "sweep" / path).read_text() == "mine"


def test_of_two_folders_with_one_configuration_the_finished_one_is_used(tmp_path: Path) -> None:
    whole = {"seed": 0, "seconds": 1.0, "metrics": {}, "identity": "a" * 16}
    for name, status, mine in (("0", "failed", "a" * 16), ("1", "finished", "a" * 16), ("2", "finished", "../../evil")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(whole | {"status": status, "identity": mine}))
    restore_index(tmp_path)
    assert existing_job_folder(tmp_path, "a" * 16) == tmp_path / "1"
    assert [path.name for path in entries(tmp_path / INDEX)] == ["a" * 16]


# -- a GPU that is not there -------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("trainer=gpu", "seed=0,1"), "None of the jobs can run"),
        (("trainer=gpu,cpu", "seed=0,1"), "2 of the 4 jobs"),
        (("trainer.accelerator=gpu", "seed=0,1"), "None of the jobs can run"),
    ],
)
def test_a_sweep_without_the_required_gpu_is_refused_before_its_first_job(
    words: tuple[str, ...], count: str, grid: Callable[..., Path], tmp_path: Path, no_gpu: None
) -> None:
    ran: list[int] = []
    with pytest.raises(ConfigError, match=count) as refused:
        grid(counted(ran), *words)
    assert "trainer=cpu" in str(refused.value)
    assert not ran
    assert not list(tmp_path.rglob("summary.json"))


def test_a_search_without_the_required_gpu_is_refused_before_its_first_trial(
    grid: Callable[..., Path], no_gpu: None
) -> None:
    pytest.importorskip("optuna")
    ran: list[int] = []
    with pytest.raises(ConfigError, match="None of the jobs can run"):
        grid(counted(ran), "sweep=optuna", "trainer=gpu", "optimizer.lr=interval(0.1,1)")
    assert not ran


def test_a_machine_that_only_submits_jobs_to_a_cluster_needs_no_gpu(no_gpu: None) -> None:
    cluster = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": cluster}}})
    require_gpu_for_jobs(config, [["trainer=gpu"]], loader=None)


def test_a_search_never_chooses_by_the_test_images(grid: Callable[..., Path]) -> None:
    pytest.importorskip("optuna")
    words = ("sweep=optuna", "optimized_metric=test/acc", "callbacks.checkpoint=last", "optimizer.lr=interval(0.1,1)")
    with pytest.raises(ConfigError, match="choose by the test images"):
        grid(a_job, *words)
