"""Wrong labels are found by judges that do not know them: confident learning, neighbours, out-of-fold heads."""

import numpy as np
import pytest

from graft.improvement.label_errors import confident_joint, find_label_errors, judged, pooled_opinion, spread_out
from graft.improvement.neighbours import directions, find_neighbours, nearest_of_class, votes
from graft.improvement.outliers import LIMIT, outlier_scores
from graft.improvement.overlaps import overlaps


def blobs(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre for each class, and the labels."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    return (random.normal(size=(count, 12)) + 6 * np.eye(12)[labels]).astype(np.float32), labels


def joint_by_hand(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Northcutt et al. 2021, equations 1 and 2, one image at a time."""
    classes = probabilities.shape[1]
    thresholds = [np.mean([p[c] for p, y in zip(probabilities, labels, strict=True) if y == c]) for c in range(classes)]
    counts = np.zeros((classes, classes))
    for p, y in zip(probabilities, labels, strict=True):
        confident = [c for c in range(classes) if p[c] >= thresholds[c]]
        if confident:
            counts[y, max(confident, key=lambda c: p[c])] += 1
    return np.array([row / row.sum() * np.sum(labels == y) for y, row in enumerate(counts)])


def test_the_confident_joint_is_that_of_the_paper() -> None:
    random = np.random.RandomState(0)
    labels = random.randint(4, size=200)
    probabilities = random.dirichlet(np.ones(4), 200) + 0.5 * np.eye(4)[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    joint = confident_joint(probabilities, labels)
    assert joint == pytest.approx(joint_by_hand(probabilities, labels))
    assert joint.sum(axis=1) == pytest.approx(np.bincount(labels))


def test_changed_labels_are_the_first_suspects_with_their_true_class() -> None:
    features, truth = blobs(count=150)
    changed = [3, 17, 40]
    given = truth.copy()
    given[changed] = (truth[changed] + 1) % 3
    probabilities = judged(features, given, find_neighbours(directions(features)), 3)
    errors = find_label_errors(probabilities, given)
    assert set(errors.suspects[:3].tolist()) == set(changed)
    assert errors.proposed[changed].tolist() == truth[changed].tolist()
    assert errors.estimated == pytest.approx(3, abs=2)
    assert np.array_equal(judged(features, given, find_neighbours(directions(features)), 3), probabilities)


def test_lower_stages_are_used_where_they_predict_more_of_the_labels() -> None:
    features, labels = blobs()
    noise = np.random.RandomState(1).normal(size=features.shape).astype(np.float32)
    neighbours, rows = find_neighbours(directions(noise)), np.arange(len(labels))
    without, with_better = (judged(noise, labels, neighbours, 3, lower=each) for each in (None, features))
    assert with_better[rows, labels].mean() > without[rows, labels].mean() + 0.2
    good = judged(features, labels, neighbours, 3)
    assert np.array_equal(judged(features, labels, neighbours, 3, lower=noise), good), "noise predicts no more"


def test_no_image_is_judged_by_others_of_its_group() -> None:
    features, labels = blobs(count=40, classes=2)
    features[20:] = features[:20]  # each image twice …
    labels[20:] = labels[:20]
    groups = [str(index % 20) for index in range(40)]  # … and both in one group
    neighbours = find_neighbours(directions(features), groups, count=3)
    assert all(other % 20 != index % 20 for index, row in enumerate(neighbours.indices.tolist()) for other in row)
    labels[[5, 25]] = 1 - labels[5]  # a wrong label that its copy repeats
    alone = judged(features, labels, neighbours, 2, groups)
    assert alone[5, labels[5]] < 0.5
    assert 5 in find_label_errors(alone, labels).suspects


def test_neighbours_and_their_votes_are_those_of_a_loop() -> None:
    features, labels = blobs(count=30)
    unit = directions(features)
    found = find_neighbours(unit, count=4)
    cosines = unit @ unit.T
    for index in range(30):
        others = sorted((other for other in range(30) if other != index), key=lambda other: -cosines[index, other])
        assert found.indices[index].tolist() == others[:4]
        of_class = [other for other in others if labels[other] == 2][:3]
        assert nearest_of_class(unit, labels, index, 2) == of_class
    shares = votes(found, labels, 3)
    weights = np.exp(10 * cosines[0, found.indices[0]])
    by_hand = [weights[labels[found.indices[0]] == label].sum() / weights.sum() for label in range(3)]
    assert shares[0] == pytest.approx(0.98 * np.array(by_hand) + 0.02 / 3, rel=1e-4)


def test_opinions_are_pooled_by_their_geometric_mean_and_roots_keep_signs() -> None:
    pooled = pooled_opinion(np.array([[0.9, 0.1]]), np.array([[0.4, 0.6]]))
    assert pooled[0, 0] == pytest.approx(0.6 / (0.6 + np.sqrt(0.06)), rel=1e-3)
    assert spread_out(np.array([[4.0, -9.0, 0.0]], np.float32)).tolist() == [[2, -3, 0]]


def test_an_image_far_from_all_others_is_an_outlier_and_a_wrong_label_is_none() -> None:
    features, _ = blobs(count=90)
    features[7] = -40
    scores = outlier_scores(features)
    assert np.flatnonzero(scores > LIMIT).tolist() == [7]


def test_overlapping_classes_are_counted_in_both_directions() -> None:
    labels = np.repeat([0, 1, 2], 10)
    probabilities = np.eye(3)[labels]
    probabilities[[0, 1, 10]] = np.eye(3)[[1, 1, 0]]
    (pair,) = overlaps(probabilities, labels, confident_joint(probabilities, labels), ("a", "b", "c"))
    assert (pair.classes, pair.confused, pair.share) == (("a", "b"), 3, 0.15)
