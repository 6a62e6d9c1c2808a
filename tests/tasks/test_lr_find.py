"""`graft lr_find`: the range test follows the run that it is meant for, suggests, and changes nothing else."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import Finished, command, succeeded

from graft.config.commands import SearchedRatesConfig
from graft.learning.lr_finder import Curve, LrSweep

WORDS = ("model=vgg_mini", "model.weights=bundled", "data=digits", "augment=none", "trainer.limit_train_batches=6",
         "lr_find.steps=30", "data.num_workers=0", "trainer.accelerator=cpu")  # fmt: skip


def found(folder: Path, *words: str) -> tuple[dict[str, Any], Finished]:
    done = succeeded(command(folder, "-m", "graft.cli", "lr-find", f"hydra.run.dir={folder}", *WORDS, *words))
    return json.loads((folder / "lr_find.json").read_text()), done


def test_the_suggestion_is_reproducible_and_nothing_but_the_result_is_written(tmp_path: Path) -> None:
    first, done = found(tmp_path / "a")
    second, _ = found(tmp_path / "b")
    assert first == second
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "lr_find.json", "lr_find.png", "lr_find.log", ".hydra",
    }  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}
    rates = [step["lr"] for step in first["steps"]]
    assert rates[0] == pytest.approx(1e-6)
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([10 ** (7 / 29)] * (len(rates) - 1))
    assert rates[0] < first["suggestion"] < rates[-1]
    suggested = next(line for line in done.out.splitlines() if line.strip().startswith("graft train"))
    assert suggested.endswith(f"optimizer.lr={first['suggestion']:.2g}")
    assert "lr_find." not in suggested
    again, _ = found(tmp_path / "seed", "seed=1")
    assert [step["loss"] for step in again["steps"]] != [step["loss"] for step in first["steps"]]


def test_a_frozen_backbone_mixup_accumulation_and_bf16_are_those_of_the_run(tmp_path: Path) -> None:
    words = ("model=vgg_mini", "model.weights=bundled", "data=digits", "strategy=feature_extract", "freeze=backbone",
             "augment.mixup=0.2", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed",
             "lr_find.steps=12", "lr_find.min_lr=0.001", "lr_find.max_lr=0.1")  # fmt: skip
    done = succeeded(command(tmp_path / "a", "-m", "graft.cli", "lr_find", f"hydra.run.dir={tmp_path}/a", *words,
                             "trainer.limit_train_batches=9", "data.num_workers=0"))  # fmt: skip
    result = json.loads((tmp_path / "a" / "lr_find.json").read_text())
    assert len(result["steps"]) == 12, "a step is one of the optimizer, of two batches"
    assert "frozen" in done.out
    assert result["steps"][-1]["smoothed"] < result["steps"][0]["smoothed"]


def test_the_search_ends_where_the_loss_diverges(tmp_path: Path) -> None:
    result, done = found(tmp_path / "a", "lr_find.max_lr=1e9", "lr_find.min_lr=1")
    assert result["diverged"]
    assert len(result["steps"]) < 30
    assert all(math.isfinite(step["loss"]) for step in result["steps"])
    assert "diverged at lr" in done.out


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for words, message in (
        (("lr_find.min_lr=1", "lr_find.max_lr=0.1"), "must ascend"),
        (("resume=auto",), "starts no run"),
        (("lr_find.step=3",), "Did you mean lr_find.steps"),
        (("optimizer.lt=3",), "optimizer.lt"),
    ):
        refused = command(tmp_path / "x", "-m", "graft.cli", "lr_find", f"hydra.run.dir={tmp_path}/x", *words)
        assert refused.code == 1
        assert message in refused.err
    assert not (tmp_path / "x").exists()


class _Optimizer:
    def __init__(self, *rates: float) -> None:
        self.param_groups = [{"lr": rate} for rate in rates]


class _Trainer:
    def __init__(self, *rates: float) -> None:
        self.optimizers = [_Optimizer(*rates)]


def test_groups_keep_their_ratios() -> None:
    trainer: Any = _Trainer(0.01, 0.001, 0.0)
    sweep = LrSweep(SearchedRatesConfig(min_lr=1e-4, max_lr=1, steps=50), 0.01, lambda: None)
    sweep.on_train_start(trainer, None)  # type: ignore[arg-type]
    for step in range(50):
        sweep.losses = [1.0] * step
        sweep.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
        head, backbone, frozen = (group["lr"] for group in trainer.optimizers[0].param_groups)
        assert head == pytest.approx(10 ** (-4 + 4 * step / 49))
        assert (backbone, frozen) == (pytest.approx(head / 10), 0)


def test_the_suggestion_is_half_of_the_fall_despite_a_slow_drift() -> None:
    rates = tuple(10 ** (-6 + step / 10) for step in range(70))
    fall = [0.6 / (1 + 10 ** (2 * (math.log10(rate) + 2.0))) for rate in rates]  # steepest, and half, at 1e-2
    losses = tuple(0.1 + each - 0.0005 * step for step, each in enumerate(fall))
    curve = Curve(rates, losses, losses, diverged=False)
    assert curve.halfway == pytest.approx(1e-2, rel=0.3)
    assert curve.steepest == pytest.approx(1e-2, rel=0.3)
    flat = Curve(rates, (1.0,) * 70, (1.0,) * 70, diverged=False)
    assert flat.halfway is None
    assert flat.steepest is None
    assert Curve((), (), (), diverged=True).halfway is None
