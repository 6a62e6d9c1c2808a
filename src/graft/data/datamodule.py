"""The loaders of an experiment."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from graft.data.augment import Augment
from graft.data.augmenter import OwnTransforms
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.datasets import Batch, FileDataset, Sample, collate, decode_cached
from graft.data.decoding import decode_readable
from graft.data.feature_batches import FeatureBatch, FeatureDataset, FeatureTable
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset, DecodedDataset, ResidentDataset, readable
from graft.data.sampler import EpochSampler, stratified_order
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.transforms import Picture, eval_transform
from graft.data.unreadable import UnreadableImages, replace_unreadable
from graft.data.workers import Parcel, batches_of, pack, started
from graft.errors import ConfigError, DataError, GraftError
from graft.seeding import seed_of
from graft.system.cpu import available_cores

MOST_WORKERS = 16
ENOUGH_PROCESSES = 8
"""Worker processes that feed a GPU, which then need not crop what is held in memory itself: on an H200 cropping takes a
tenth of a step of VGG16, and 15 processes on other cores take nothing of it."""
LARGEST_EVAL_BATCH = 512
GPU_SHARE = 1 / 8
"""A set is held on the GPU if it leaves most of the memory that is free there to the network."""

Images = FileDataset | DecodedDataset


class ResumableLoader(DataLoader[Any]):
    """A loader that knows how many batches of which epoch it has handed out, and can go on from there.

    Lightning stores `state_dict()` in its checkpoints and restores it before the first batch.

    Args:
        patience: seconds that a batch of the worker processes may take; None: no limit.
    """

    def __init__(self, *args: Any, patience: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience = patience
        self._epoch, self._handed_out = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that the sampler is asked at the first batch, when Lightning has told it the epoch.
        sampler, batch_size = self._sampler_and_batch_size()
        self._epoch, self._handed_out = sampler.epoch, sampler.start // batch_size
        for batch in batches_of(started(super().__iter__, self.num_workers), self.patience):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it handed out so far."""
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin where that state was taken; after a whole epoch, with the next one."""
        sampler, batch_size = self._sampler_and_batch_size()
        done = state["batches"] >= len(self)
        sampler.set_epoch(state["epoch"] + done)
        sampler.start = 0 if done else state["batches"] * batch_size
        self._epoch, self._handed_out = state["epoch"], state["batches"]

    def _sampler_and_batch_size(self) -> tuple[EpochSampler, int]:
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        return self.sampler, self.batch_size


class ImageDataModule(TrainingData):
    """Training, validation and test loaders of `Batch`es: uint8, not normalised, the same whatever the
    workers. In epochs for which a part has been given features, of `FeatureBatch`es.

    Sets that fit into `resident_gb` (altogether, in each process) are decoded once and held in memory: as evaluation
    sees them, and the training set at its own size where random crops are resized. The test set only if it validates
    too or needs no decoding. Where a GPU trains and has room, they lie there, and training images are made there.

    Args:
        splits: the images.
        preprocessing: what evaluation does to them.
        augment: what chance does to training images.
        batch_size: images per process and training step.
        num_workers: processes that decode; "auto": by the cores available and whether a GPU has to be fed.
        seed: decides order and augmentation, together with the epoch.
        resident_gb: memory for decoded sets, in 2**30 bytes; 0: none.
        avoid_single: leave a last training batch of one image out, because BatchNorm cannot train on it.
        eval_batch_size: images per process and evaluation step; None: twice `batch_size`, up to 512.
        unreadable: what becomes of images that cannot be read when their turn comes; None: an error.
        draft: let the decoding of a large JPEG reduce it, as far as no random crop has to be enlarged for it.
        timeout: seconds that a batch of the worker processes may take; None: no limit.
    """

    pictures = True

    def __init__(
        self,
        splits: Splits,
        preprocessing: Preprocessing,
        augment: Augment,
        *,
        batch_size: int,
        num_workers: int | str = "auto",
        seed: int = 0,
        resident_gb: float = 2.0,
        avoid_single: bool = False,
        eval_batch_size: int | None = None,
        unreadable: UnreadableImages | None = None,
        draft: bool = True,
        timeout: float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size}: at least 1.")
        self.splits, self.preprocessing, self.augment = splits, preprocessing, augment
        self.batch_size, self.seed, self.avoid_single = batch_size, seed, avoid_single
        self.eval_batch_size = eval_batch_size or max(batch_size, min(2 * batch_size, LARGEST_EVAL_BATCH))
        self.num_workers = _checked_workers(num_workers)
        self.unreadable, self.timeout = unreadable, timeout
        self._least = augment.least_side(preprocessing.input_size) if draft else 0
        self.resident, self._room = self._choose_resident(resident_gb)
        self._resident_bytes = int(resident_gb * 2**30) - self._room
        self._evaluated: dict[int, Images] = {}
        self._trained: Images | None = None
        self._features: dict[str, FeatureTable] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return -(-len(self._train_sampler()) // self.batch_size)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded pictures that a GPU with room for them holds."""
        whole = None if self.augment.batchable else self._bytes_to_hold
        return self._resident_bytes + (whole or 0)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; begins with the Trainer's current epoch."""
        sampler = self._train_sampler()
        if self.trainer is not None:
            sampler.set_epoch(self.trainer.current_epoch)
        return self._loader(self._dataset("train"), sampler, self.batch_size, keep_workers=True)

    def val_dataloader(self) -> ResumableLoader:
        """Without augmentation, in order; with trainer.limit_val_batches a stratified sample of all classes."""
        return self._eval_loader(self._dataset("val"), self._limited_order("val"), keep_workers=True)

    def test_dataloader(self) -> ResumableLoader:
        """Without augmentation, in order; with trainer.limit_test_batches a stratified sample of all classes."""
        return self._eval_loader(self._dataset("test"), self._limited_order("test"))

    def _limited_order(self, part: str) -> list[int] | None:
        """The order of a part of which the trainer evaluates only the first batches; None if it evaluates all."""
        if self.trainer is None or getattr(self.trainer, f"limit_{part}_batches") == 1.0:
            return None
        return stratified_order(self.splits.parts()[part].labels, self.seed)

    def eval_loader(self, part: str) -> ResumableLoader:
        """The images of "train", "val" or "test" in order, without augmentation."""
        return self._eval_loader(self._eval_dataset(part))

    def in_order(self, part: str, epoch: int, batch_size: int) -> ResumableLoader:
        """Every image of `part` once, by index, as `epoch` sees it; for one process, whichever it is."""
        dataset = self._images(part)
        sampler = EpochSampler(len(dataset), seed=self.seed, shuffle=False)
        sampler.set_epoch(epoch)
        return self._loader(dataset, sampler, batch_size, keep_workers=False)

    def training_images(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """These training images as `epoch` sees them, uint8 [B, 3, S, S]; no others are decoded."""
        dataset = self._trained or self._train_dataset(only=indices)
        keys = [(epoch, index) for index in indices]
        if isinstance(dataset, DecodedDataset):
            return dataset.__getitems__(keys).images.cpu()
        return collate([dataset[key] for key in keys]).images

    def sample(self, count: int) -> Tensor:
        """`count` training images, or all if there are fewer, as evaluation sees them: uint8 [N, 3, S, S], chosen
        evenly over the set."""
        images = self.splits.train
        rows = images.spread(count).tolist()
        pixels, unread = decode_readable(
            images, self.preprocessing, self.unreadable, what="training images", only=rows, timeout=self.timeout
        )
        return torch.from_numpy(pixels[np.setdiff1d(rows, unread)]).permute(0, 3, 1, 2)

    def pixels_of(self, part: str, epoch: int) -> dict[str, Any]:
        """Plain values that decide every pixel of `in_order(part, epoch)`."""
        values: dict[str, Any] = {
            "images": self.splits.parts()[part].fingerprint(),
            "preprocessing": self.preprocessing.to_dict(),
        }
        if part == "train" and self.augment != Augment():
            values["augment"] = asdict(self.augment) | {"random_resized_crop": self.augment.resized_crop_ranges()}
            if self.augment.transforms:
                values["transforms"] = OwnTransforms(self.augment, self.seed).source_digests()
            values["least"] = self._least
            if not self.augment.batchable:
                values["resized_on"] = "cpu" if self._crop_device() is None else "gpu"
            values["draws"] = {"seed": self.seed, "epoch": epoch, "version": 1}
        return values

    def use_features(self, part: str, table: FeatureTable) -> None:
        """Let the loaders of `part` give features where `table` has them."""
        self._features[part] = table
        if table.complete:  # its images are not needed again
            self._evaluated.pop(id(self.splits.parts()[part]), None)
            self._trained = None if part == "train" else self._trained

    def picture(self, part: str, index: int) -> npt.NDArray[np.uint8]:
        """Image `index` of "train", "val" or "test" as evaluation sees it before normalisation, [S, S, 3]."""
        images = self.splits.parts()[part]
        dataset = self._evaluated.get(id(images))
        if isinstance(dataset, ResidentDataset):
            return dataset.pixels[index]
        if self.unreadable is None:
            picture: Picture | None = images.load(index)
        else:
            picture, _ = self.unreadable.load(images, index, replace=False)
        if picture is None:
            return np.zeros((self.preprocessing.input_size,) * 2 + (3,), np.uint8)
        return eval_transform(self.preprocessing)(picture).permute(1, 2, 0).numpy()

    def _choose_resident(self, resident_gb: float) -> tuple[frozenset[str], int]:
        """(the parts that are held as evaluation sees them, bytes left)."""
        splits, left, chosen = self.splits, resident_gb * 2**30, set()
        eligible = {
            "train": self.augment.batchable,
            "val": True,
            "test": splits.test is splits.val or splits.test.pixels is not None,
        }
        for name, images in splits.parts().items():
            need = 0 if name == "test" and images is splits.val else len(images) * 3 * self.preprocessing.input_size**2
            if eligible[name] and need <= left and (need or "val" in chosen):
                left -= need
                chosen.add(name)
        return frozenset(chosen), int(left)

    def _dataset(self, part: str) -> Images | FeatureDataset:
        """What the loaders of a part read from."""
        table = self._features.get(part)
        if table is None:
            return self._images(part)
        images = None if table.complete else self._images(part)
        return FeatureDataset(self.splits.parts()[part].labels, table, images)

    def _images(self, part: str) -> Images:
        """The images of a part: those to train on augmented, the others not."""
        if part != "train":
            return self._eval_dataset(part)
        if self._trained is None:
            self._trained = self._train_dataset()
        return self._trained

    def _eval_dataset(self, part: str) -> Images:
        """The images of a part as evaluation sees them; one set for two parts that are the same images."""
        images = self.splits.parts()[part]
        if id(images) not in self._evaluated:
            self._evaluated[id(images)] = self._read_eval_dataset(part, images)
        return self._evaluated[id(images)]

    def _train_dataset(self, only: Sequence[int] | None = None) -> Images:
        images = self.splits.train
        if "train" in self.resident:
            return self._decoded("training", images, self.augment, only)
        images = replace(images, least=self._least)
        read: ImageSet | CachedImages = images
        if self._bytes_to_hold is not None:
            read = CachedImages(images, self._bytes_to_hold)
            device = self._crop_device() if only is None else None
            if device is not None:
                decode_cached(read)
                shown = readable(read, self.unreadable)
                if shown is not None:
                    return CroppedDataset(
                        read, shown, self.preprocessing, augment=self.augment, seed=self.seed, device=device
                    )
        return FileDataset(
            read, self.preprocessing, augment=self.augment, seed=self.seed, unreadable=self.unreadable, replace=True
        )

    @cached_property
    def _bytes_to_hold(self) -> int | None:
        """What the training pictures take when they are held at their own size; None: not held."""
        images = replace(self.splits.train, least=self._least)
        if not self._room or images.paths is None:
            return None
        need = bytes_when_decoded(images)
        return need if need <= self._room else None

    def _crop_device(self) -> torch.device | None:
        """The GPU that crops the training pictures; None: they are cropped in this memory."""
        if self._trained is not None:
            return self._trained.device if isinstance(self._trained, CroppedDataset) else None
        if self.augment.batchable or self._processes() >= ENOUGH_PROCESSES:
            return None
        need = self._bytes_to_hold
        return None if need is None else self._home_of(need)

    def _decoded(
        self, name: str, images: ImageSet, augment: Augment | None, only: Sequence[int] | None = None
    ) -> ResidentDataset:
        """`images` in memory; augmented as training wants them, or not as evaluation does."""
        pixels, unread = decode_readable(
            images, self.preprocessing, self.unreadable, what=f"{name} images", only=only, timeout=self.timeout
        )
        labels = replace_unreadable(pixels, images.labels, unread, replace=augment is not None)
        return ResidentDataset(
            pixels,
            labels,
            self.preprocessing,
            augment=augment,
            seed=self.seed,
            device=self._home_of(pixels.nbytes),
        )

    def _read_eval_dataset(self, name: str, images: ImageSet) -> Images:
        if name in self.resident:
            return self._decoded(name, images, None)
        return FileDataset(images, self.preprocessing, unreadable=self.unreadable)

    def _eval_loader(
        self, dataset: Images | FeatureDataset, order: list[int] | None = None, *, keep_workers: bool = False
    ) -> ResumableLoader:
        rank, world = self._rank_and_world()
        sampler = EpochSampler(len(dataset), seed=self.seed, shuffle=False, order=order, rank=rank, world=world)
        return self._loader(dataset, sampler, self.eval_batch_size, keep_workers=keep_workers)

    def _train_sampler(self) -> EpochSampler:
        rank, world = self._rank_and_world()
        drop_last_of = self.batch_size if self.avoid_single else None
        count = len(self.splits.train)
        sampler = EpochSampler(count, seed=self.seed, shuffle=True, rank=rank, world=world, drop_last_of=drop_last_of)
        if self.avoid_single and len(sampler) == 1:
            raise DataError(
                f"{count} training images for {world} processes make a batch of one image, "
                "on which BatchNorm cannot train.\nAdd images, raise data.shots, or set trainer.devices=1."
            )
        return sampler

    def _loader(
        self,
        dataset: Images | FeatureDataset,
        sampler: EpochSampler,
        batch_size: int,
        *,
        keep_workers: bool,
    ) -> ResumableLoader:
        images = dataset.images if isinstance(dataset, FeatureDataset) else dataset
        on_gpu = isinstance(images, DecodedDataset) and images.device is not None
        workers = self._workers(images, -(-len(sampler) // batch_size))
        if isinstance(images, FileDataset):
            images.decode_ahead()
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_collated if isinstance(dataset, FileDataset) else _as_it_is,
            pin_memory=self._on_gpu() and not on_gpu,
            patience=self.timeout,
            persistent_workers=keep_workers and workers > 0,
            # its own generator: a loader without one draws from the global generator whenever it is iterated
            generator=torch.Generator().manual_seed(seed_of(self.seed, "loader")),
        )

    def _workers(self, images: Images | None, batches: int) -> int:
        """Processes worth having: no more than there are batches. What is held is there sooner than a process could
        hand it over, unless a GPU computes meanwhile."""
        if not isinstance(images, FileDataset):
            return 0
        if self.num_workers == "auto" and isinstance(images.images, CachedImages) and not self._on_gpu():
            return 0
        return min(self._processes(), batches)

    def _processes(self) -> int:
        """Worker processes that data.num_workers allows, however few batches there are."""
        if isinstance(self.num_workers, int):
            return self.num_workers
        trainer = self.trainer
        cores = available_cores() // (max(1, trainer.num_devices) if trainer is not None else 1)
        wanted = max(1, cores - 1) if self._on_gpu() else cores // 2  # a CPU that trains needs its cores itself
        return min(wanted, MOST_WORKERS)

    def _on_gpu(self) -> bool:
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def _home_of(self, size: int) -> torch.device | None:
        """The GPU that trains, where decoded pictures of `size` bytes leave it room."""
        if self.trainer is None or not self._on_gpu():
            return None
        device = self.trainer.strategy.root_device
        free, _ = torch.cuda.mem_get_info(device)
        return device if size <= GPU_SHARE * free else None

    def _rank_and_world(self) -> tuple[int, int]:
        """(rank, world) of this process."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _checked_workers(num_workers: int | str) -> int | str:
    if num_workers == "auto":
        return num_workers
    try:
        count = int(num_workers)
    except ValueError:
        count = -1
    if count < 0:
        raise ConfigError(f"data.num_workers={num_workers}: auto, or 0 or more.")
    return count


def _collated(samples: list[Sample] | GraftError) -> Batch | Parcel | GraftError:
    return pack(samples if isinstance(samples, GraftError) else collate(samples))


def _as_it_is(batch: Batch | FeatureBatch) -> Batch | FeatureBatch | Parcel:
    return pack(batch)
