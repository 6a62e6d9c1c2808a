"""The feature cache: outputs of the frozen layers are computed once per image, and training starts from them."""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.config.schema import TrainConfig
from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.feature_batches import Features, FeatureTable, Layout
from graft.data.training_data import TrainingData
from graft.data.transforms import noise
from graft.errors import ConfigError
from graft.features.cut import Cut, NoCut, find_cut
from graft.features.passes import FeaturePass
from graft.features.segments import FeatureRequest
from graft.features.store import FeatureStore, Stored
from graft.learning.module import TransferModule
from graft.system.device import compile_mode
from graft.system.files import readable_size, user_name

log = logging.getLogger("graft")

VIEWS = 4
"""Number of views that cache=features caches where cache.views is null."""


@dataclass(frozen=True)
class Phase:
    """Epochs with the same frozen layers.

    Attributes:
        first: the first of these epochs.
        epochs: the epochs; None: all.
    """

    first: int
    epochs: tuple[int, ...] | None

    def uses(self, view: int, views: int) -> tuple[int, ...] | None:
        """The epochs that use view number `view` of `views`; None: all."""
        return None if self.epochs is None else tuple(epoch for epoch in self.epochs if epoch % views == view)


@dataclass(frozen=True)
class Need:
    """Features of a split that the run needs.

    Attributes:
        part: "train", "val" or "test".
        cut: where the network is cut.
        prefix: fingerprint of the layers below the cut.
        view: the epoch whose augmentation they have.
        epochs: in which they are used; None: all.
        name: of the network's suffix that takes them as input.
    """

    part: str
    cut: Cut
    prefix: str
    view: int
    epochs: tuple[int, ...] | None
    name: str


class FeatureCache:
    """Replaces the images of a run's loaders by features where the frozen layers allow it.

    Training with features equals training without the cache: the same order, random numbers and weights, up to the last
    bits of the frozen layers' output. With `cache.views=K` from 2 on, epoch e uses the augmentation of epoch e mod K;
    with 1 training images are not augmented.

    Args:
        config: a TrainConfig.
        module: its network has the weights with which the run starts or resumes.
        data: its loaders are changed.
        trainer: its device and precision are used.
        begins: the first epoch of the run.

    Raises:
        ConfigError: cache=features, but the network or the configuration does not allow it.
    """

    def __init__(
        self, config: TrainConfig, module: TransferModule, data: TrainingData, trainer: pl.Trainer, *, begins: int = 0
    ) -> None:
        self.config, self.module, self.trainer = config, module, trainer
        self.data = cast(ImageDataModule, data)  # where `pictures` is set
        self.requested = config.cache.mode == "features"
        self.epochs = range(begins, max(begins + 1, config.trainer.max_epochs))
        self.free_bytes = int(config.cache.max_gb * 2**30)
        self.store = FeatureStore(Path(config.paths.cache).expanduser().absolute(), self.free_bytes)
        self.notes: list[str] = []
        self.runner = FeaturePass(module.network, module.normalise, trainer)
        self._used: list[dict[str, Any]] = []
        self._reasons: dict[str, None] = {}
        self._fingerprints: dict[str, str] = {}
        if config.cache.mode == "none" or not module.plan.frozen(begins) or not data.pictures:
            return
        self._provide(("val", "train"))

    def provide_test(self) -> None:
        """Use features for testing too, if the same layers are frozen in every epoch."""
        if self._used and self.module.plan.static:
            self._provide(("test",))

    def summary(self) -> dict[str, Any] | None:
        """The entry of summary.json about the cache; None if it is not used."""
        if not self._used:
            return None
        seconds = sum(entry["seconds"] for entry in self._used)
        return {"folder": str(self.store.folder), "seconds": round(seconds, 2), "features": self._used}

    def close(self) -> None:
        """Release the features, so that other runs may remove them."""
        self.store.close()

    # -- which features ------------------------------------------------------------------------------------

    def _provide(self, parts: Sequence[str]) -> None:
        needs = [need for part in parts if self._may(part) for need in self._needs(part)]
        if self.requested and "train" in parts and not any(need.part == "train" for need in needs):
            raise ConfigError(
                f"cache=features: {'; '.join(self._reasons)}.\ncache=auto trains without it where it is not possible."
            )
        if not needs:
            return
        if "train" in parts and self._views == 0:
            self._suggest_views()
        try:
            stored = self.store.obtain([self._request(need) for need in needs])
        except OSError as error:
            note = (
                f"the features of the frozen layers cannot be kept in paths.cache={self.config.paths.cache} "
                f"({_reason(error)}); they are computed in each epoch"
            )
            self.notes.append(note)
            log.warning("note  %s", note)
            return
        for part in dict.fromkeys(need.part for need in needs):
            chosen = [(need, kept) for need, kept in zip(needs, stored, strict=True) if need.part == part]
            self._install(part, chosen)

    def _suggest_views(self) -> None:
        """Log how many passes cache.views would save."""
        frozen = sum(len(phase.epochs or self.epochs) for phase in self._phases)
        if frozen > VIEWS and self.config.trainer.limit_train_batches is None:
            log.info(
                "cache  training images are augmented differently in each epoch, so their features are not cached; "
                "cache.views=%d caches those of %d views and uses them in turn: %d passes through the frozen layers "
                "instead of %d",
                *(VIEWS, VIEWS, VIEWS, frozen),
            )

    def _may(self, part: str) -> bool:
        """Whether the configuration allows caching the features of a split."""
        config = self.config
        if getattr(config.trainer, f"limit_{part}_batches") is not None and not self.requested:
            return False
        if part != "train":
            return True
        if config.augment.mixup or config.augment.cutmix:  # refused by config.validation when asked for
            self._skip("MixUp and CutMix mix images before the network, so training images pass all layers")
            return False
        if config.loss.teacher is not None:  # refused with cache=features
            self._skip("the teacher needs the training images themselves")
            return False
        return self._views > 0

    @cached_property
    def _requested_views(self) -> int:
        """Views of each training image to cache; 1: the image without augmentation, 0: none."""
        views = self.config.cache.views or (VIEWS if self.requested else 0)
        if self.data.augment == Augment():
            return 1
        return max(2, self.epochs.stop) if views == "all" else int(views)

    @property
    def _views(self) -> int:
        """Views of each training image to cache, no more than there are epochs."""
        epochs = self.epochs.stop if self.config.trainer.max_epochs > 0 else self._requested_views
        return min(self._requested_views, epochs)

    def _view(self, need: Need) -> int | None:
        """The epoch whose augmentation the images have; None: as in evaluation."""
        as_in_evaluation = self._requested_views == 1 and self.data.augment != Augment()
        return None if need.part != "train" or as_in_evaluation else need.view

    def _needs(self, part: str) -> Iterator[Need]:
        views = self._views if part == "train" else 1
        least = 1 if self.requested or (part == "train" and self.config.cache.views) else 2
        for phase in self._phases:
            used = {view: phase.uses(view, views) for view in range(views)}
            used = {view: epochs for view, epochs in used.items() if epochs is None or len(epochs) >= least}
            cut = self._cut(phase, training=part == "train") if used else None
            if cut is not None and self._fits(part, cut, len(used)):
                prefix = self._fingerprint(cut)
                for view, epochs in used.items():
                    yield Need(part, cut, prefix, view, epochs, f"{part} from epoch {phase.first}: {cut.name}")

    @cached_property
    def _phases(self) -> list[Phase]:
        """The epochs of the run, grouped by their frozen layers."""
        plan = self.module.plan
        if plan.static:
            return [Phase(0, None)]
        by_state: dict[Any, list[int]] = {}
        for epoch in self.epochs:
            by_state.setdefault((plan.untouched(epoch), plan.frozen_modules(epoch)), []).append(epoch)
        return [Phase(epochs[0], tuple(epochs)) for (names, _), epochs in by_state.items() if names]

    def _cut(self, phase: Phase, *, training: bool) -> Cut | None:
        try:
            with self._computing(phase.first, training=training):
                images = self.module.normalise(noise(self.data.preprocessing, 2).to(self.module.device))
                return find_cut(self.module.network, self.module.plan.untouched(phase.first), images)
        except NoCut as reason:
            self._skip(str(reason))
            return None

    def _fingerprint(self, cut: Cut) -> str:
        if cut.code not in self._fingerprints:  # reading half a gigabyte of VGG takes a second
            self._fingerprints[cut.code] = cut.fingerprint(self.module.network)
        return self._fingerprints[cut.code]

    def _fits(self, part: str, cut: Cut, views: int) -> bool:
        """Whether the features of a split fit into cache.max_gb; if so, their size is reserved."""
        count = len(self.data.splits.parts()[part])
        size = views * count * sum(Layout.of(example).row_bytes for example in cut.examples)
        if size > self.free_bytes:
            self._skip(
                f"{readable_size(size)} of features ({count:,} {part} images at {cut.name}"
                f"{f', {views} views' if views > 1 else ''}) do not fit into cache.max_gb={self.config.cache.max_gb:g}"
            )
            return False
        self.free_bytes -= size
        return True

    def _skip(self, reason: str) -> None:
        """Record why features of a split are not cached."""
        if reason not in self._reasons and not self.requested:
            log.info("cache  not used: %s", reason)
        self._reasons[reason] = None

    # -- computing -----------------------------------------------------------------------------------------

    def _request(self, need: Need) -> FeatureRequest:
        pixels, images = self.data.pixels_of(need.part, self._view(need))
        layouts = [Layout.of(example) for example in need.cut.examples]
        key = self.runner.key(need.prefix, pixels)
        return FeatureRequest(key, layouts, images, self.data.splits.source, lambda rows: self._features(need, rows))

    def _features(self, need: Need, rows: npt.NDArray[np.int64]) -> Generator[tuple[Tensor, ...], None, None]:
        """Outputs of the frozen layers for the images at the indices `rows`, in batches."""
        view = f", view {need.view + 1}" if self._views > 1 and need.part == "train" else ""
        log.info(
            "cache  computing the features of %s %s images at %s%s", f"{len(rows):,}", need.part, need.cut.name, view
        )
        loader = self.data.in_order(need.part, self._view(need), self.runner.batch_size, rows)
        first = need.epochs[0] if need.epochs else 0
        title = f"features of {need.part} images{view}"
        with self._computing(first, training=need.part == "train"):
            for _, features in self.runner.outputs(need.cut.prefix, loader, title):
                if self.data.unreadable is not None and self.data.unreadable.known():
                    raise OSError("some images cannot be read and are replaced by others")
                yield features

    @contextlib.contextmanager
    def _computing(self, epoch: int, *, training: bool) -> Iterator[None]:
        """Context in which the network has the device, modes and precision with which the Trainer will run it."""
        self.module.to(self.trainer.strategy.root_device)
        with self.runner.computing(training=training):
            if training:
                self.module.plan.set_modes(epoch)
            yield

    # -- using ---------------------------------------------------------------------------------------------

    def _install(self, part: str, chosen: Sequence[tuple[Need, Stored]]) -> None:
        """Make the loaders yield these features and the module accept them."""
        by_epoch: dict[int, Features] = {}
        for need, stored in chosen:
            layouts = [Layout.of(example) for example in need.cut.examples]
            features = Features(need.name, layouts, stored.segments, stored.rows)
            by_epoch |= dict.fromkeys((need.view,) if need.epochs is None else need.epochs, features)
        for name in dict.fromkeys(need.name for need, _ in chosen):
            self._record([(need, stored) for need, stored in chosen if need.name == name])
        if part == "train" and self.data.augment != Augment():
            self._describe_views()
        static = self.module.plan.static
        period = (self._views if part == "train" else 1) if static else None
        self.data.use_features(part, FeatureTable(by_epoch, period))

    def _describe_views(self) -> None:
        """Log and note on which views training images are used, and how to train on images instead."""
        if self._requested_views == 1:
            note = "training uses cached features of each image without augmentation (cache.views=1)"
        else:
            note = (
                f"training uses cached features of {self._views} augmented views of each image, in turn (cache.views)"
            )
        self.notes.append(note)
        log.info("cache  %s; cache.views=null trains on images (accuracy and seconds: docs/defaults.md)", note)

    def _record(self, views: Sequence[tuple[Need, Stored]]) -> None:
        """Register the suffix for one cut of a split, in all its views, and record it for log and summary."""
        need = views[0][0]
        suffix, compiled = need.cut.suffix, self.config.trainer.compile
        if compiled:
            suffix = torch.compile(suffix, mode=compile_mode(compiled))
        self.module.suffixes[need.name] = suffix
        rows = sum(len(stored.rows) for _, stored in views)
        computed = sum(stored.computed for _, stored in views)
        seconds = round(sum(stored.seconds for _, stored in views), 2)
        size = rows * sum(Layout.of(example).row_bytes for example in need.cut.examples)
        self._used.append(
            {
                "part": need.part,
                "cut": need.cut.name,
                "views": len(views),
                "epochs": None if need.epochs is None else sorted(epoch for n, _ in views for epoch in n.epochs or ()),
                "rows": rows,
                "bytes": size,
                "computed": computed,
                "seconds": seconds,
            }
        )
        shared = f"{rows - computed:,} from the cache" if computed < rows else ""
        own = f"{computed:,} computed in {seconds:.1f} s" if computed else ""
        log.info(
            "cache  %s images start at %s: %s%s rows, %s, %s",
            need.part,
            need.cut.name,
            f"{len(views)} views, " if len(views) > 1 else "",
            f"{rows:,}",
            readable_size(size),
            ", ".join(filter(None, (shared, own))),
        )


def _reason(error: OSError) -> str:
    """Message of the error, and for missing permissions the user and the way out."""
    if not isinstance(error, PermissionError):
        return str(error)
    return (
        f"{error.filename}: {error.strerror} for user {user_name()}; set paths.cache to a folder of your own, or make "
        "this one writable for your group, with chmod -R g+rwXs"
    )
