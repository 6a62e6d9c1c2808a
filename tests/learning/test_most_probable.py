"""Ties, which half precision makes often, are decided in one way everywhere."""

import torch

from graft.learning.inference import most_probable


def test_of_equal_logits_the_class_that_accuracy_counts_comes_first() -> None:
    logits = torch.randint(0, 3, (500, 10), generator=torch.Generator().manual_seed(0)).float()
    probabilities, labels = most_probable(logits, 4)
    assert torch.equal(labels[:, 0], logits.argmax(1))
    assert torch.equal(probabilities, logits.softmax(1).gather(1, labels))
    assert (probabilities.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 4 for row in labels.tolist())


def test_no_more_classes_than_there_are() -> None:
    assert most_probable(torch.zeros(1, 2), 5)[1].tolist() == [[0, 1]]
