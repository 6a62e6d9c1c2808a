"""The LightningModule: one network, one transfer plan, one loss; the same for every strategy."""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.transforms import v2

from graft.config.schema import OptimizerConfig, SchedulerConfig
from graft.data.datasets import Batch
from graft.data.feature_batches import FeatureBatch
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import PADDING
from graft.errors import TrainingError
from graft.learning.callbacks import AveragedWeights
from graft.learning.confusion_counts import Counts, Tally, widest
from graft.learning.loss_monitor import WAY_OUT, LossWatch
from graft.learning.losses import CROSS_ENTROPY, Loss, as_scalar
from graft.learning.metrics import computed
from graft.learning.optimizers import build_optimizer
from graft.learning.resuming import Origin, RunLength, apply_changes
from graft.learning.schedulers import Length, build_schedule
from graft.learning.views import IDENTITY, View, mean_of_views
from graft.models.normalise import Normalise, is_channels_last
from graft.seeding import seed_device, seeded
from graft.transfer.plan import TransferPlan

log = logging.getLogger("graft")

EVALUATED = ("val", "test")

SUMS = ("epoch_sums", "window_sums")


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Attributes:
        loss: of logits and targets; None is torch's cross-entropy.
        target: dotted path of the loss, for messages.
        mixup, cutmix: alpha of the Beta distribution, 0 for off (Zhang et al. 2018; Yun et al. 2019).
        auxiliary: weight of an auxiliary head's loss where a network has one (Inception: 0.4).
        on_nan: what becomes of a step whose loss is NaN or infinite: "raise" ends the run, "skip" leaves it out.
        nan_limit: so many steps may be left out.
    """

    loss: Loss | None = None
    target: str = CROSS_ENTROPY
    mixup: float = 0.0
    cutmix: float = 0.0
    auxiliary: float = 0.4
    on_nan: str = "raise"
    nan_limit: int = 10


class Learner(pl.LightningModule):
    """Trains `network` by `plan`; validates and tests it; logs under the contract's metric names.

    Args:
        network: images [B, 3, S, S] (normalised) to logits [B, C]; in training mode a network may also return
            a named tuple (logits, aux_logits).
        plan: what is trainable in which epoch, and the parameter groups.
        classes: names of the C classes.
        preprocessing: mean and std for the normalisation, done here, on the device.
        objective: the loss.
        optimizer, scheduler: their configurations.
        seed: with epoch and step the only source of chance, so that a resumed run draws what it would have drawn.
        views: of test-time augmentation, by name; used by the test.
        metrics: of validation and test, in addition to loss and accuracy, by name.
        provenance: plain values that make a checkpoint whole (recipe, config, …), saved under "graft".

    Attributes:
        suffixes: for batches of features, by `FeatureBatch.cut`: (network, *features) -> what the network gives
            for the images.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: TransferPlan,
        *,
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
        objective: Objective,
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
        seed: int,
        provenance: Mapping[str, Any],
        log_every: int = 10,
        views: Mapping[str, View] = IDENTITY,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.classes = classes
        self.preprocessing = preprocessing
        self.objective = objective
        self.optimizer_config, self.scheduler_config = optimizer, scheduler
        self.seed = seed
        self.provenance = dict(provenance)
        self.log_every = log_every
        self.views = dict(views)
        self.normalisation = Normalise(preprocessing)
        self.suffixes: dict[str, Callable[..., Any]] = {}
        self.criterion = objective.loss or nn.CrossEntropyLoss()
        self.metrics = nn.ModuleDict({split: nn.ModuleDict(copy.deepcopy(dict(metrics or {}))) for split in EVALUATED})
        # Sums of (loss · images, correct, images) on the device, read only when something is logged. No buffers:
        # averaged weights swap those during validation.
        self.epoch_sums = self.window_sums = torch.zeros(3)
        self.tally = Tally(len(classes), torch.device("cpu"))
        self.watch = LossWatch(self, skip=objective.on_nan == "skip", limit=objective.nan_limit)
        self._origin: Origin | None = None
        self.collapsed: str | None = None
        """What to say when the last validation saw one class only."""
        self.results: dict[str, float] = {}

    # -- input ---------------------------------------------------------------------------------------------

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] to float, minus mean, over std; channels-last where the network is."""
        images = self.normalisation(images)
        return images.contiguous(memory_format=torch.channels_last) if is_channels_last(self.network) else images

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, S, S] to logits [B, C]."""
        return _logits(self.network(self.normalise(images)))

    def _go_on(self, batch: FeatureBatch) -> Any:
        """What the network gives for the images that the frozen layers made these features of."""
        return self.suffixes[batch.cut](self.network, *batch.features)

    # -- training ------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Learner":
        """As in torch, but what the plan freezes stays in evaluation mode: no BatchNorm update, no Dropout."""
        super().train(mode)
        if mode:
            self.plan.set_modes(self._epoch)
        return self

    def _zeros(self) -> Tensor:
        return torch.zeros(3, dtype=widest(self.device), device=self.device)

    @property
    def _epoch(self) -> int:
        return self.trainer.current_epoch if self._trainer is not None else 0

    def setup(self, stage: str) -> None:
        """DDP waits for the gradient of whatever takes one when it wraps the network, which is after this."""
        if self.plan.static:
            self.plan.apply(0)

    def on_train_start(self) -> None:
        """Where a run goes on within an epoch, that epoch is not begun again, and what it has summed up is here."""
        if self._origin is not None:
            apply_changes(self.trainer, self._origin, self.provenance["config"], self.plan.groups)
        self.plan.apply(self.current_epoch)
        self.train()
        self.epoch_sums, self.window_sums = (sums.to(self._zeros()) for sums in (self.epoch_sums, self.window_sums))

    def on_train_epoch_start(self) -> None:
        self.plan.apply(self.current_epoch)
        self.train()  # what this epoch unfreezes was left in evaluation mode by the one before
        self.epoch_sums, self.window_sums = self._zeros(), self._zeros()

    def on_train_batch_start(self, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        seed_device(self.device, self.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor | None:
        self.watch.before_step()
        labels = targets = batch.labels
        if isinstance(batch, FeatureBatch):
            output = self._go_on(batch)
        else:
            images, targets = self.prepared(batch, batch_idx)
            output = self.network(images)
        logits, *auxiliary = [output] if isinstance(output, Tensor) else [part for part in output if part is not None]
        main = self._loss(logits, targets)
        side = sum((self._loss(part, targets) for part in auxiliary), start=main.new_zeros(()))
        loss = main + self.objective.auxiliary * side
        if self._trainer is not None and self.watch.leaves_out(loss, batch, batch_idx):
            return None
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
            self.epoch_sums.add_(sums)  # a module looks long at whatever is assigned to it
            self.window_sums.add_(sums)
        if (self.global_step + 1) % self.log_every == 0 and self._last_of_accumulation(batch_idx):
            self._log_step({"train/loss_main": main, "train/loss_aux": side} if auxiliary else {})
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Gradients go at once, and not, as in Lightning, after the next forward pass, which can use their room."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Nothing: they are gone since the last step."""

    def prepared(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """What the network is trained on: normalised images [B, 3, S, S], and their classes [B], or the shares of
        each class [B, C] where images are mixed."""
        images = self.normalise(batch.images)
        if self.objective.mixup or self.objective.cutmix:
            return self._mix(images, batch.labels, batch_idx)
        return images, batch.labels

    def _last_of_accumulation(self, batch_idx: int) -> bool:
        every = self.trainer.accumulate_grad_batches
        return (batch_idx + 1) % every == 0 or batch_idx + 1 == self.trainer.num_training_batches

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return as_scalar(self.criterion(logits.float(), targets), self.objective.target)

    def _mix(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        count = len(self.classes)
        choices: list[nn.Module] = []
        if self.objective.mixup:
            choices.append(v2.MixUp(alpha=self.objective.mixup, num_classes=count))
        if self.objective.cutmix:
            choices.append(v2.CutMix(alpha=self.objective.cutmix, num_classes=count))
        with seeded(self.seed, "mix", self.current_epoch, batch_idx, self.global_rank):
            return v2.RandomChoice(choices)(images, labels)

    def _log_step(self, extra: Mapping[str, Tensor]) -> None:
        self.watch.read()
        loss, correct, count = self.window_sums.tolist()
        self._require_finite("train/loss", loss)
        self.watch.heed(loss / count, len(self.classes))
        self.window_sums.zero_()
        metrics = {"train/loss_step": loss / count, "train/acc_step": correct / count}
        metrics |= {name: float(value.detach()) for name, value in extra.items()}
        metrics |= self.learning_rates()
        self._write(metrics, self.global_step + 1)

    def learning_rates(self) -> dict[str, float]:
        """ "lr/GROUP" of every parameter group, now."""
        optimizer = self.trainer.optimizers[0]
        return {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}

    def training_figures(self) -> dict[str, float]:
        """train/loss and train/acc since the epoch began, over all processes."""
        loss, correct, count = self._over_processes(self.epoch_sums)
        return {"train/loss": loss / count, "train/acc": correct / count} if count else {}

    def on_train_epoch_end(self) -> None:
        self.watch.read()
        figures = self.training_figures()
        self._record(figures, self.global_step)
        self.watch.heed(figures.get("train/loss", math.inf), len(self.classes))

    # -- evaluation ----------------------------------------------------------------------------------------

    def _start_evaluation(self, split: str) -> None:
        self.tally = Tally(len(self.classes), self.device)
        for metric in self._metrics(split).values():
            metric.reset()

    def _metrics(self, split: str) -> dict[str, Metric]:
        return dict(self.metrics[split].items())  # type: ignore[operator]

    def _evaluate(self, batch: Batch | FeatureBatch, split: str, views: Mapping[str, View] = IDENTITY) -> Tensor:
        if isinstance(batch, FeatureBatch):
            logits = _logits(self._go_on(batch)).float()
        else:
            size = self.preprocessing.input_size
            logits = mean_of_views(lambda images: self(images).float(), batch.images, views, size)
        loss = None if self.objective.target == CROSS_ENTROPY else self._summed_loss(logits, batch.labels)
        self.tally.count(logits, batch.labels, loss)
        known = batch.labels != PADDING
        for metric in self._metrics(split).values():
            metric.update(logits[known].softmax(1), batch.labels[known])
        return logits

    def _summed_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The run's own loss, summed over a batch's images; padding of the last batch is not counted."""
        known = labels != PADDING
        return self._loss(logits[known], labels[known]) * known.sum() if known.any() else logits.new_zeros(())

    def _counted(self) -> Counts:
        return self.tally.read(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def validation_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")  # the logits, for callbacks

    def on_validation_epoch_end(self) -> None:
        counts = self._counted()
        figures = counts.figures("val") | self._computed("val")
        if self.trainer.state.fn == "fit":
            figures |= self.training_figures()  # so that a validation within an epoch shows both sides
            self._watch_for_collapse(counts)
        self._record(figures, self.global_step)

    def _watch_for_collapse(self, counts: Counts) -> None:
        """Say it when a trained network takes everything for one class: most often it died of too large a step."""
        classes = [name for name, count in zip(self.classes, counts.taken_for, strict=True) if count]
        before, self.collapsed = self.collapsed, None
        if len(classes) == 1:
            self.collapsed = (
                f"epoch {self.current_epoch + 1}: every validation image is taken for {classes[0]!r}. If this stays "
                "so, the network has died: lower optimizer.lr, or set trainer.gradient_clip_val=1."
            )
        if self.collapsed and not before and self.trainer.is_global_zero:
            log.warning("%s", self.collapsed)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def test_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", self.views)

    def on_test_epoch_end(self) -> None:
        counts = self._counted()
        each = {f"test/acc/{name}": acc for name, acc in zip(self.classes, counts.per_class(), strict=True)}
        self._record(counts.figures("test") | each | self._computed("test"), self.global_step)

    def _computed(self, split: str) -> dict[str, float]:
        """The configured metrics of a split: "val/NAME", or "val/NAME/CLASS" where a metric has a value per class."""
        return {f"{split}/{name}": value for name, value in computed(self._metrics(split), self.classes).items()}

    # -- logging -------------------------------------------------------------------------------------------

    def _over_processes(self, sums: Tensor) -> list[float]:
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum").tolist()

    def _require_finite(self, name: str, value: float) -> None:
        """Stop at once when a loss is no number any more: the weights never come back from it."""
        if math.isfinite(value) or (self.trainer.precision == "16-mixed" and name == "train/loss"):
            return  # fp16's loss scaling leaves out a step that overflows
        raise TrainingError(
            f"{name} is {value} in epoch {self.current_epoch + 1}, after step {self.global_step}: training diverged.\n"
            f"{WAY_OUT}"
        )

    def _record(self, metrics: Mapping[str, float], step: int) -> None:
        """To the callbacks (best checkpoint, early stopping, plateau), the loggers and `results`."""
        for name in ("train/loss", "val/loss"):
            self._require_finite(name, metrics.get(name, 0.0))
        monitored = {name: value for name, value in metrics.items() if name.count("/") == 1}  # not each class's own
        self.log_dict(monitored, logger=False, batch_size=1, prog_bar=True)
        self.results |= metrics
        self._write(metrics, step)

    def _write(self, metrics: Mapping[str, float], step: int) -> None:
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics({**metrics, "epoch": self.current_epoch}, step)

    # -- optimizer and checkpoint --------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        self.plan.apply(self._epoch)
        # a fused step undoes fp16's loss scaling itself, too late for clipping
        scaled = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None
        optimizer = build_optimizer(self.plan.groups, self.optimizer_config, fused=not scaled)
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = max(1, self.trainer.max_epochs or 1)
        length = Length(steps, max(1, -(-steps // epochs)))
        schedule = build_schedule(optimizer, self.scheduler_config, length)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm. Lightning refuses to clip for a fused optimizer even in bf16, where nothing is scaled."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What makes it whole; and the figures up to here reach the disk first, so that a resumed run finds them."""
        for logger in self.trainer.loggers:
            logger.save()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AveragedWeights):
                callback.put_into(checkpoint, self)
        checkpoint["graft"] = self.provenance | {"metrics": dict(self.results)}
        checkpoint["length"] = asdict(RunLength.of(self.trainer))
        checkpoint["sums"] = {name: getattr(self, name).cpu() for name in SUMS} | {"skipped": self.watch.skipped}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on summing up where it was left."""
        self._origin = Origin.of(checkpoint)
        sums = checkpoint.get("sums", {})
        self.epoch_sums, self.window_sums = (sums.get(name, self._zeros()) for name in SUMS)
        self.watch.skipped = sums.get("skipped", 0)
        self.results = dict(checkpoint["graft"]["metrics"])


def _logits(output: Any) -> Tensor:
    """What a network says first, before what its auxiliary heads say."""
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits
