"""What validation and test count."""

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from graft.data.sampler import PADDING
from graft.errors import DataError
from graft.learning.confusion_counts import Tally


def test_it_counts_what_torchmetrics_counts() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 16, 4), torch.randint(0, 3, (5, 16))  # class 3 has no image
    labels[2, 7:], labels[4, 0] = PADDING, PADDING
    real = labels != PADDING
    tally = Tally(4, torch.device("cpu"))
    for batch in zip(logits, labels, strict=True):
        tally.count(*batch)
    counts = tally.read(lambda sums: sums)
    each = MulticlassAccuracy(4, average="none", ignore_index=PADDING)(logits.flatten(0, 1), labels.flatten())
    assert counts.per_class() == pytest.approx(each.tolist())
    figures = counts.figures("val")
    assert figures["val/loss"] == pytest.approx(F.cross_entropy(logits[real], labels[real]).item())
    assert figures["val/acc"] == (logits.argmax(2) == labels).sum().item() / real.sum().item()
    assert counts.taken_for == tuple(torch.bincount(logits.argmax(2)[real], minlength=4).tolist())


def test_processes_are_added_up() -> None:
    alone, both = Tally(2, torch.device("cpu")), Tally(2, torch.device("cpu"))
    alone.count(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    both.count(torch.tensor([[2.0, 1.0], [0.0, 3.0]]).repeat(2, 1), torch.tensor([0, 0, 0, 0]))
    assert alone.read(lambda sums: 2 * sums) == both.read(lambda sums: sums)


def test_nothing_but_padding_is_an_error_and_not_a_number() -> None:
    tally = Tally(2, torch.device("cpu"))
    tally.count(torch.randn(3, 2), torch.full((3,), PADDING))
    with pytest.raises(DataError, match="none of the test images"):
        tally.read(lambda sums: sums).figures("test")
