"""A DataLoader that resumes within an epoch and limits the wait for its worker processes."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from graft.data.sampler import EpochSampler
from graft.data.workers import batches_of


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that counts its batches and can resume within an epoch.

    Lightning stores `state_dict()` in its checkpoints and restores it before the first batch.

    Args:
        args, kwargs: of DataLoader, with an `EpochSampler`.
        patience: seconds that the worker processes may take for a batch; None: no limit.
    """

    def __init__(self, *args: Any, patience: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience = patience
        self._epoch, self._yielded = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that it reads the sampler at the first batch, after Lightning has set the epoch.
        sampler, batch_size = self._sampler_and_batch_size()
        self._epoch, self._yielded = sampler.epoch, sampler.start // batch_size
        for batch in batches_of(super().__iter__, self.num_workers, self.patience, running=self._iterator):
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches yielded so far."""
        return {"epoch": self._epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the next iteration after the batches of `state`; after a complete epoch, with the next epoch."""
        sampler, batch_size = self._sampler_and_batch_size()
        done = state["batches"] >= len(self)
        sampler.set_epoch(state["epoch"] + done)
        sampler.start = 0 if done else state["batches"] * batch_size
        self._epoch, self._yielded = state["epoch"], state["batches"]

    def _sampler_and_batch_size(self) -> tuple[EpochSampler, int]:
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        return self.sampler, self.batch_size
