"""Statistics of predictions, against manual calculations and other libraries."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassCalibrationError

from graft.learning.predictions import Predictions


def made(labels: list[int], predicted: list[int], confidence: list[float] | None = None, **more: object) -> Predictions:
    count = len(labels)
    sure = np.array(confidence or [0.9] * count)
    right = np.array(labels) == np.array(predicted)
    fields: dict = {
        "step": 7,
        "epoch": 1,
        "indices": np.arange(count),
        "labels": np.array(labels, dtype=np.int64),
        "predicted": np.array(predicted, dtype=np.int64),
        "confidence": sure,
        "truth": np.where(right, sure, (1 - sure) / 2),
        "scores": np.zeros((count, 0)),
        "features": np.zeros((0, 4)),
        "feature_indices": np.zeros(0, dtype=np.int64),
    }
    return Predictions(**{**fields, **more})


def drawn(count: int, classes: int, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.4), count)
    labels = random.integers(0, classes, count)
    predicted = probabilities.argmax(1)
    predictions = made(labels.tolist(), predicted.tolist(), probabilities.max(1).tolist())
    return predictions, probabilities


def test_the_confusion_matrix_has_true_classes_in_its_rows() -> None:
    predictions, _ = drawn(500, 7)
    expected = confusion_matrix(predictions.labels, predictions.predicted, labels=range(7))
    assert np.array_equal(predictions.confusion(7), expected)
    correct, totals = predictions.per_class(7)
    assert np.array_equal(correct, np.diag(expected))
    assert np.array_equal(totals, expected.sum(1))
    cells, counts = predictions.confusion_cells(7)
    assert counts[0] == expected.max()
    assert np.array_equal(expected.ravel()[cells], counts)


@pytest.mark.parametrize("bins", [5, 15])
def test_the_calibration_error_is_that_of_torchmetrics(bins: int) -> None:
    predictions, probabilities = drawn(400, 5)
    metric = MulticlassCalibrationError(5, n_bins=bins, norm="l1")
    expected = float(metric(torch.from_numpy(probabilities), torch.from_numpy(predictions.labels)))
    assert predictions.calibration(bins).error == pytest.approx(expected, abs=1e-5)


def test_calibration_of_two_bins_equals_the_manual_calculation() -> None:
    found = made([0, 0, 0, 0], [0, 1, 0, 0], [0.4, 0.4, 0.8, 1.0]).calibration(2)
    assert found.counts.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 1.0]
    assert found.confidence == pytest.approx([0.4, 0.9])
    assert found.error == pytest.approx(0.1)


def test_the_worst_are_wrong_and_least_expected_first() -> None:
    predictions = made([0, 1, 1, 0], [0, 0, 0, 1], [0.9, 0.6, 0.8, 0.7])
    assert predictions.worst(9).tolist() == [2, 3, 1]
    assert predictions.worst(1).tolist() == [2]
    assert len(made([0], [0]).worst(3)) == 0


def test_the_sample_does_not_depend_on_other_images_or_their_order() -> None:
    names = [f"class/{i}.jpg" for i in range(50)]
    chosen = {names[i] for i in made([0] * 50, [0] * 50).sample(8, names)}
    shuffled = list(reversed(names))
    assert {shuffled[i] for i in made([0] * 50, [0] * 50).sample(8, shuffled)} == chosen
    half = [name for number, name in enumerate(names) if number % 2]
    again = {half[i] for i in made([0] * 25, [0] * 25).sample(4, half)}
    assert again & chosen, "what is left of a smaller set is sampled from the same end"
    assert sum(name in half for name in chosen) <= 4 or again <= chosen
