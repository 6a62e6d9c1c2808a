"""Averaged weights: an exponential moving average that is validated and saved instead of the trained weights."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from graft.learning.compat import count_averages_on_cpu, has_average
from graft.system.compat import copy_all_, lerp_all_


class AveragedWeights(WeightAveraging):
    """Exponential moving average of weights and buffers (Polyak & Juditsky 1992), validated and saved in their place.

    Frozen tensors stay bit-identical: floats are interpolated (Lightning's EMAWeightAveraging takes
    decay·a + (1 - decay)·a, which is not exactly a), and integers such as BatchNorm's counter are copied (torch's own
    average rounds them down a little in each step).

    Args:
        decay: weight of the average in each step, in [0, 1].
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_moving_average(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # torch reads the number of averages in every step, which would synchronise a GPU
            count_averages_on_cpu(self)

    def save_averages(self, checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
        """Put the averages into the checkpoint's "state_dict".

        Lightning excludes the state of callbacks from checkpoints without an optimizer, which would then hold the
        weights of the last step.
        """
        if "averaging_state" not in checkpoint and has_average(self):
            self.on_save_checkpoint(module.trainer, module, checkpoint)
            del checkpoint["averaging_state"], checkpoint["current_model_state"]


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], _: Any) -> None:
        if averaged[0].is_floating_point():
            lerp_all_(averaged, current, 1 - decay)
        else:
            copy_all_(averaged, current)

    return update
