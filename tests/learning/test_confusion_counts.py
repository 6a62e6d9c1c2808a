"""Confusion counts of an evaluation."""

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from graft.data.sampler import PADDING
from graft.errors import DataError
from graft.learning.confusion_counts import EvaluationCounts


def test_counts_equal_those_of_torchmetrics() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 16, 4), torch.randint(0, 3, (5, 16))  # class 3 has no image
    labels[2, 7:], labels[4, 0] = PADDING, PADDING
    real = labels != PADDING
    accumulated = EvaluationCounts(4, torch.device("cpu"))
    for batch in zip(logits, labels, strict=True):
        accumulated.update(*batch)
    counts = accumulated.compute(lambda sums: sums)
    each = MulticlassAccuracy(4, average="none", ignore_index=PADDING)(logits.flatten(0, 1), labels.flatten())
    assert counts.per_class()[:3] == pytest.approx(each.tolist()[:3])
    assert counts.per_class()[3] is None
    figures = counts.figures("val")
    assert figures["val/loss"] == pytest.approx(F.cross_entropy(logits[real], labels[real]).item())
    assert figures["val/acc"] == (logits.argmax(2) == labels).sum().item() / real.sum().item()
    assert counts.predicted == tuple(torch.bincount(logits.argmax(2)[real], minlength=4).tolist())


def test_counts_of_processes_are_summed() -> None:
    alone, both = EvaluationCounts(2, torch.device("cpu")), EvaluationCounts(2, torch.device("cpu"))
    alone.update(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    both.update(torch.tensor([[2.0, 1.0], [0.0, 3.0]]).repeat(2, 1), torch.tensor([0, 0, 0, 0]))
    assert alone.compute(lambda sums: 2 * sums) == both.compute(lambda sums: sums)


def test_a_split_of_padding_only_is_an_error() -> None:
    counts = EvaluationCounts(2, torch.device("cpu"))
    counts.update(torch.randn(3, 2), torch.full((3,), PADDING))
    with pytest.raises(DataError, match="none of the test images"):
        counts.compute(lambda sums: sums).figures("test")
