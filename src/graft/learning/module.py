"""The LightningModule that every strategy trains: a network, a transfer plan and a loss."""

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
from graft.errors import TrainingError
from graft.learning.callbacks.averaging import AveragedWeights
from graft.learning.confusion_counts import ClassCounts, EvaluationCounts, widest
from graft.learning.deferred import Batches, Deferred
from graft.learning.loss_monitor import WAY_OUT, LossMonitor
from graft.learning.losses import CROSS_ENTROPY, Loss, as_scalar
from graft.learning.metrics import ConfiguredMetrics
from graft.learning.optimizers import build_optimizer
from graft.learning.resuming import Origin, apply_changes
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
        loss: function of logits and targets; None: torch's cross-entropy.
        target: dotted path of the loss, for messages.
        mixup, cutmix: alpha of the Beta distribution, 0 for off (Zhang et al. 2018; Yun et al. 2019).
        auxiliary: weight of the loss of an auxiliary head, for networks that have one (Inception: 0.4).
        on_nan: "raise" ends the run at a step whose loss is NaN or infinite, "skip" skips the step.
        nan_limit: largest number of skipped steps.
    """

    loss: Loss | None = None
    target: str = CROSS_ENTROPY
    mixup: float = 0.0
    cutmix: float = 0.0
    auxiliary: float = 0.4
    on_nan: str = "raise"
    nan_limit: int = 10


class TransferModule(pl.LightningModule):
    """Trains `network` by `plan`, validates and tests it, and logs its metrics.

    Args:
        network: normalised images [B, 3, H, W] to logits [B, C]; in training mode it may also return a named tuple
            (logits, aux_logits).
        plan: which parameters train in which epoch, and the parameter groups.
        classes: names of the C classes.
        preprocessing: mean and std of the normalisation, which is done on the device.
        objective: the loss.
        optimizer, scheduler: their configurations.
        seed: with epoch and step the only source of randomness, so that a resumed run equals an uninterrupted one.
        provenance: plain values that make a checkpoint complete (recipe, config, …), saved under "graft".
        log_every: log every this many optimizer steps.
        views: of test-time augmentation, by name; used by the test.
        metrics: of validation and test, in addition to loss and accuracy, by name.
        mode: "max" or "min", the direction in which the metric that the schedule monitors improves.

    Attributes:
        suffixes: `FeatureBatch.cut` -> function (network, *features) that computes the network's output from cached
            features.
        collapsed: the warning of the last validation if it predicted a single class; else None.
        test_counts: of the test; None before it.
        results: the latest value of every metric.
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
        mode: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.classes = classes
        self.preprocessing = preprocessing
        self.objective = objective
        self.optimizer_config, self.scheduler_config, self.mode = optimizer, scheduler, mode
        self.seed = seed
        self.provenance = dict(provenance)
        self.log_every = log_every
        self.views = dict(views)
        self.normalisation = Normalise(preprocessing)
        self.suffixes: dict[str, Callable[..., Any]] = {}
        self.criterion = objective.loss or nn.CrossEntropyLoss()
        self.metrics = nn.ModuleDict({split: ConfiguredMetrics(copy.deepcopy(metrics or {})) for split in EVALUATED})
        # Sums of (loss · images, correct, images) on the device, read only when something is logged. They are no
        # buffers, because averaged weights swap those during validation.
        self.epoch_sums = self.window_sums = torch.zeros(3)
        self.counts = EvaluationCounts(len(classes), torch.device("cpu"))
        self.deferred_loss = Deferred(self._add_losses)
        self.loss_monitor = LossMonitor(self, skip=objective.on_nan == "skip", limit=objective.nan_limit)
        self._origin: Origin | None = None
        self.collapsed: str | None = None
        self.test_counts: ClassCounts | None = None
        self.results: dict[str, float] = {}

    # -- input ---------------------------------------------------------------------------------------------

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images [B, 3, H, W] by mean and std; channels-last if the network is."""
        images = self.normalisation(images)
        return images.contiguous(memory_format=torch.channels_last) if is_channels_last(self.network) else images

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] to logits [B, C]."""
        return _logits(self.network(self.normalise(images)))

    def _forward_features(self, batch: FeatureBatch) -> Any:
        """The network's output for the images whose cached features these are."""
        return self.suffixes[batch.cut](self.network, *batch.features)

    # -- training ------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "TransferModule":
        """Set the mode as torch does, but keep frozen modules in evaluation mode: no BatchNorm update, no Dropout."""
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
        """Freeze before DDP wraps the network: it waits for the gradient of every parameter that requires one then."""
        if self.plan.static:
            self.plan.apply(0)

    def on_train_start(self) -> None:
        """Prepare the first step; a run that resumes within an epoch keeps the sums of its checkpoint."""
        if self._origin is not None:
            apply_changes(self.trainer, self._origin, self.provenance["config"], self.plan.groups)
        self.plan.apply(self.current_epoch)
        self.train()
        self.epoch_sums, self.window_sums = (sums.to(self._zeros()) for sums in (self.epoch_sums, self.window_sums))

    def on_train_epoch_start(self) -> None:
        self.plan.apply(self.current_epoch)
        self.train()  # modules that this epoch unfreezes are still in evaluation mode
        self.epoch_sums, self.window_sums = self._zeros(), self._zeros()

    def on_train_batch_start(self, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        seed_device(self.device, self.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor | None:
        self.loss_monitor.before_step()
        labels = targets = batch.labels
        if isinstance(batch, FeatureBatch):
            output = self._forward_features(batch)
        else:
            images, targets = self.prepared(batch, batch_idx)
            output = self.network(images)
        logits, *auxiliary = [output] if isinstance(output, Tensor) else [part for part in output if part is not None]
        main = self._loss(logits, targets)
        side = sum((self._loss(part, targets) for part in auxiliary), start=main.new_zeros(()))
        loss = main + self.objective.auxiliary * side
        if self._trainer is not None and self.loss_monitor.skips(loss, batch, batch_idx):
            return None
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
            self.epoch_sums.add_(sums)  # in place: nn.Module.__setattr__ is slow
            self.window_sums.add_(sums)
        if (self.global_step + 1) % self.log_every == 0 and self._last_of_accumulation(batch_idx):
            self._log_step({"train/loss_main": main, "train/loss_aux": side} if auxiliary else {})
        return self._scaled_to_window(loss, batch_idx)

    def _scaled_to_window(self, loss: Tensor, batch_idx: int) -> Tensor:
        """The loss, scaled so that the gradient of a shorter last accumulation window is a mean too.

        Lightning divides by trainer.accumulate_grad_batches in every window.
        """
        if self._trainer is None:
            return loss
        nominal, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        length = min(nominal, batches - batch_idx // nominal * nominal)
        return loss if length == nominal else loss * (nominal / length)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients right after the step, and not only after the next forward pass as Lightning does."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: `optimizer_step` has freed the gradients."""

    def prepared(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The network's input and targets: normalised images [B, 3, H, W], and class indices [B], or with MixUp and
        CutMix the share of each class [B, C]."""
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
        self.loss_monitor.read()
        loss, correct, count = self.window_sums.tolist()
        self._require_finite("train/loss", loss)
        self.loss_monitor.check_growth(loss / count, len(self.classes))
        self.window_sums.zero_()
        metrics = {"train/loss_step": loss / count, "train/acc_step": correct / count}
        metrics |= {name: float(value.detach()) for name, value in extra.items()}
        metrics |= self.learning_rates()
        self._write(metrics, self.global_step + 1)

    def learning_rates(self) -> dict[str, float]:
        """ "lr/GROUP" -> current learning rate of each parameter group."""
        optimizer = self.trainer.optimizers[0]
        return {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}

    def training_figures(self) -> dict[str, float]:
        """train/loss and train/acc of the current epoch so far, over all processes."""
        loss, correct, count = self._over_processes(self.epoch_sums)
        return {"train/loss": loss / count, "train/acc": correct / count} if count else {}

    def on_train_epoch_end(self) -> None:
        self.loss_monitor.read()
        figures = self.training_figures()
        self._record(figures, self.global_step)
        self.loss_monitor.check_growth(figures.get("train/loss", math.inf), len(self.classes))

    # -- evaluation ----------------------------------------------------------------------------------------

    def _start_evaluation(self, split: str) -> None:
        self.counts = EvaluationCounts(len(self.classes), self.device)
        self.deferred_loss.clear()
        self._metrics(split).reset()

    def _metrics(self, split: str) -> ConfiguredMetrics:
        return self.metrics[split]  # type: ignore[return-value]

    def _evaluate(self, batch: Batch | FeatureBatch, split: str, views: Mapping[str, View] = IDENTITY) -> Tensor:
        if isinstance(batch, FeatureBatch):
            logits = _logits(self._forward_features(batch)).float()
        else:
            size = self.preprocessing.size
            logits = mean_of_views(lambda images: self(images).float(), batch.images, views, size)
        if self.objective.target == CROSS_ENTROPY:
            self.counts.update(logits, batch.labels)
        else:
            self.counts.update(logits, batch.labels, logits.new_zeros(()))
            self.deferred_loss.add(logits.detach().clone(), batch.labels)
        self._metrics(split).update(logits, batch.labels)
        return logits

    def _add_losses(self, batches: Batches) -> None:
        """Add the configured loss, summed over the images of each batch."""
        for logits, labels in batches:
            self.counts.add_loss(self._loss(logits, labels) * len(labels))

    def _class_counts(self) -> ClassCounts:
        """The counts of the evaluation, over all processes."""
        self.deferred_loss.flush()
        return self.counts.compute(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def validation_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")  # callbacks use the logits

    def on_validation_epoch_end(self) -> None:
        counts = self._class_counts()
        figures = counts.figures("val") | self._configured_metrics("val", counts)
        if self.trainer.state.fn == "fit":
            figures |= self.training_figures()  # a validation within an epoch shows both
            self._check_for_collapse(counts)
        self._record(figures, self.global_step)

    def _check_for_collapse(self, counts: ClassCounts) -> None:
        """Warn if the network predicts a single class: usually too large a step has broken it."""
        classes = [name for name, count in zip(self.classes, counts.predicted, strict=True) if count]
        before, self.collapsed = self.collapsed, None
        if len(classes) == 1:
            self.collapsed = (
                f"epoch {self.current_epoch + 1}: every validation image is predicted as {classes[0]!r}. If this "
                "continues, training has collapsed: lower optimizer.lr, or set trainer.gradient_clip_val=1."
            )
        if self.collapsed and not before and self.trainer.is_global_zero:
            log.warning("%s", self.collapsed)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def test_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", self.views)

    def on_test_epoch_end(self) -> None:
        counts = self.test_counts = self._class_counts()
        pairs = zip(self.classes, counts.per_class(), strict=True)
        each = {f"test/acc/{name}": accuracy for name, accuracy in pairs if accuracy is not None}
        self._record(counts.figures("test") | each | self._configured_metrics("test", counts), self.global_step)

    def _configured_metrics(self, split: str, counts: ClassCounts) -> dict[str, float]:
        """The configured metrics of a split: "val/NAME", or "val/NAME/CLASS" for each class that has images."""
        values = self._metrics(split).compute(self.classes, counts.images)
        return {f"{split}/{name}": value for name, value in values.items()}

    # -- logging -------------------------------------------------------------------------------------------

    def _over_processes(self, sums: Tensor) -> list[float]:
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum").tolist()

    def _require_finite(self, name: str, value: float) -> None:
        """Raise TrainingError if a loss is NaN or infinite: the weights do not recover from that."""
        if math.isfinite(value) or (self.trainer.precision == "16-mixed" and name == "train/loss"):
            return  # fp16's loss scaling skips a step that overflows
        raise TrainingError(
            f"{name} is {value} in epoch {self.current_epoch + 1}, after step {self.global_step}: training diverged.\n"
            f"{WAY_OUT}"
        )

    def _record(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass metrics to the callbacks (best checkpoint, early stopping, plateau), the loggers and `results`."""
        for name in ("train/loss", "val/loss"):
            self._require_finite(name, metrics.get(name, 0.0))
        monitored = {name: value for name, value in metrics.items() if name.count("/") == 1}  # not of one class
        self.log_dict(monitored, logger=False, batch_size=1, prog_bar=True)
        self.results |= metrics
        self._write(metrics, step)

    def _write(self, metrics: Mapping[str, float], step: int) -> None:
        if self.trainer.is_global_zero:
            after_training = self.trainer.state.fn == "test" and self.current_epoch > 0
            epoch = self.current_epoch - after_training  # the test's row is that of the last step
            for logger in self.trainer.loggers:
                logger.log_metrics({**metrics, "epoch": epoch}, step)

    # -- optimizer and checkpoint --------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        self.plan.apply(self._epoch)
        # a fused step undoes fp16's loss scaling itself, too late for clipping
        scaled = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None
        optimizer = build_optimizer(self.plan.groups, self.optimizer_config, fused=not scaled)
        schedule = build_schedule(optimizer, self.scheduler_config, Length.of(self.trainer), self.mode)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm; Lightning refuses to clip for a fused optimizer even in bf16, where nothing is scaled."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes a checkpoint complete; the loggers write first, so that a resumed run finds all metrics."""
        for logger in self.trainer.loggers:
            logger.save()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AveragedWeights):
                callback.save_averages(checkpoint, self)
        checkpoint["graft"] = self.provenance | {"metrics": dict(self.results)}
        checkpoint["length"] = asdict(Length.of(self.trainer))
        checkpoint["sums"] = {name: getattr(self, name).cpu() for name in SUMS} | {"skipped": self.loss_monitor.skipped}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the interrupted epoch and the metrics."""
        self._origin = Origin.of(checkpoint)
        sums = checkpoint.get("sums", {})
        self.epoch_sums, self.window_sums = (sums.get(name, self._zeros()) for name in SUMS)
        self.loss_monitor.skipped = sums.get("skipped", 0)
        self.results = dict(checkpoint["graft"]["metrics"])


def _logits(output: Any) -> Tensor:
    """The logits in a network's output, which may also hold those of auxiliary heads."""
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits
