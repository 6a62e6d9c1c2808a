"""The LightningDataModule of Graft's own data sets: loaders, and where decoded images are kept."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.data.augment import Augment
from graft.data.augmenter import CustomTransforms
from graft.data.bands import Levels
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.datasets import Batch, FileDataset, Sample, collate, decode_cached
from graft.data.decoding import decode_readable
from graft.data.feature_batches import FeatureBatch, FeatureDataset, FeatureTable
from graft.data.images import ImageSet, draw_keys
from graft.data.loader import ResumableLoader
from graft.data.parcels import Parcel, pack
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset, DecodedDataset, ResidentDataset, readable_sources
from graft.data.sampler import EpochSampler, stratified_order
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.transforms import Picture, black, eval_transform, for_computing
from graft.data.unreadable import UnreadableImages, replace_unreadable
from graft.errors import ConfigError, DataError, GraftError
from graft.seeding import seed_of
from graft.system.cpu import available_cores

MAX_WORKERS = 16
ENOUGH_PROCESSES = 8
"""Number of worker processes from which on they crop the images of a GPU instead of the GPU, on which cropping takes a
tenth of a step of VGG16 (measured on an H200)."""
MAX_EVAL_BATCH = 512
GPU_SHARE = 1 / 8
"""Largest fraction of the free GPU memory for decoded images; the rest is for the network."""

Images = FileDataset | DecodedDataset


class ImageDataModule(TrainingData):
    """Training, validation and test loaders of `Batch`es, not normalised, independent of the number of workers.

    In epochs for which a split has features (`use_features`), its loader yields `FeatureBatch`es.

    Splits that fit into `resident_gb` (in total, per process) are decoded once and kept in memory: resized and cropped
    as in evaluation, or at their original size if training uses random resized crops. The test split is kept only if
    it is also the validation split or is not in files. If the training GPU has enough free memory, the images are kept
    and augmented there.

    Args:
        splits: the images.
        preprocessing: resizing and cropping in evaluation.
        augment: augmentation of training images.
        batch_size: images per process and training step.
        num_workers: number of worker processes; "auto": depends on the available cores and the accelerator.
        seed: determines order and augmentation, together with the epoch.
        resident_gb: memory for decoded images, in GiB; 0: none.
        avoid_single: drop a last training batch of one image, because BatchNorm cannot train on it.
        eval_batch_size: images per process and evaluation step; None: twice `batch_size`, up to 512.
        unreadable: handles images that turn out to be unreadable; None: they are an error.
        draft: decode large JPEGs at a reduced size, as long as no random crop has to be enlarged.
        timeout: seconds that the worker processes may take for a batch; None: no limit.
        balanced: draw equally many training images of each class in each epoch, as `EpochSampler` describes.

    Raises:
        ConfigError: `batch_size` below 1 or an invalid `num_workers`.
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
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size}: must be at least 1.")
        self.splits, self.preprocessing, self.augment = splits, preprocessing, augment
        self.image_format = preprocessing.image_format
        self.batch_size, self.seed, self.avoid_single = batch_size, seed, avoid_single
        self.eval_batch_size = eval_batch_size or max(batch_size, min(2 * batch_size, MAX_EVAL_BATCH))
        self.num_workers = _valid_workers(num_workers)
        self.unreadable, self.timeout, self.balanced = unreadable, timeout, balanced
        self._min_side = augment.min_side(preprocessing.size) if draft else 0
        self.resident, self._free_bytes = self._choose_resident(resident_gb)
        self._resident_bytes = int(resident_gb * 2**30) - self._free_bytes
        self._eval_datasets: dict[int, Images] = {}
        self._train_images: Images | None = None
        self._features: dict[str, FeatureTable] = {}

    def on_after_batch_transfer(self, batch: Batch | FeatureBatch, dataloader_idx: int) -> Batch | FeatureBatch:
        """The batch with its images in a type to compute with; called by Lightning."""
        return batch._replace(images=for_computing(batch.images)) if isinstance(batch, Batch) else batch

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of this process per epoch."""
        return -(-len(self._train_sampler()) // self.batch_size)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded images, which are on the GPU if it has enough free memory."""
        originals = None if self.augment.batchable else self._cache_bytes
        return self._resident_bytes + (originals or 0)

    def train_dataloader(self) -> ResumableLoader:
        """The training loader, shuffled and augmented, at the Trainer's current epoch."""
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
        """A loader of "train", "val" or "test" in order, without augmentation."""
        return self._eval_loader(self._eval_dataset(part))

    def in_order(
        self, part: str, epoch: int | None, batch_size: int, rows: npt.NDArray[np.int64] | None = None
    ) -> ResumableLoader:
        """A loader of the images at the indices `rows` of a split (None: all), in that order; not distributed.

        Training images are augmented as in `epoch`, unless it is None.
        """
        order = list(range(len(self.splits.parts()[part]))) if rows is None else rows.tolist()
        dataset = self._some_images(part, order, augmented=part == "train" and epoch is not None)
        sampler = EpochSampler(len(order), seed=self.seed, shuffle=False, order=order)
        sampler.set_epoch(epoch or 0)
        return self._loader(dataset, sampler, batch_size, keep_workers=False)

    def training_images(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """These training images, augmented as in `epoch`: [B, C, H, W]; no other images are decoded."""
        dataset = self._train_images or self._train_dataset(only=indices)
        keys = [(epoch, index) for index in indices]
        if isinstance(dataset, DecodedDataset):
            return dataset.__getitems__(keys).images.cpu()
        return collate([dataset[key] for key in keys]).images

    def sample(self, count: int) -> Tensor:
        """`count` training images, or all if there are fewer, spread evenly: [N, C, H, W], not augmented."""
        images = self.splits.train
        rows = images.spread(count).tolist()
        pixels, unread = decode_readable(
            images, self.preprocessing, self.unreadable, what="training images", only=rows, timeout=self.timeout
        )
        return torch.from_numpy(pixels[np.setdiff1d(rows, unread)]).permute(0, 3, 1, 2)

    def pixels_of(self, part: str, epoch: int | None) -> tuple[dict[str, Any], npt.NDArray[np.bytes_]]:
        """What determines every pixel of `in_order(part, epoch)`, for the key of a cache.

        Returns:
            (plain values common to all images, identity of each image in `graft.data.contents.IDENTITY`): augmented
            images differ from their copies under another name, because they are augmented differently.
        """
        images = self.splits.parts()[part]
        identities = images.identities()
        values: dict[str, Any] = {"preprocessing": self.preprocessing.to_dict()}
        if part == "train" and epoch is not None and self.augment != Augment():
            values["augment"] = asdict(self.augment) | {"random_resized_crop": self.augment.resized_crop_ranges()}
            if self.augment.transforms:
                values["transforms"] = CustomTransforms(self.augment, self.seed).source_digests()
            values["least"] = self._min_side
            if not self.augment.batchable:
                values["resized_on"] = "cpu" if self._crop_device() is None else "gpu"
            values["draws"] = {"seed": self.seed, "epoch": epoch, "version": 2}
            pairs = zip(identities.tolist(), draw_keys(images.names).tolist(), strict=True)
            found = [sha256(identity.ljust(16, b"\0") + key.to_bytes(4)).digest()[:16] for identity, key in pairs]
            identities = np.array(found, identities.dtype)
        return values, identities

    def use_features(self, part: str, table: FeatureTable) -> None:
        """Make the loaders of `part` yield features in the epochs for which `table` has them."""
        self._features[part] = table
        if table.complete:  # its images are not needed any more
            self._eval_datasets.pop(id(self.splits.parts()[part]), None)
            self._train_images = None if part == "train" else self._train_images

    def picture(self, part: str, index: int) -> Levels:
        """Image `index` of "train", "val" or "test", resized and cropped: [H, W, C], zero if unreadable."""
        images = self.splits.parts()[part]
        dataset = self._eval_datasets.get(id(images))
        if isinstance(dataset, ResidentDataset):
            return dataset.pixels[index]
        if self.unreadable is None:
            picture: Picture | None = images.load(index)
        else:
            picture, _ = self.unreadable.load(images, index, replace=False)
        if picture is None:
            return black(self.preprocessing, 1)[0].permute(1, 2, 0).numpy()
        return eval_transform(self.preprocessing)(picture).permute(1, 2, 0).numpy()

    def _choose_resident(self, resident_gb: float) -> tuple[frozenset[str], int]:
        """(splits to keep in memory, resized and cropped; remaining bytes)."""
        splits, free, chosen = self.splits, resident_gb * 2**30, set()
        eligible = {
            "train": self.augment.batchable,
            "val": True,
            "test": splits.test is splits.val or splits.test.pixels is not None,
        }
        for name, images in splits.parts().items():
            shared = name == "test" and images is splits.val
            need = 0 if shared else len(images) * math.prod(self.preprocessing.shape) * self.image_format.bits // 8
            if eligible[name] and need <= free and (need or "val" in chosen):
                free -= need
                chosen.add(name)
        return frozenset(chosen), int(free)

    def _dataset(self, part: str) -> Images | FeatureDataset:
        """The dataset of a split's loaders."""
        table = self._features.get(part)
        if table is None:
            return self._images(part)
        images = None if table.complete else self._images(part)
        return FeatureDataset(self.splits.parts()[part].labels, table, images)

    def _images(self, part: str) -> Images:
        """The images of a split; training images are augmented."""
        if part != "train":
            return self._eval_dataset(part)
        if self._train_images is None:
            self._train_images = self._train_dataset()
        return self._train_images

    def _some_images(self, part: str, only: Sequence[int], *, augmented: bool) -> Images:
        """The images of a split, augmented or as in evaluation; those not at the indices `only` are not decoded."""
        images = self.splits.parts()[part]
        if not augmented and len(only) == len(images):
            return self._eval_dataset(part)
        if not augmented:
            return self._eval_datasets.get(id(images)) or self._read_eval_dataset(part, images, only)
        if len(only) == len(images):
            return self._images(part)
        if not self.augment.batchable and self._crop_device() is not None:  # the GPU crops all or none
            return self._images(part)
        return self._train_images or self._train_dataset(only)

    def _eval_dataset(self, part: str) -> Images:
        """The images of a split without augmentation; shared by splits with the same images."""
        images = self.splits.parts()[part]
        if id(images) not in self._eval_datasets:
            self._eval_datasets[id(images)] = self._read_eval_dataset(part, images)
        return self._eval_datasets[id(images)]

    def _train_dataset(self, only: Sequence[int] | None = None) -> Images:
        images = self.splits.train
        if "train" in self.resident:
            return self._decoded("training", images, self.augment, only)
        images = images.for_training(self._min_side)
        read: ImageSet | CachedImages = images
        keys = draw_keys(images.names)
        if self._cache_bytes is not None and only is None:
            read = CachedImages(images, self._cache_bytes)
            device = self._crop_device()
            if device is not None:
                decode_cached(read)
                sources = readable_sources(read, self.unreadable)
                if sources is not None:
                    return CroppedDataset(
                        read,
                        sources,
                        self.preprocessing,
                        augment=self.augment,
                        seed=self.seed,
                        device=device,
                        keys=keys,
                    )
        return FileDataset(
            read,
            self.preprocessing,
            augment=self.augment,
            seed=self.seed,
            unreadable=self.unreadable,
            replace=True,
            keys=keys,
        )

    @cached_property
    def _cache_bytes(self) -> int | None:
        """Bytes of the decoded training images at their original size; None: they are not kept."""
        images = replace(self.splits.train, min_side=self._min_side)
        if not self._free_bytes or images.paths is None:
            return None
        need = bytes_when_decoded(images)
        return need if need <= self._free_bytes else None

    def _crop_device(self) -> torch.device | None:
        """The GPU that crops the training images; None: they are cropped on the CPU."""
        if self._train_images is not None:
            return self._train_images.device if isinstance(self._train_images, CroppedDataset) else None
        if self.augment.batchable or not self.image_format.is_rgb or self._processes() >= ENOUGH_PROCESSES:
            return None
        need = self._cache_bytes
        return None if need is None else self._device_for(need)

    def _decoded(
        self, name: str, images: ImageSet, augment: Augment | None, only: Sequence[int] | None = None
    ) -> ResidentDataset:
        """`images` decoded to memory; augmented, or not (None) for evaluation."""
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
            device=self._device_for(pixels.nbytes),
            keys=draw_keys(images.names),
        )

    def _read_eval_dataset(self, name: str, images: ImageSet, only: Sequence[int] | None = None) -> Images:
        if name in self.resident:
            return self._decoded(name, images, None, only)
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
        count, blocks = len(self.splits.train), self.splits.train.blocks()
        if self.balanced and blocks is not None:
            raise ConfigError(
                "data.sampler=balanced draws images in any order, but data.order=shards reads a large remote data set "
                "shard by shard.\nSet data.order=random, which reads single images, or data.sampler=shuffle."
            )
        sampler = EpochSampler(
            count,
            seed=self.seed,
            shuffle=True,
            rank=rank,
            world=world,
            drop_last_of=drop_last_of,
            balance=self.splits.train.labels if self.balanced else None,
            blocks=blocks,
        )
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
            collate_fn=_collate_and_pack if isinstance(dataset, FileDataset) else _pack,
            pin_memory=self._on_gpu() and not on_gpu,
            patience=self.timeout,
            persistent_workers=keep_workers and workers > 0,
            # its own generator: without one, each iteration would draw from the global generator
            generator=torch.Generator().manual_seed(seed_of(self.seed, "loader")),
        )

    def _workers(self, images: Images | None, batches: int) -> int:
        """Number of worker processes for a loader, at most one per batch; 0 where reading from memory is faster."""
        if not isinstance(images, FileDataset):
            return 0
        if self.num_workers == "auto" and isinstance(images.images, CachedImages) and not self._on_gpu():
            return 0
        return min(self._processes(), batches)

    def _processes(self) -> int:
        """Number of worker processes that data.num_workers allows, regardless of the number of batches."""
        if isinstance(self.num_workers, int):
            return self.num_workers
        trainer = self.trainer
        cores = available_cores() // (max(1, trainer.num_devices) if trainer is not None else 1)
        processes = max(1, cores - 1) if self._on_gpu() else cores // 2  # training on a CPU needs cores too
        return min(processes, MAX_WORKERS)

    def _on_gpu(self) -> bool:
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def _device_for(self, size: int) -> torch.device | None:
        """The training GPU if `size` bytes of decoded images are at most GPU_SHARE of its free memory, else None."""
        if self.trainer is None or not self._on_gpu() or self.image_format.bits > 8:  # few operations take uint16 there
            return None
        device = self.trainer.strategy.root_device
        free, _ = torch.cuda.mem_get_info(device)
        return device if size <= GPU_SHARE * free else None

    def _rank_and_world(self) -> tuple[int, int]:
        """(rank, world) of this process."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _valid_workers(num_workers: int | str) -> int | str:
    if num_workers == "auto":
        return num_workers
    try:
        count = int(num_workers)
    except ValueError:
        count = -1
    if count < 0:
        raise ConfigError(f"data.num_workers={num_workers}: must be auto or at least 0.")
    return count


def _collate_and_pack(samples: list[Sample] | GraftError) -> Batch | Parcel | GraftError:
    return pack(samples if isinstance(samples, GraftError) else collate(samples))


def _pack(batch: Batch | FeatureBatch) -> Batch | FeatureBatch | Parcel:
    return pack(batch)
