"""Heads trained on stored features as in a run, to see what its optimizer reaches in its number of steps."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from graft.config.schema import TrainConfig
from graft.data.feature_batches import Features
from graft.features.cut import Cut
from graft.features.passes import FeaturePass
from graft.learning.optimizers import build_optimizer
from graft.learning.schedulers import Length, build_schedule
from graft.probing.features import Pretrained
from graft.probing.heads import Fold, Integers, Probabilities
from graft.seeding import seeded_everywhere
from graft.transfer.plan import plan_transfer


@dataclass(frozen=True)
class StoredBackbone:
    """A network with the stored outputs of its frozen backbone, so that its head can be trained.

    Attributes:
        config: of the run, with a strategy that freezes the backbone: its optimizer, schedule, batch size and clipping.
        network: its head is trained, and then reset.
        runner: of the network.
        cut: at the end of the backbone.
        features: the tensors there, of N images.
        views: those of the same images with the augmentation of the first epochs, which are trained on in turn; none:
            `features`.
        labels: class indices [N].
    """

    config: TrainConfig
    network: Pretrained
    runner: FeaturePass
    cut: Cut
    features: Features
    views: list[Features]
    labels: Integers

    def logits(self, rows: torch.Tensor, epoch: int | None = None) -> torch.Tensor:
        """Float logits of the images at the indices `rows`; augmented in an epoch of training."""
        features = self.features if epoch is None or not self.views else self.views[epoch % len(self.views)]
        tensors = (tensor.to(self.runner.device) for tensor in features.pick(rows))
        outputs = self.cut.suffix(self.network.network, *tensors)
        logits: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        return logits.float()


def trained_head(
    backbone: StoredBackbone, folds: list[Fold], steps: int, seconds: float
) -> tuple[Probabilities, npt.NDArray[np.int64]]:
    """Train the head of a frozen backbone, and predict the images of other folds.

    Args:
        backbone: the network and its features.
        folds: of the images.
        steps: number of optimizer steps.
        seconds: no further fold is begun when a fold more would take longer than this in total.

    Returns:
        (probabilities [M, C], indices of the M images that were predicted, ascending).
    """
    module = backbone.network.network
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found: dict[int, npt.NDArray[np.float64]] = {}
    started = time.perf_counter()
    with backbone.runner.computing(training=True), seeded_everywhere(backbone.config.seed, "trained head"):
        for number, (fit, rest) in enumerate(folds):
            spent = time.perf_counter() - started
            if number and spent * (number + 1) / number > seconds:
                break
            module.load_state_dict(before)
            _train(backbone, fit, steps)
            module.eval()
            with torch.no_grad():
                for rows in torch.from_numpy(rest).split(64):
                    logits = backbone.logits(rows)
                    found |= dict(zip(rows.tolist(), logits.softmax(1).double().cpu().numpy(), strict=True))
    module.load_state_dict(before)
    for parameter in module.parameters():
        parameter.grad = None
    predicted = np.array(sorted(found), np.int64)
    return np.stack([found[row] for row in predicted.tolist()]), predicted


def _train(backbone: StoredBackbone, fit: npt.NDArray[np.int64], steps: int) -> None:
    """Train the head on the images at the indices `fit`."""
    config, network = backbone.config, backbone.network
    module, size = network.network, min(int(config.data.batch_size), len(fit))
    plan = plan_transfer(module, config.strategy, config.freeze, config.optimizer, None, network.weights.loaded)
    plan.apply(0)
    module.train()
    plan.set_modes(0)
    per_epoch = max(1, len(fit) // size)
    optimizer = build_optimizer(plan.groups, config.optimizer, fused=False)
    if hasattr(optimizer, "train"):  # one that averages weights
        optimizer.train()
    schedule = build_schedule(optimizer, config.scheduler, Length(steps, per_epoch), None)
    followed = schedule is not None and "monitor" not in schedule  # there is no validation to follow
    trained = [each for each in module.parameters() if each.requires_grad]
    smoothing = config.loss.label_smoothing or 0.0
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:
            order = torch.from_numpy(fit)[torch.randperm(len(fit))]
        rows, order = order[:size].sort().values, order[size:]
        targets = torch.from_numpy(backbone.labels[rows.numpy()]).to(backbone.runner.device)
        loss = nn.functional.cross_entropy(backbone.logits(rows, step // per_epoch), targets, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        if config.trainer.gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(trained, config.trainer.gradient_clip_val)
        optimizer.step()
        if schedule is not None and followed and (schedule["interval"] == "step" or (step + 1) % per_epoch == 0):
            schedule["scheduler"].step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
