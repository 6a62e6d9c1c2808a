"""Experiment trackers: what a run leaves in them, how a resumed run continues there, and what cannot start."""

from pathlib import Path
from typing import Any

import pytest

import graft
from graft.config.schema import LoggerConfig
from graft.errors import ConfigError
from graft.learning.loggers import build_loggers, finish

SHORT = (
    "data=digits", "model=vgg_mini", "model.weights=bundled", "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.baseline=false", "callbacks.progress=none",
    "trainer.log_every_n_steps=1",
)  # fmt: skip
IMAGES = {"acc_per_class", "calibration", "confusion", "gradcam", "test_predictions", "val_predictions", "worst"}


def train(folder: Path, logger: str, *words: str, epochs: int = 1) -> graft.FinishedRun:
    words = (f"logger=[csv,{logger}]", f"paths.outputs={folder.parent}", f"trainer.max_epochs={epochs}", *words)
    return graft.train(*SHORT, *words, folder=folder, echo=False)


def test_a_resumed_run_is_one_run_in_mlflow_with_curves_images_configuration_and_the_best_checkpoint(
    tmp_path: Path,
) -> None:
    mlflow = pytest.importorskip("mlflow")
    train(tmp_path / "run", "mlflow", "logger.mlflow.log_model=true")
    finished = train(tmp_path / "run", "mlflow", "logger.mlflow.log_model=true", "resume=auto", epochs=2)

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "graft"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["optimizer.lr"] == "0.01"
    assert run.data.metrics["test/acc"] == pytest.approx(finished.metrics["test/acc"])
    assert run.data.metrics["best/val/acc"] == pytest.approx(finished.metrics["val/acc"])
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(set(steps)) == [2, 4]
    names = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")}
    assert all(any(f"~{image}+" in name for name in names) for image in IMAGES)
    assert {Path(file.path).name for file in client.list_artifacts(run.info.run_id)} == {"images", "best"}


def test_the_jobs_of_a_sweep_share_a_tag_in_mlflow_and_other_tags_stay(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    node = {
        "_target_": "lightning.pytorch.loggers.MLFlowLogger",
        "experiment_name": "graft",
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
        "tags": {"author": "me"},
    }
    for number in ("0", "1"):
        folder = tmp_path / "rates" / number
        folder.mkdir(parents=True)
        finish(build_loggers(LoggerConfig.of({"mlflow": node}), folder, group="rates"), success=number == "0")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "graft"]
    runs = client.search_runs([experiment.experiment_id], "tags.sweep = 'rates' and tags.author = 'me'")
    assert {(run.info.run_name, run.info.status) for run in runs} == {("rates/0", "FINISHED"), ("rates/1", "FAILED")}


def test_two_runs_of_one_process_are_two_in_wandb_and_their_images_are_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = set()
    for name in ("one", "two"):
        train(tmp_path / name, "wandb", "logger.wandb.offline=true")
        [folder] = (tmp_path / name / "wandb").glob("offline-run-*")
        [record] = folder.glob("run-*.wandb")
        ids.add(record.stem.removeprefix("run-"))
        images = {file.name.rsplit("_", 2)[0] for file in folder.rglob("review/*.png")}
        assert images >= IMAGES
    assert len(ids) == 2
    assert set(read_ids(tmp_path / "two")) < ids

    train(tmp_path / "two", "wandb", "logger.wandb.offline=true", "resume=auto", epochs=2)
    parts = {file.stem for file in (tmp_path / "two" / "wandb").rglob("run-*.wandb")}
    assert parts == {f"run-{each}" for each in read_ids(tmp_path / "two")}


def read_ids(folder: Path) -> list[str]:
    import json

    return list(json.loads((folder / "trackers.json").read_text()).values())


def test_a_tracker_that_cannot_be_reached_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"logger\.mlflow.*\n.*logger\.mlflow\.tracking_uri"):
        train(tmp_path / "run", "mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9")


def test_wandb_without_a_key_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"logger\.wandb[\s\S]*logger\.wandb\.offline=true"):
        train(tmp_path / "run", "wandb")


def test_comet_offline_leaves_an_archive_in_the_folder_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("comet_ml")
    node: dict[str, Any] = {"_target_": "graft.learning.loggers.comet", "project": "graft", "online": False}
    loggers = build_loggers(LoggerConfig.of({"comet": node}), tmp_path)
    loggers[0].log_metrics({"val/acc": 0.5}, 1)
    finish(loggers, success=True)
    assert list((tmp_path / "comet").glob("*.zip"))
