"""What the advice is computed from: probes, gains, intervals, confusions, candidates and their costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graft.advice.advice import Assessed, cheap_second, confusions, ranked, within_error
from graft.advice.candidates import Candidate, Source, candidates_of, sources
from graft.advice.costs import Cost
from graft.advice.prediction import Gain, Prediction, Probe, Way, gains, inputs, predict

SOURCE = Source("vgg16", "default", ("model=vgg16",))


def correct(share: float, count: int = 1000) -> np.ndarray:
    return np.arange(count) < share * count


def test_a_probe_follows_the_power_law_of_its_own_images() -> None:
    probe = Probe.of(correct(0.9), correct(0.8), correct(0.85), folds=5, best_stage=0.9)
    assert probe.exponent == 0.25, "0.2 to 0.1 of errors from 500 to 800 images is steeper than is believed"
    trained, _, best_stage = probe.at(3200)
    assert trained == pytest.approx(0.894, abs=0.001)
    assert best_stage == pytest.approx(0.929, abs=0.001)
    assert probe.at(800) == pytest.approx((0.85, 0.9, 0.9), abs=0.001)
    flat = Probe.of(correct(0.9), correct(0.95), correct(0.9), folds=5, best_stage=0.9)
    assert flat.at(10_000) == flat.at(800)


def test_intervals_widen_with_what_is_not_known() -> None:
    probe = Probe.of(correct(0.9), correct(0.88), correct(0.9), folds=5, best_stage=0.9)
    gain = Gain({"constant": 0.0}, 0.2)

    def width(gain: Gain, probe: Probe = probe, images: int = 800, tested: int = 1000) -> float:
        found = predict(probe, Way("finetune", 0.0, images, tested), gain)
        assert found.interval[0] < found.accuracy < found.interval[1]
        return found.interval[1] - found.interval[0]

    least = width(gain)
    assert width(replace(gain, deviation=0.4)) > least
    assert width(gain, tested=50) > least
    assert width(gain, images=80_000) > least * 0.5
    assert width(gain, probe=replace(probe, deviation=0.05)) > least


def test_measured_gains_predict_for_every_strategy_and_depth() -> None:
    probe = Probe.of(correct(0.8), correct(0.75), correct(0.7), folds=5, best_stage=0.85)
    for strategy, gain in gains().items():
        assert gain.deviation > 0
        way = Way(strategy, 0.5, images=1000, tested=200)
        assert gain.coefficients.keys() <= inputs(probe, way).keys()
        assert 0.4 < predict(probe, way).accuracy < 1


def assessed(accuracy: float, minutes: float, deviation: float = 0.01) -> Assessed:
    candidate = Candidate(SOURCE, "finetune", (), 5)
    prediction = Prediction(accuracy, (accuracy - 0.1, min(1.0, accuracy + 0.1)), deviation)
    return Assessed(candidate, prediction, Cost(minutes, 1, 1), "", accuracy, 0.0, 100)


def test_the_best_comes_first_and_a_cheap_one_second() -> None:
    found = ranked([assessed(0.7, 1), assessed(0.9, 10), assessed(0.9, 8), assessed(0.895, 4.5), assessed(0.8, 2)])
    assert [each.cost.minutes for each in found] == [8, 10, 4.5, 2, 1]
    assert within_error(found) == 3
    second = cheap_second(found)
    assert second is not None
    assert second.cost.minutes == 2
    assert cheap_second([assessed(0.9, 1), assessed(0.8, 2)]) is None


def test_only_confusions_of_every_network_are_named() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    one = np.array([0, 1, 1, 2, 1, 0, 2, 2])
    other = np.array([1, 1, 0, 0, 1, 1, 2, 0])
    [pair] = confusions(labels, [one, other], ["oak", "elm", "ash"])
    assert (pair.true, pair.predicted, pair.counts, pair.images) == ("oak", "elm", (2, 2), 4)


def test_candidates_name_stages_that_training_freezes() -> None:
    found = candidates_of(SOURCE, ["block1", "block2", "block3", "block4", "0.5"])
    assert [(each.strategy, each.cut) for each in found] == [
        ("feature_extract", "0.5"), ("finetune", "block4"), ("finetune", "block2"), ("finetune", "none"),
    ]  # fmt: skip
    assert found[2].overrides == (
        "model=vgg16",
        "strategy=finetune",
        "freeze=custom",
        "freeze.patterns=[block1,block2]",
    )
    assert found[2].unfrozen == pytest.approx(0.6)
    assert candidates_of(SOURCE, ["stem"])[-1].cut == "none"


def test_weights_that_are_given_are_used_and_those_that_come_with_graft_found(tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    file.touch()
    found, missing = sources(None, {"vgg16": str(file), "resnet50": "IMAGENET1K_V1"})
    by_name = {each.name: each.overrides for each in found}
    assert by_name["vgg16"] == ("model=vgg16", f"model.weights={file}")
    assert by_name["resnet50"] == ("model=torchvision", "model.name=resnet50", "model.weights=IMAGENET1K_V1")
    assert by_name["vgg_mini"] == ("model=vgg_mini",)
    assert not {"vgg16", "vgg_mini"} & set(missing)
