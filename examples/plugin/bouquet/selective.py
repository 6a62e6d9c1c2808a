"""A metric: accuracy on the images that the network is surest of."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class SelectiveAccuracy(Metric):
    """Accuracy of the most confident predictions (Geifman & El-Yaniv 2017, "Selective Classification").

    Answers: if a person looks at the 20 % that the network is least sure of, how accurate is it on the rest?

    It takes no **kwargs, so that Graft can refuse a misspelt argument before data are read.

    Args:
        coverage: share of the images to count, in (0, 1].

    Raises:
        ValueError: `coverage` is out of range.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, coverage: float = 0.8) -> None:
        super().__init__()
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage={coverage}: must be above 0 and at most 1")
        self.coverage = coverage
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: probabilities [B, C] and class indices [B]."""
        best, predicted = probabilities.max(1)
        self.confidence.append(best)
        self.correct.append(predicted == labels)

    def compute(self) -> Tensor:
        """A number in [0, 1]."""
        confidence, correct = dim_zero_cat(self.confidence), dim_zero_cat(self.correct)
        count = max(1, round(self.coverage * len(confidence)))
        kept = confidence.argsort(descending=True, stable=True)[:count]
        return correct[kept].double().mean()
