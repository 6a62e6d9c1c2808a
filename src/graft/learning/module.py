"""The LightningModule that every strategy trains: a network, a transfer plan and a loss."""

import copy
import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.transforms import v2

from graft.config.schema import OptimizerConfig, SchedulerConfig
from graft.config.task import SINGLE_LABEL, Task
from graft.data.datasets import Batch
from graft.data.feature_batches import FeatureBatch
from graft.data.preprocessing import Preprocessing
from graft.errors import TrainingError
from graft.learning.callbacks.averaging import AveragedWeights
from graft.learning.callbacks.keep_predictions import gathered
from graft.learning.confusion_counts import EvaluationCounts, widest
from graft.learning.decisions import Decisions, Evaluated, decisions_of
from graft.learning.deferred import Batches, Deferred
from graft.learning.distillation import Teacher
from graft.learning.evaluation_weights import EvaluationWeights
from graft.learning.label_scores import DEFAULT_THRESHOLD, LabelScores
from graft.learning.loss_monitor import WAY_OUT, LossMonitor
from graft.learning.losses import CROSS_ENTROPY, Loss, as_scalar
from graft.learning.metrics import ConfiguredMetrics
from graft.learning.optimizers import build_optimizer
from graft.learning.resuming import Origin, apply_changes
from graft.learning.schedulers import Length, build_schedule
from graft.learning.sharpness import SharpnessAware
from graft.learning.starting_point import StartingPoint
from graft.learning.views import IDENTITY, View, mean_of_views
from graft.models.normalise import Normalise, is_channels_last
from graft.seeding import seed_device, seeded
from graft.transfer.plan import TransferPlan

log = logging.getLogger("graft")

EVALUATED = ("val", "test")

SUMS = ("epoch_sums", "window_sums")

TRAINED = "current_model_state"
"""Key of a checkpoint for the weights that train, where "state_dict" has others for evaluation; Lightning's name."""


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
        sam_rho, sam_adaptive: of sharpness-aware minimisation, see `SharpnessAware`; None: without it.
    """

    loss: Loss | None = None
    target: str = CROSS_ENTROPY
    mixup: float = 0.0
    cutmix: float = 0.0
    auxiliary: float = 0.4
    on_nan: str = "raise"
    nan_limit: int = 10
    sam_rho: float | None = None
    sam_adaptive: bool = False


class Losses(NamedTuple):
    """The logits [B, C] of a training batch, its loss, and the parts of that under their names, if it has several."""

    logits: Tensor
    total: Tensor
    parts: dict[str, Tensor]


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
        task: whether an image has one label or several.
        starting_point: pulls the weights towards it (L2-SP).
        teacher: networks whose probabilities are learned, too.

    Attributes:
        decisions: of the task.
        thresholds: with several labels per image, the threshold of each, chosen by the last validation; else None.
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
        task: Task = SINGLE_LABEL,
        starting_point: StartingPoint | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.decisions: Decisions = decisions_of(task)
        self.thresholds: tuple[float, ...] | None = None
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
        self.metrics = nn.ModuleDict(
            {split: ConfiguredMetrics(copy.deepcopy(metrics or {}), self.decisions) for split in EVALUATED}
        )
        # Sums of (loss · images, hits of the task, images) on the device, read only when something is logged. They are
        # no buffers, because averaged weights swap those during validation.
        self.epoch_sums = self.window_sums = torch.zeros(self._number_of_sums)
        self.counts = self.decisions.evaluation(len(classes), torch.device("cpu"))
        self.deferred_loss = Deferred(self._add_losses)
        self.loss_monitor = LossMonitor(self, skip=objective.on_nan == "skip", limit=objective.nan_limit)
        self.sharpness = None if (rho := objective.sam_rho) is None else SharpnessAware(rho, objective.sam_adaptive)
        self.evaluation_weights: EvaluationWeights | None = None
        self.starting_point, self.teacher = starting_point, teacher
        self._origin: Origin | None = None
        self.collapsed: str | None = None
        self.test_counts: Evaluated | None = None
        self.results: dict[str, float] = {}
        self._written: tuple[int, frozenset[str]] = -1, frozenset()

    # -- input ---------------------------------------------------------------------------------------------

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images [B, C, H, W] by mean and std; channels-last if the network is."""
        images = self.normalisation(images)
        return images.contiguous(memory_format=torch.channels_last) if is_channels_last(self.network) else images

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] before normalisation to logits [B, classes]."""
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

    @property
    def _number_of_sums(self) -> int:
        example = torch.zeros(1, 1)
        return 2 + len(self.decisions.hits(example, example))

    def _zeros(self) -> Tensor:
        return torch.zeros(self._number_of_sums, dtype=widest(self.device), device=self.device)

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
        if self.evaluation_weights is not None:
            self.evaluation_weights.train()
        self.epoch_sums, self.window_sums = (sums.to(self._zeros()) for sums in (self.epoch_sums, self.window_sums))

    def on_train_epoch_start(self) -> None:
        self.plan.apply(self.current_epoch)
        self.train()  # modules that this epoch unfreezes are still in evaluation mode
        self.epoch_sums, self.window_sums = self._zeros(), self._zeros()

    def on_train_batch_start(self, batch: Batch | FeatureBatch | None, batch_idx: int) -> None:
        seed_device(self.device, self.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor | None:
        self.loss_monitor.before_step()
        labels = batch.labels
        taught: Tensor | None = None
        if isinstance(batch, FeatureBatch):
            forward, targets = functools.partial(self._forward_features, batch), self.decisions.targets(labels)
        else:
            images, targets = self.prepared(batch, batch_idx)
            forward = functools.partial(self.network, images)
            taught = None if self.teacher is None else self.teacher.probabilities(images)
        losses = self._losses(forward(), targets, taught)
        loss = losses.total
        if self._skips(loss, batch, batch_idx):
            return None
        with torch.no_grad():
            hits = self.decisions.hits(losses.logits, labels)
            sums = torch.stack([loss.detach() * len(labels), *hits, torch.full_like(hits[0], len(labels))])
        if self.sharpness is not None:
            loss = self._highest_loss(loss, lambda: self._losses(forward(), targets, taught).total, batch_idx)
            if self._skips(loss, batch, batch_idx):
                self.sharpness.restore()
                return None
        self.epoch_sums.add_(sums)  # in place: nn.Module.__setattr__ is slow
        self.window_sums.add_(sums)
        if (self.global_step + 1) % self.log_every == 0 and self._last_of_accumulation(batch_idx):
            self._log_step(losses.parts)
        return self._scaled_to_window(loss, batch_idx)

    def _losses(self, output: Any, targets: Tensor, taught: Tensor | None) -> Losses:
        """The losses of an output; `taught`: the teacher's probabilities [B, C]."""
        logits, *auxiliary = [output] if isinstance(output, Tensor) else [part for part in output if part is not None]
        main = total = self._loss(logits, targets)
        parts = {"train/loss_main": main}
        if self.teacher is not None and taught is not None:
            parts["train/loss_distill"] = distilled = self.teacher.loss(logits, taught)
            total = (1 - self.teacher.alpha) * main + self.teacher.alpha * distilled
        if auxiliary:
            parts["train/loss_aux"] = side = torch.stack([self._loss(part, targets) for part in auxiliary]).sum()
            total = total + self.objective.auxiliary * side
        return Losses(logits, total, parts if len(parts) > 1 else {})

    def _skips(self, loss: Tensor, batch: Batch | FeatureBatch, batch_idx: int) -> bool:
        return self._trainer is not None and self.loss_monitor.skips(loss, batch, batch_idx)

    def _highest_loss(self, loss: Tensor, again: Callable[[], Tensor], batch_idx: int) -> Tensor:
        """The loss at the weights of the ascent, see `SharpnessAware`; `on_after_backward` restores the weights."""
        assert self.sharpness is not None

        def with_the_same_masks() -> Tensor:  # of Dropout
            if self._trainer is not None:
                self.on_train_batch_start(None, batch_idx)
            return again()

        scaler = None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)
        return self.sharpness.loss_at_highest(loss, self.network, with_the_same_masks, scaler)

    def on_after_backward(self) -> None:
        if self.sharpness is not None:
            self.sharpness.restore()

    def _scaled_to_window(self, loss: Tensor, batch_idx: int) -> Tensor:
        """The loss, scaled so that the gradient of a shorter last accumulation window is a mean too.

        Lightning divides by trainer.accumulate_grad_batches in every window.
        """
        if self._trainer is None:
            return loss
        nominal, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        length = min(nominal, batches - batch_idx // nominal * nominal)
        return loss if length == nominal else loss * (nominal / length)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.starting_point is not None:
            self.starting_point.add_gradients()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients right after the step, and not only after the next forward pass as Lightning does."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: `optimizer_step` has freed the gradients."""

    def prepared(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The network's input and targets: normalised images [B, 3, H, W], and class indices [B]; or with MixUp and
        CutMix, and with several labels per image, the share of each class [B, C]."""
        images, targets = self.normalise(batch.images), self.decisions.targets(batch.labels)
        if self.objective.mixup or self.objective.cutmix:
            return self._mix(images, targets, batch_idx)
        return images, targets

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
        loss, *hits, count = self.window_sums.tolist()
        self._require_finite("train/loss", loss)
        self.loss_monitor.check_growth(loss / count, self.decisions.loss_of_guess(len(self.classes)))
        self.window_sums.zero_()
        figure = f"train/{self.decisions.task.training}_step"
        metrics = {"train/loss_step": loss / count, figure: self.decisions.training_metric(hits, count)}
        metrics |= {name: float(value.detach()) for name, value in extra.items()}
        metrics |= self.learning_rates()
        self._write(metrics, self.global_step + 1)

    def learning_rates(self) -> dict[str, float]:
        """ "lr/GROUP" -> current learning rate of each parameter group."""
        optimizer = self.trainer.optimizers[0]
        return {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}

    def training_figures(self) -> dict[str, float]:
        """train/loss and the metric of training (train/acc) of the current epoch so far, over all processes."""
        loss, *hits, count = self._over_processes(self.epoch_sums)
        figure = f"train/{self.decisions.task.training}"
        return {"train/loss": loss / count, figure: self.decisions.training_metric(hits, count)} if count else {}

    def on_train_end(self) -> None:
        if self.evaluation_weights is not None:
            self.evaluation_weights.use()

    def on_train_epoch_end(self) -> None:
        self.loss_monitor.read()
        figures = self.training_figures()
        self._record(figures, self.global_step)
        self.loss_monitor.check_growth(
            figures.get("train/loss", math.inf), self.decisions.loss_of_guess(len(self.classes))
        )

    # -- evaluation ----------------------------------------------------------------------------------------

    def _start_evaluation(self, split: str) -> None:
        thresholds = None if split == "val" else self.thresholds_or_default
        self.counts = self.decisions.evaluation(len(self.classes), self.device, thresholds)
        self.deferred_loss.clear()
        self._metrics(split).reset()

    def _metrics(self, split: str) -> ConfiguredMetrics:
        return self.metrics[split]  # type: ignore[return-value]

    def _evaluate(self, batch: Batch | FeatureBatch, split: str, views: Mapping[str, View] = IDENTITY) -> Tensor:
        if isinstance(batch, FeatureBatch):
            logits = _logits(self._forward_features(batch)).float()
        else:
            size = self.preprocessing.size
            logits = mean_of_views(lambda images: self(images).float(), batch.images, views, size, self.decisions)
        if self.objective.target == CROSS_ENTROPY and isinstance(self.counts, EvaluationCounts):
            self.counts.update(logits, batch.labels)
        else:
            self.counts.update(logits, batch.labels, logits.new_zeros(()))
            self.deferred_loss.add(logits.detach().clone(), batch.labels)
        self._metrics(split).update(logits, batch.labels)
        return logits

    def _add_losses(self, batches: Batches) -> None:
        """Add the configured loss, summed over the images of each batch."""
        for logits, labels in batches:
            self.counts.add_loss(self._loss(logits, self.decisions.targets(labels)) * len(labels))

    def _evaluated(self) -> Evaluated:
        """The results of the evaluation, over all processes."""
        self.deferred_loss.flush()
        return self.counts.compute(
            lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"),
            lambda parts: gathered(parts, self.trainer),
        )

    @property
    def thresholds_or_default(self) -> tuple[float, ...]:
        """The thresholds; before any validation 0.5 of each label."""
        return self.thresholds or (DEFAULT_THRESHOLD,) * len(self.classes)

    def on_validation_start(self) -> None:
        if self.evaluation_weights is not None and self.trainer.state.fn == "fit":
            self.evaluation_weights.use()

    def on_validation_end(self) -> None:
        """After the callbacks, which save the best checkpoint."""
        if self.evaluation_weights is not None and self.trainer.state.fn == "fit":
            self.evaluation_weights.train()

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def validation_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")  # callbacks use the logits

    def on_validation_epoch_end(self) -> None:
        counts = self._evaluated()
        if isinstance(counts, LabelScores):
            self.thresholds = counts.thresholds
        figures = counts.figures("val") | self._configured_metrics("val", counts)
        if self.trainer.state.fn == "fit":
            figures |= self.training_figures()  # a validation within an epoch shows both
            self._check_for_collapse(counts)
        self._record(figures, self.global_step)

    def _check_for_collapse(self, counts: Evaluated) -> None:
        """Warn if the network predicts the same for all images: usually too large a step has broken it."""
        before, self.collapsed = self.collapsed, None
        if symptom := counts.collapse(self.classes):
            self.collapsed = (
                f"epoch {self.current_epoch + 1}: {symptom}. If this "
                "continues, training has collapsed: lower optimizer.lr, or set trainer.gradient_clip_val=1."
            )
        if self.collapsed and not before and self.trainer.is_global_zero:
            log.warning("%s", self.collapsed)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def test_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", self.views)

    def on_test_epoch_end(self) -> None:
        counts = self.test_counts = self._evaluated()
        each = counts.by_class("test", self.classes)
        self._record(counts.figures("test") | each | self._configured_metrics("test", counts), self.global_step)

    def _configured_metrics(self, split: str, counts: Evaluated) -> dict[str, float]:
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
        """Pass metrics to the loggers, each once for a step: the end of an epoch repeats some of its validation."""
        if self.trainer.is_global_zero:
            after_training = self.trainer.state.fn == "test" and self.current_epoch > 0
            epoch = self.current_epoch - after_training  # the test's row is that of the last step
            known = self._written[1] if self._written[0] == step else frozenset()
            new = {name: value for name, value in {**metrics, "epoch": epoch}.items() if name not in known}
            self._written = step, known | new.keys()
            for logger in self.trainer.loggers:
                logger.log_metrics(new, step)

    # -- optimizer and checkpoint --------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        self.plan.apply(self._epoch)
        # a fused step undoes fp16's loss scaling itself, too late for clipping
        scaled = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None
        optimizer = build_optimizer(self.plan.groups, self.optimizer_config, fused=not scaled)
        self.evaluation_weights = EvaluationWeights.of(optimizer)
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
        if self.evaluation_weights is not None and not self.evaluation_weights.in_use:
            trained = {name: tensor.clone() for name, tensor in checkpoint["state_dict"].items()}
            with self.evaluation_weights.used():
                checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            if "optimizer_states" in checkpoint:
                checkpoint[TRAINED] = trained
        checkpoint["graft"] = self.provenance | {"metrics": dict(self.results), "task": self.decisions.task.name}
        if self.thresholds is not None:
            checkpoint["graft"]["thresholds"] = list(self.thresholds)
        checkpoint["length"] = asdict(Length.of(self.trainer))
        checkpoint["sums"] = {name: getattr(self, name).cpu() for name in SUMS} | {"skipped": self.loss_monitor.skipped}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the interrupted epoch and the metrics; let Lightning load the trained weights.

        Raises:
            TrainingError: the weights to stay near (L2-SP), or the teacher, are not those of the checkpoint's run.
        """
        self._require_same_origin(checkpoint["graft"])
        if TRAINED in checkpoint and "averaging_state" not in checkpoint:  # with it, its callback does
            checkpoint["state_dict"] = checkpoint[TRAINED]
        self._origin = Origin.of(checkpoint)
        sums = checkpoint.get("sums", {})
        self.epoch_sums, self.window_sums = (sums.get(name, self._zeros()) for name in SUMS)
        self.loss_monitor.skipped = sums.get("skipped", 0)
        self.results = dict(checkpoint["graft"]["metrics"])
        self.thresholds = thresholds_in(checkpoint)

    def _require_same_origin(self, before: Mapping[str, Any]) -> None:
        now = self.provenance
        if self.starting_point is not None and before["weights"]["sha256"] != now["weights"]["sha256"]:
            source = now["weights"]["source"]
            raise TrainingError(
                f"resume: strategy.l2_sp stays near the weights that the run began with, and {source} has others.\n"
                "Give the file of the run as model.weights, or begin a new run."
            )
        if self.teacher is not None and before.get("teacher", []) != now["teacher"]:
            named = ", ".join(each.source for each in self.teacher.networks)
            raise TrainingError(
                f"resume: loss.teacher={named} is not the teacher that the run has learned from.\n"
                "Give that one, or begin a new run."
            )


def thresholds_in(checkpoint: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The thresholds of the labels in a checkpoint; None for one label per image."""
    thresholds = checkpoint["graft"].get("thresholds")
    return None if thresholds is None else tuple(thresholds)


def _logits(output: Any) -> Tensor:
    """The logits in a network's output, which may also hold those of auxiliary heads."""
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits
