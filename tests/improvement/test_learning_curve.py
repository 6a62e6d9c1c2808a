"""Learning curves are measured on nested subsets and extrapolated by power laws."""

import numpy as np
import pytest

from graft.improvement.learning_curve import extrapolated, learning_curves, measure, nested_order

SIZES = np.array([50, 100, 200, 400, 800.0])


@pytest.mark.parametrize(("a", "b", "c"), [(0.0, 1.0, 0.4), (0.05, 0.8, 0.5)])
def test_a_power_law_is_continued(a: float, b: float, c: float) -> None:
    errors = a + b * SIZES**-c
    random = np.random.RandomState(0)
    drawn = errors + random.normal(0, 0.004, (200, 1))  # the same images with each size
    (forecast,) = extrapolated(SIZES, errors, drawn, [3200], random)
    truth = 1 - (a + b * 3200**-c)
    assert forecast.value == pytest.approx(truth, abs=0.01)
    assert forecast.low <= truth <= forecast.high
    assert forecast.high - forecast.low < 0.06


def test_accuracy_that_does_not_grow_is_not_expected_to_fall() -> None:
    drawn = np.full((50, 5), 0.2)
    (forecast,) = extrapolated(SIZES, np.full(5, 0.2), drawn, [6400], np.random.RandomState(0))
    assert forecast.value == pytest.approx(0.8, abs=0.01)


def test_each_beginning_has_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = nested_order(labels, 1)
    assert sorted(order.tolist()) == list(range(100))
    for count in (10, 20, 50):
        counts = np.bincount(labels[order[:count]], minlength=3)
        assert np.abs(counts - count * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert order.tolist() != nested_order(labels, 2).tolist()


def test_curves_rise_with_images_and_groups_stay_whole() -> None:
    random = np.random.RandomState(0)
    labels = np.arange(240) % 3
    features = (random.normal(size=(240, 30)) + 1.2 * np.eye(30)[labels]).astype(np.float32)
    overall, *of_classes = learning_curves(features, labels, ("a", "b", "c"))
    assert [curve.name for curve in of_classes] == ["a", "b", "c"]
    assert overall.images[-1] == 192
    assert overall.accuracy[-1] > overall.accuracy[0]
    assert [each.images for each in overall.forecasts] == [480, 960]
    assert np.mean([curve.accuracy[-1] for curve in of_classes]) == pytest.approx(overall.accuracy[-1])
    assert learning_curves(features, labels, ("a", "b", "c"))[0] == overall
    features[120:] = features[:120]  # copies would be recognised, but are in one group
    twins = np.arange(240) % 120
    noise = random.randint(3, size=120)
    chance = measure(features, np.concatenate([noise, noise]), twins, 4, 0).correct[-1].mean()
    assert chance < 0.5
