"""Cross-validated heads and LogME on features of which the answers are known."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from graft.errors import DataError
from graft.probing.heads import out_of_fold
from graft.probing.logme import logme


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:400].astype(np.float32), labels[:400]


@pytest.mark.parametrize("head", ["logistic", "lda"])
def test_heads_are_as_accurate_as_scikit_learns_own_cross_validation(
    digits: tuple[np.ndarray, np.ndarray], head: str
) -> None:
    features, labels = digits
    found = out_of_fold(features, labels, head=head)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = cross_val_predict(plain, features, labels, cv=5)
    assert (found.argmax(1) == labels).mean() >= (expected == labels).mean() - 0.02
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found, out_of_fold(features, labels, head=head))


def test_labels_that_are_noise_are_not_learned() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(300, 40)).astype(np.float32), draw.integers(0, 3, 300)
    assert (out_of_fold(features, labels).argmax(1) == labels).mean() < 0.45


def test_no_group_is_divided() -> None:
    """A feature that is the group's name says all about images of a group that a head has been fitted to."""
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    labels = draw.integers(0, 2, 30)[groups]
    features = np.eye(30, dtype=np.float32)[groups]
    assert (out_of_fold(features, labels).argmax(1) == labels).mean() > 0.95
    assert (
        out_of_fold(features, labels, groups=[f"patient{each}" for each in groups]).argmax(1) == labels
    ).mean() < 0.7


def test_a_rare_class_takes_part_and_an_absent_one_has_no_probability() -> None:
    draw = np.random.default_rng(0)
    labels = np.array([0] * 40 + [1] * 40 + [3] * 2)
    features = (draw.normal(size=(82, 4)) + 6 * np.eye(4)[labels]).astype(np.float32)
    found = out_of_fold(features, labels, num_classes=5)
    assert found.shape == (82, 5)
    assert not found[:, [2, 4]].any()
    assert (found.argmax(1) == labels).mean() > 0.95
    with pytest.raises(DataError, match="2 classes"):
        out_of_fold(features, np.zeros(82, np.int64))


def test_each_of_several_labels_has_a_head() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (200, 3)).astype(np.int8)
    labels[:, 2] = 1
    found = out_of_fold((labels + draw.normal(size=(200, 3)) / 4).astype(np.float32), labels)
    assert ((found[:, :2] > 0.5) == labels[:, :2]).mean() > 0.95
    assert (found[:, 2] == 1).all()


@pytest.mark.parametrize("width", [5, 60])
def test_logme_is_the_largest_evidence(width: int) -> None:
    """The evidence of N(0, 1/alpha) weights and N(0, 1/beta) noise is a Gaussian density of the targets."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 40)
    features = draw.normal(size=(40, width)) + labels[:, None]

    def evidence(target: np.ndarray, alpha: float, beta: float) -> float:
        covariance = np.eye(40) / beta + features @ features.T / alpha
        _, log_determinant = np.linalg.slogdet(covariance)
        return -(target @ np.linalg.solve(covariance, target) + log_determinant + 40 * np.log(2 * np.pi)) / 80

    grid = np.logspace(-2, 3, 26)
    best = [max(evidence(labels == number, alpha, beta) for alpha in grid for beta in grid) for number in range(2)]
    direct = float(np.mean(best))
    assert logme(features, labels) == pytest.approx(direct, abs=0.02)
    assert logme(draw.normal(size=(40, width)), labels) < logme(features, labels)
