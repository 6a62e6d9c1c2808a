"""A learning-rate schedule: linear warm-up, then the inverse square root of the step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from graft.learning.schedulers import Length


def inverse_sqrt(optimizer: Optimizer, length: Length, warmup_epochs: float = 1.0) -> LambdaLR:
    """Raise each group's learning rate linearly, then lower it by 1/√step (Vaswani et al. 2017, section 5.3).

    It does not depend on the end of the run, so a run can be continued for as long as it improves. Use it with
    `interval: step`.

    Args:
        optimizer: its groups' learning rates are the highest of the schedule.
        length: of the run, in optimizer steps; Graft supplies it because there is an argument of this name.
        warmup_epochs: length of the warm-up, at least one step.
    """
    warmup = max(1, round(warmup_epochs * length.steps_per_epoch))
    return LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5))
