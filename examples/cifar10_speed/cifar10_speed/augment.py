"""A transform for `augment.transforms`, written for whole batches."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.data.draws import uniforms
from graft.seeding import seed_of


class AlternatingFlip:
    """Mirrors each image left to right in every other epoch, so that two epochs show both sides (Jordan 2024, 3.6).

    A random half of the images begins mirrored.
    """

    def batch(self, images: Tensor, *, seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> Tensor:
        """Images uint8 [B, 3, H, W] of these indices in `epoch`, mirrored or not."""
        begins_mirrored = uniforms(seed_of(seed, "mirror"), indices, 1)[:, 0] < 0.5
        mirrored = torch.from_numpy(begins_mirrored ^ bool(epoch % 2)).to(images.device, non_blocking=True)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)
