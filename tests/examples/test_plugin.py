"""A package outside of Graft adds a part of each kind, and every command works with all of them."""

import csv
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, Finished, command, signal_after_first_checkpoint, succeeded
from PIL import Image
from sklearn.datasets import load_digits

import graft
from graft.errors import ConfigError

PLUGIN = ROOT / "examples" / "plugin"
OPTIONS = ("--config-dir", str(PLUGIN / "conf"))
SHORT = (
    "trainer.max_epochs=4", "trainer.precision=32-true", "data.num_workers=0", "data.batch_size=8", "review=none",
    "callbacks.checkpoint=last", "callbacks.checkpoint_every_n_steps=2",
)  # fmt: skip
TRAIN_WITHOUT_TORCH = ("-c", "from graft.cli import main; main()", "train")
TRUST = "trust=[bouquet]"


@dataclass(frozen=True)
class Workshop:
    """Photos with a manifest, pretrained weights, an uninterrupted run, and one that was killed and resumed."""

    folder: Path
    whole: Path
    resumed: Path

    def graft(self, *words: str) -> Finished:
        return command(self.folder / "run", "-m", "graft.cli", *words)

    def train(self, *overrides: str) -> Finished:
        return command(self.folder / "run", str(ROOT / "train.py"), *OPTIONS, *overrides)


def experiment(folder: Path, run: Path) -> tuple[str, ...]:
    weights = f"model.weights={folder}/pretrained/checkpoints/best.ckpt"
    return "experiment=bouquet", f"data.root={folder}/photos", weights, f"hydra.run.dir={run}", *SHORT


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    write_photos(folder / "photos")
    made = Workshop(folder, folder / "whole", folder / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
        pretraining = ("model=small_convnext", "strategy=scratch", "data=digits", "augment=none", "logger=none")
        limits = ("trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1")
        untested = ("trainer.test=false", "trainer.baseline=false", f"hydra.run.dir={folder}/pretrained")
        succeeded(made.train(*pretraining, *limits, *untested, *SHORT[1:]))
        succeeded(made.train(*experiment(folder, made.whole)))
        words = experiment(folder, made.resumed)
        code, _ = signal_after_first_checkpoint(made.resumed, signal.SIGKILL, *words, options=OPTIONS)
        assert code == -signal.SIGKILL
        assert json.loads((made.resumed / "summary.json").read_text())["epochs"] < 4
        succeeded(made.train(*words, "resume=auto"))
    return made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package can be imported, here and in commands."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(PLUGIN)


def write_photos(root: Path) -> None:
    digits = load_digits(n_class=3)
    lines = []
    for number, (pixels, label) in enumerate(zip(digits.images[:90], digits.target, strict=False)):
        name = f"{number % 4}/{number:03d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32)).save(root / name)
        split = {"split": "test"} if number % 4 == 3 else {}
        lines.append(json.dumps({"image": name, "label": f"digit {label}", **split}))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_resumed_run_equals_the_uninterrupted_one_to_the_bit(workshop: Workshop) -> None:
    whole, resumed = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (workshop.whole, workshop.resumed)
    )
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(tensor, resumed["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    momenta = [run["optimizer_states"][0]["state"] for run in (whole, resumed)]
    assert momenta[0].keys() == momenta[1].keys()
    assert all(torch.equal(momenta[0][key]["momentum"], momenta[1][key]["momentum"]) for key in momenta[0])
    for file in ("metrics.csv", "metrics.jsonl"):
        assert (workshop.whole / file).read_text() == (workshop.resumed / file).read_text(), file
    summaries = [graft.FinishedRun(run).metrics for run in (workshop.whole, workshop.resumed)]
    assert summaries[0] == summaries[1]


def test_each_part_affects_the_run(workshop: Workshop) -> None:
    rows = table(workshop.whole)
    drift = [{key: float(row[key]) for key in row if key.startswith("drift/")} for row in rows if row["drift/stem"]]
    assert len(drift) == 4
    assert drift[0]["drift/stem"] == drift[0]["drift/stage2"] == 0, "every_other freezes them in the first epoch"
    assert drift[0]["drift/stage1"] > 0
    assert drift[1]["drift/stem"] > 0
    assert drift[1]["drift/stage1"] == drift[0]["drift/stage1"], "frozen in the second"
    steps = [(int(row["step"]), float(row["lr/head"])) for row in rows if row["lr/head"]]
    warmup = int(rows[-1]["step"]) // 4
    for step, rate in steps:  # logged before the schedule steps
        assert rate == pytest.approx(3e-4 * min(step / warmup, (warmup / step) ** 0.5))
    assert 0 <= graft.FinishedRun(workshop.whole).metrics["test/selective"] <= 1
    lines = [json.loads(line) for line in (workshop.whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/acc"] for line in lines if "val/acc" in line][-1] == float(
        [row["val/acc"] for row in rows if row["val/acc"]][-1]
    )


def test_evaluate_gives_the_figures_of_the_run_by_its_own_loss_and_metric(workshop: Workshop, installed: None) -> None:
    done = succeeded(workshop.graft("evaluate", f"checkpoint={workshop.whole}", TRUST, "hydra.run.dir=evaluated"))
    result = json.loads((workshop.folder / "evaluated" / "evaluation.json").read_text())
    run = graft.FinishedRun(workshop.whole).metrics
    for name in ("test/loss", "test/acc", "test/selective"):
        assert result["metrics"][name] == run[name], name
    assert "equal to the run's metrics" in done.out


def test_predict_and_export(workshop: Workshop, installed: None) -> None:
    words = ("checkpoint=whole", TRUST)
    succeeded(workshop.graft("predict", *words, "source=photos", "output=predictions.json", "rows=0"))
    predictions = json.loads((workshop.folder / "predictions.json").read_text())
    assert len(predictions) == 90
    succeeded(workshop.graft("export", *OPTIONS, *words, "format=[npz,state_dict]", "folder=exported"))
    archive = np.load(workshop.folder / "exported" / "SmallConvNeXt.npz")
    weights = torch.load(workshop.folder / "exported" / "SmallConvNeXt.pth", weights_only=True)
    assert all(np.array_equal(archive[name], tensor.numpy()) for name, tensor in weights.items())
    predictor = graft.load(workshop.whole, trust=["bouquet"])
    first = predictions[0]
    assert predictor.predict(workshop.folder / first["image"])[0].classes[0] == first["predictions"][0]["class"]


def test_from_python_the_option_files_are_found_too(installed: None) -> None:
    composed = graft.compose("optimizer=lion", "metrics=selective", config_dir=PLUGIN / "conf")
    assert composed.config.optimizer._target_ == "bouquet.lion.Lion"
    with pytest.raises(ConfigError, match="no such folder"):
        graft.compose("optimizer=lion", config_dir=PLUGIN / "config")


@pytest.mark.parametrize("task", ["evaluate", "export", "predict"])
def test_a_checkpoint_of_a_package_that_is_not_trusted_says_how_to_trust_it(
    workshop: Workshop, installed: None, task: str
) -> None:
    source = ("source=photos",) if task == "predict" else ()
    refused = workshop.graft(task, "checkpoint=whole", *source)
    assert refused.code == 1
    assert "bouquet.convnext.SmallConvNeXt" in refused.err
    assert "trust=[bouquet]" in refused.err


MISTAKES = {
    "model.widht=3": "width",
    "data.fil=labels.jsonl": "file",
    "freeze.perod=3": "period",
    "optimizer.beta=[0.9,0.9]": "betas",
    "scheduler.warmup_epoch=1": "warmup_epochs",
    "loss.epsilonn=1": "epsilon",
    "metrics.selective.coverag=1": "coverage",
    "augment.transforms=[{_target_: bouquet.lighting.Lighting, sdt: 0.1}]": "std",
    "callbacks.drift.evry=1": "every",
    "logger.json_lines.fiel=x": "file",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_unknown_argument_is_refused_with_the_nearest_name_before_data_are_read(
    installed: None, tmp_path: Path, mistake: str
) -> None:
    (tmp_path / "weights.safetensors").touch()
    words = ("experiment=bouquet", "data.root=nowhere", "model.weights=weights.safetensors", mistake)
    refused = command(tmp_path / "run", *TRAIN_WITHOUT_TORCH, *OPTIONS, *words, "hydra.run.dir=run")
    assert refused.code == 1
    assert f"Did you mean {MISTAKES[mistake]}?" in refused.err
    assert "nowhere" not in refused.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_argument_of_a_format_is_refused_before_the_checkpoint_is_read(
    installed: None, tmp_path: Path
) -> None:
    words = ("format=npz", "format.npz.compresed=true", "checkpoint=nowhere")
    refused = command(tmp_path / "run", "-m", "graft.cli", "export", *OPTIONS, *words)
    assert "Did you mean compressed?" in refused.err


@pytest.mark.parametrize("task", ["train", "predict"])
def test_where_the_package_is_missing_the_error_says_what_to_do(workshop: Workshop, task: str) -> None:
    if task == "train":
        refused = workshop.train(*experiment(workshop.folder, workshop.folder / "missing"))
    else:
        refused = workshop.graft("predict", "checkpoint=whole", "source=photos", TRUST)
    assert refused.code == 1
    assert "there is no module 'bouquet'. Install it" in refused.err
