"""Keeps the predictions of validation and test while they run, without an extra pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from graft.config.task import MULTI_LABEL
from graft.data.datasets import Batch
from graft.data.labels import PADDING
from graft.learning.predictions import AnyPredictions, LabelPredictions, Predictions

Columns = dict[str, list[Tensor]]

LARGEST = 2**22
"""Largest number of values of the head's input that are kept, two bytes each: fewer images if it is wide."""

LARGEST_LABELS = 2**24
"""Largest number of labels that are kept of images with several, five bytes each: fewer images if there are many."""

FEATURES = {"features": torch.float16, "feature_indices": torch.int32}

# field: the type in which its values are kept
TYPES = {
    "indices": torch.int32, "labels": torch.int32, "predicted": torch.int32, "confidence": torch.float32,
    "truth": torch.float32, "scores": torch.float16, **FEATURES,
}  # fmt: skip

LABEL_TYPES = {"indices": torch.int32, "labels": torch.int8, "scores": torch.float32, **FEATURES}
"""The same of images with several labels."""


class KeepPredictions(Callback):
    """Keeps the predictions of the validation that `best.ckpt` was saved at, and those of the test.

    Collected on the device during validation and test, and read once at the end of each. Memory: N x (20 + 2 `scores`)
    bytes for N images, and at most 8 MiB of the head's input; with C labels per image 5 C bytes for each, of at most
    80 MiB together. The best ones are part of last.ckpt, so a resumed run has them.

    Args:
        monitor: the metric that chooses the best checkpoint; None if the last one is kept.
        mode: "max" or "min": the direction in which it improves.
        head: name of the module whose input is the embedding; None for none.
        scores: number of classes whose probabilities are kept.
        features: number of images whose head input is kept.

    Attributes:
        best: at the best validation so far; None before the first.
        test: of the test; None before it.
    """

    def __init__(self, *, monitor: str | None, head: str | None, scores: int, features: int, mode: str = "max") -> None:
        self.monitor, self.mode, self.head, self.scores, self.features = monitor, mode, head, scores, features
        self.best: AnyPredictions | None = None
        self.test: AnyPredictions | None = None
        self._score: float | None = None
        self._columns: Columns = {}
        self._types = TYPES
        self._batches = 1
        self._head_input: list[Tensor] = []
        self._hook: Any = None

    # -- collecting --------------------------------------------------------------------------------------------

    def _begin(self, module: pl.LightningModule, *, with_features: bool) -> None:
        self._types = LABEL_TYPES if module.decisions.task is MULTI_LABEL else TYPES  # type: ignore[union-attr]
        self._columns = {name: [] for name in self._types}
        if with_features and self.head is not None and self.features:
            network: nn.Module = module.network  # type: ignore[assignment]
            self._hook = network.get_submodule(self.head).register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._head_input[:] = inputs[:1]

    @torch.no_grad()
    def _take(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch, and the head's input of its first few images."""
        if self._types is LABEL_TYPES:
            row = label_columns_of(logits, batch, -(-LARGEST_LABELS // (logits.shape[1] * self._batches)))
        else:
            row = columns_of(logits, batch, self.scores)
        if self._head_input and len(self._head_input[0]) == len(batch.labels):
            features = flattened(self._head_input.pop())
            few = -(-min(self.features, LARGEST // features.shape[1]) // self._batches)
            row |= {"features": features[:few].clamp(-6e4, 6e4), "feature_indices": batch.indices[:few]}
        for name, values in row.items():
            self._columns[name].append(values.to(self._types[name], copy=True))

    def _end(self, trainer: pl.Trainer, module: pl.LightningModule) -> AnyPredictions:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._head_input.clear()
        columns = {name: gathered(parts, trainer) for name, parts in self._columns.items()}
        self._columns = {}
        thresholds = module.thresholds_or_default if self._types is LABEL_TYPES else None
        return sorted_predictions(
            columns,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            thresholds=thresholds,  # type: ignore[arg-type]
        )

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_kept(trainer):
            self._batches = max(1, int(sum(trainer.num_val_batches)) * trainer.world_size)
            self._begin(pl_module, with_features=True)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if is_kept(trainer):
            self._take(outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not is_kept(trainer):
            return
        taken = self._end(trainer, pl_module)
        if trainer.state.fn == "validate" or self._is_best(trainer):
            self.best = taken

    def _is_best(self, trainer: pl.Trainer) -> bool:
        """As ModelCheckpoint decides: the first validation, then each strictly better one; NaN is worst."""
        if self.monitor is None:
            return True
        sign = 1.0 if self.mode == "max" else -1.0
        score = sign * float(trainer.callback_metrics[self.monitor])
        score = float("-inf") if score != score else score
        if self._score is not None and score <= self._score:
            return False
        self._score = score
        return True

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = max(1, int(sum(trainer.num_test_batches)) * trainer.world_size)
        self._begin(pl_module, with_features=False)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._take(outputs, batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.test = self._end(trainer, pl_module)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        types = LABEL_TYPES if isinstance(self.best, LabelPredictions) else TYPES
        arrays = {name: torch.from_numpy(getattr(self.best, name)).to(kind) for name, kind in types.items()}
        state = {"score": self._score, "step": self.best.step, "epoch": self.best.epoch, **arrays}
        return state | ({"thresholds": list(self.best.thresholds)} if isinstance(self.best, LabelPredictions) else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            thresholds = state_dict.get("thresholds")
            columns = {name: state_dict[name] for name in (TYPES if thresholds is None else LABEL_TYPES)}
            self._score = state_dict["score"]
            self.best = sorted_predictions(
                columns, step=state_dict["step"], epoch=state_dict["epoch"], thresholds=thresholds
            )


def columns_of(logits: Tensor, batch: Batch, scores: int) -> dict[str, Tensor]:
    """The columns of `Predictions` for a batch, with the probabilities of the first `scores` classes."""
    probabilities = logits.softmax(1).nan_to_num()  # the network may have diverged
    predicted = logits.nan_to_num().argmax(1)  # as accuracy counts, also with the ties of half precision
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    truth = probabilities.gather(1, batch.labels.to(logits.device).clamp(min=0)[:, None])[:, 0]
    return {
        "indices": batch.indices, "labels": batch.labels, "predicted": predicted, "confidence": confidence,
        "truth": truth, "scores": probabilities[:, :scores],
    }  # fmt: skip


def label_columns_of(logits: Tensor, batch: Batch, most: int) -> dict[str, Tensor]:
    """The columns of `LabelPredictions` for the first `most` images of a batch."""
    scores = logits[:most].sigmoid().nan_to_num()  # the network may have diverged
    return {"indices": batch.indices[:most], "labels": batch.labels[:most], "scores": scores}


def is_kept(trainer: pl.Trainer) -> bool:
    """Whether a validation is kept: not the baseline at step 0."""
    return trainer.state.fn == "fit" or trainer.global_step > 0


def flattened(features: Tensor) -> Tensor:
    """Features [B, D]: a map [B, D, H, W] is averaged over its positions, anything else is flattened."""
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def gathered(parts: list[Tensor], trainer: pl.Trainer) -> Tensor:
    """The rows of all batches and of all processes, on the CPU."""
    if not parts:
        return torch.zeros(0)
    own_rows = torch.cat(parts).contiguous()
    all_rows = [own_rows]
    if trainer.world_size > 1 and own_rows.numel():  # all have the same number of rows: shards are padded
        all_rows = [torch.empty_like(own_rows) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(all_rows, own_rows)
    elif trainer.world_size > 1:
        all_rows = [own_rows] * trainer.world_size
    return torch.cat(all_rows).cpu()


def sorted_predictions(
    columns: Mapping[str, Tensor], *, step: int, epoch: int, thresholds: Sequence[float] | None = None
) -> AnyPredictions:
    """Predictions without padding, in the order of the data set; `thresholds` are of images with several labels."""
    types = TYPES if thresholds is None else LABEL_TYPES
    arrays = {name: values.numpy() for name, values in columns.items()}
    of_images = [name for name in types if name not in (*FEATURES, "indices")]
    for key, group in (("indices", of_images), ("feature_indices", ["features"])):
        order = np.argsort(arrays[key], kind="stable")
        order = order[arrays[key][order] != PADDING]
        for name in (key, *group):
            arrays[name] = arrays[name][order]
    kinds = {name: np.float32 if types[name].is_floating_point else np.int64 for name in arrays}
    typed = {name: values.astype(kinds[name]) for name, values in arrays.items()}
    if thresholds is None:
        return Predictions(step, epoch, **typed)
    typed["labels"] = typed["labels"] == 1
    return LabelPredictions(step, epoch, thresholds=tuple(thresholds), **typed)
