"""TensorBoard after a run with the default options."""

import csv
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, Finished, command, succeeded, train
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from graft.config.task import SINGLE_LABEL
from graft.review import board
from graft.review.record import FILE, read_record

CLASSES = ("<img src=x>", "a|b *c*", "개미")
PICTURES = {
    *board.GRIDS, "visuals/confusion", "visuals/acc_per_class", "visuals/calibration",
}  # fmt: skip
SCALARS = {
    "train/loss", "train/acc", "train/loss_step", "train/acc_step", "val/loss", "val/acc", "whole_run/val/ece",
    "whole_run/test/ece", "watch/lr/features", "watch/lr/head", "watch/grad_norm/features", "watch/grad_norm/head",
    "watch/time/step_seconds", "watch/time/images_per_second", "watch/epoch",
    *(f"whole_run/{name}" for name in board.finals(SINGLE_LABEL)), *(f"whole_run/test/acc/{name}" for name in CLASSES),
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: three classes with awkward names, two runs of two epochs at the defaults and
    with the graph."""
    folder = tmp_path_factory.mktemp("review")
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for part, count in (("train", 20), ("val", 9), ("test", 12)):
            (folder / "data" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (40, 40, 3))
                pixels[..., number] += 80
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(folder / "data" / part / name / f"{index}.png")
    sweep = ("-m", "optimizer.lr=0.05,0.0005", "hydra.sweep.dir=outputs", "hydra.sweep.subdir=${optimizer.lr}")
    succeeded(command(folder / "outputs", str(ROOT / "train.py"), *of(folder), *sweep))
    return folder / "outputs"


def of(folder: Path) -> list[str]:
    return [
        "model=vgg_mini", "strategy=scratch", "data=folder", f"data.root={folder}/data", "trainer.max_epochs=2",
        "data.batch_size=15", "trainer.log_every_n_steps=2", "trainer.precision=32-true", "augment=basic",
        "review.graph=true",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(outputs: Path) -> Finished:
    return Finished(0, "", "", outputs / "0.05")


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def events(run: Finished) -> EventAccumulator:
    return events_of(run.folder)


def test_every_run_has_the_same_tags(outputs: Path, events: EventAccumulator) -> None:
    assert set(events.Tags()["scalars"]) == SCALARS
    assert set(events.Tags()["images"]) == PICTURES
    texts = {"config/text_summary", "layers/text_summary", "notes/text_summary", "custom_scalars__config__"}
    curves = {f"precision_recall/{name}" for name in CLASSES}
    assert {tag for tag in events.Tags()["tensors"] if not tag.startswith("_hparams_")} == texts | curves
    assert events.Tags()["graph"], "asked for"
    assert events_of(outputs / "0.0005").Tags() == events.Tags()


def test_every_metric_is_recorded_once_for_a_step(events: EventAccumulator) -> None:
    for tag in SCALARS:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag


def test_every_figure_is_drawn_once_with_a_bounded_size(run: Finished, events: EventAccumulator) -> None:
    for tag in PICTURES:
        (picture,) = events.Images(tag)
        assert len(picture.encoded_image_string) < 1_000_000
        assert min(picture.width, picture.height) > 40
    assert (
        sum(file.stat().st_size for name in ("events*", "projector/**/*") for file in run.folder.glob(name)) < 4_000_000
    )
    assert (run.folder / FILE).stat().st_size < 2_000_000


def test_figures_have_the_step_of_the_best_checkpoint(run: Finished, events: EventAccumulator) -> None:
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    for tag in PICTURES - {board.TRAIN_BATCH}:
        assert [picture.step for picture in events.Images(tag)] == [best], tag
    (error,) = events.Scalars("whole_run/val/ece")
    assert error.step == best


def test_the_final_metrics_equal_the_summary(run: Finished, events: EventAccumulator) -> None:
    for name in board.finals(SINGLE_LABEL):
        (final,) = events.Scalars(f"whole_run/{name}")
        assert final.value == pytest.approx(run.summary["metrics"][name], rel=1e-6)


def test_the_record_agrees_with_the_summary(run: Finished) -> None:
    record = read_record(run.folder)
    assert record is not None
    metrics = run.summary["metrics"]
    assert (record.part, record.classes, record.images) == ("test", CLASSES, 36)
    assert record.correct.sum() / record.images == pytest.approx(metrics["test/acc"])
    for name, correct, total in zip(record.classes, record.correct, record.totals, strict=True):
        assert correct / total == pytest.approx(metrics[f"test/acc/{name}"])
    assert len(record.thumbnails) == 36
    assert {name.split("/")[0] for name, _ in record.thumbnails.values()} == {"test"}


def test_times_are_only_in_tensorboard_and_gradient_norms_at_the_steps_of_the_loss(run: Finished) -> None:
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert not any(name.startswith("time/") for name in rows[0])
    for row in rows:
        assert bool(row["grad_norm/head"]) == bool(row["train/loss_step"])
    assert all(float(row["grad_norm/features"]) > 0 for row in rows if row["grad_norm/features"])


def test_review_none_logs_metrics_without_figures(outputs: Path, tmp_path: Path) -> None:
    run = succeeded(
        train(tmp_path / "run", *of(outputs.parent), "review=none", "review.graph=false", "trainer.max_epochs=1")
    )
    tags = events_of(run.folder).Tags()
    assert not tags["images"]
    assert not tags["tensors"]
    assert set(tags["scalars"]) == {
        name for name in SCALARS if not re.match("whole_run/val|watch/grad_norm|watch/time|.*ece", name)
    }
    assert not (run.folder / FILE).exists()
    assert not {"projector_config.pbtxt", "curves.png", "confusion.png"} & {file.name for file in run.folder.iterdir()}


def test_a_failed_run_has_status_failed_in_hparams(outputs: Path, tmp_path: Path) -> None:
    shutil.copytree(outputs.parent / "data", tmp_path / "data")
    broken = tmp_path / "data" / "train" / CLASSES[1] / "0.png"
    content = bytearray(broken.read_bytes())
    middle = content.index(b"IDAT") + 12
    content[middle : middle + 40] = bytes(40)  # whole to a look at its ends, and unreadable
    broken.write_bytes(content)
    failed = train(tmp_path / "run", *of(tmp_path), "trainer.baseline=true")
    assert failed.code == 1
    assert "0.png" in failed.err
    events = events_of(failed.folder)
    end = metadata.parse_session_end_info_plugin_data(
        events.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    )
    assert end.status == api_pb2.STATUS_FAILURE
    assert [event.step for event in events.Scalars("val/acc")] == [0], "what there was before it failed"


# -- in TensorBoard itself -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensorboard(outputs: Path) -> Iterator[str]:
    """The address of a TensorBoard over both runs."""
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(outputs), "--port", "0", "--host", "127.0.0.1"]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://[\d.]+:\d+/", line):
            break
    else:
        pytest.fail("TensorBoard did not start")
    threading.Thread(target=server.stderr.read, daemon=True).start()
    yield found.group()
    server.terminate()
    server.wait()


def asked(address: str, route: str, **body: Any) -> Any:
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{address}data/plugin/{route}", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


RUNS = {"0.05", "0.0005"}
"""TensorBoard calls a run by its folder."""


def test_tensorboard_serves_every_kind_of_data(tensorboard: str) -> None:
    for plugin in ("images", "scalars", "pr_curves", "text"):
        assert set(asked(tensorboard, f"{plugin}/tags")) == RUNS
    assert set(asked(tensorboard, "images/tags")["0.05"]) == PICTURES
    assert set(asked(tensorboard, "projector/runs")) == RUNS
    assert set(asked(tensorboard, "scalars/tags")["0.05"]) == SCALARS


def test_hparams_compares_runs_by_their_final_metrics(tensorboard: str, outputs: Path) -> None:
    experiment = asked(tensorboard, "hparams/experiment", experimentName="")
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == [
        f"whole_run/{name}" for name in board.finals(SINGLE_LABEL)
    ]
    shown = {info["name"] for info in experiment["hparamInfos"] if info.get("differs")}
    assert shown == {"optimizer.lr", "strategy", "model", "data", "seed"}
    columns = [{"metric": {"tag": "whole_run/test/acc"}}]
    options = {"startIndex": 0, "sliceSize": 9, "colParams": columns, "allowedStatuses": ["STATUS_SUCCESS"]}
    groups = asked(tensorboard, "hparams/session_groups", experimentName="", **options)["sessionGroups"]
    shown = {group["hparams"]["optimizer.lr"]: values_of(group) for group in groups}
    for lr in (0.05, 0.0005):
        summary = json.loads((outputs / f"{lr:g}" / "summary.json").read_text())
        assert shown[lr]["whole_run/test/acc"] == pytest.approx(summary["metrics"]["test/acc"])


def values_of(group: dict[str, Any]) -> dict[str, float]:
    return {value["name"]["tag"]: value["value"] for value in group["metricValues"]}


SHOWN = {  # page: what must be on it
    "images": ["tag: visuals/gradcam", "tag: visuals/confusion"],  # twelve on its first page
    "scalars": ["watch"],
    "custom_scalars": ["Learning curves", "accuracy"],
    "pr_curves": ["precision_recall/개미", "precision_recall/<img src=x>"],
    "text": ["tag: layers/text_summary"],
    "hparams": ["test/acc", "optimizer.lr"],
    "projector": ["2 runs found", "Points: 27"],
}


@pytest.mark.parametrize("page", SHOWN)
def test_a_real_browser_shows_the_page(page: str, tensorboard: str, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 1500, "height": 1600})
    mistakes: list[str] = []
    tab.on("pageerror", lambda error: mistakes.append(str(error)))
    tab.goto(f"{tensorboard}#{page}")
    frame = tab.frame_locator("iframe").frame_locator("iframe") if page == "projector" else tab
    for text in SHOWN[page]:
        frame.get_by_text(text, exact=True).first.wait_for(timeout=30_000)
    assert mistakes == []
    if page == "images":
        tab.wait_for_function(
            "picture => picture.complete && picture.naturalWidth > 200",
            arg=tab.locator("tf-image-loader img").first.element_handle(timeout=30_000),
            timeout=30_000,
        )
    tab.close()
