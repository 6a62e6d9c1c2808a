"""Features of images at the stages of a pretrained network, shared with the feature cache of training."""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graft.config.registration import plain
from graft.config.schema import TrainConfig
from graft.data.augment import augment_of
from graft.data.datamodule import ImageDataModule
from graft.data.feature_batches import Features, Layout
from graft.data.image_format import ImageFormat
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.data.transforms import noise
from graft.data.unreadable import UnreadableImages
from graft.errors import DataError, listed
from graft.features.cut import Cut, Taps, find_cut, find_taps, pooled
from graft.features.passes import FeaturePass
from graft.features.segments import FeatureRequest
from graft.features.store import FeatureStore, Stored
from graft.models import build_network
from graft.models.configured import recipe_of
from graft.models.normalise import Normalise
from graft.models.recipe import Recipe
from graft.models.weights import WeightsReport, default_preprocessing, load_weights, sized_by_weights
from graft.seeding import seeded_everywhere
from graft.system.device import choose_device
from graft.transfer.freeze import in_stages
from graft.transfer.stages import HEAD, Stage, stages_of

log = logging.getLogger("graft")

Matrix = npt.NDArray[np.float32]

Batches = Generator[tuple[Tensor, ...], None, None]

Use = Callable[[Cut, Features, list[Features], npt.NDArray[np.int64]], None]
"""(the cut at the end of the backbone, the tensors there, those of augmented views, indices of the images) -> None."""


@dataclass(frozen=True)
class Pretrained:
    """A network with the weights from which training would start.

    Attributes:
        recipe: of the network.
        network: with the weights and a new head, on the CPU.
        preprocessing: of its images.
        weights: the origin of its tensors.
        stages: from input to output.
    """

    recipe: Recipe
    network: nn.Module
    preprocessing: Preprocessing
    weights: WeightsReport
    stages: tuple[Stage, ...]

    @property
    def backbone(self) -> tuple[Stage, ...]:
        """The stages before the head."""
        return tuple(stage for stage in self.stages if stage.group != HEAD)

    def parameters_in(self, stages: Sequence[Stage]) -> frozenset[str]:
        """Names of the parameters in `stages`."""
        return in_stages([name for name, _ in self.network.named_parameters()], stages)

    @property
    def lacking(self) -> list[str]:
        """Names of the parameters of the backbone that the weights lack, sorted."""
        return sorted(self.parameters_in(self.backbone).intersection(self.weights.random))


def pretrained(config: TrainConfig, num_classes: int) -> Pretrained:
    """The configured network (`model`), with the images that `data.preprocess` gives it.

    Raises:
        WeightsError, NotAvailable, ConfigError: as `load_weights`.
    """
    recipe = sized_by_weights(recipe_of(config), config.model.weights)
    with seeded_everywhere(config.seed, "probing"):
        network = build_network(recipe, num_classes)
    weights = load_weights(network, recipe, config.model.weights, first_conv=config.model.first_conv)
    own = weights.preprocessing or default_preprocessing(recipe, config.model.weights)
    preprocessing = own.in_format(ImageFormat.of(config.data)).changed(plain(config.data.preprocess), "data.preprocess")
    if config.trainer.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return Pretrained(recipe, network, preprocessing, weights, stages_of(network))


def runner_of(config: TrainConfig, network: Pretrained) -> FeaturePass:
    """Runs the network with the device and precision of `config.trainer`."""
    device = choose_device(config.trainer)
    trainer = pl.Trainer(
        accelerator=device.accelerator,
        devices=1,
        precision=device.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    normalise = Normalise(network.preprocessing).to(trainer.strategy.root_device)
    return FeaturePass(network.network, normalise, trainer)


@dataclass(frozen=True)
class StageFeatures:
    """Features of N images at the stages of a network, means over the positions of each map.

    Rows of images that cannot be read (with data.on_error=skip) are NaN.

    Attributes:
        stages: the name of a stage -> the features after it, float32 [N, D], from input to output; the last is the end
            of the backbone.
        computed: number of images, each view counted, whose features at the end of the backbone were not in the cache.
        seconds: duration of all passes.
        unreadable: names of the images that cannot be read.
    """

    stages: dict[str, Matrix]
    computed: int
    seconds: float
    unreadable: tuple[str, ...]

    @property
    def end(self) -> Matrix:
        """The features at the end of the backbone."""
        return list(self.stages.values())[-1]


def stage_features(
    config: TrainConfig,
    network: Pretrained,
    images: ImageSet,
    source: str = "",
    *,
    stages: Sequence[Stage] | None = None,
    views: int = 0,
    use: Use | None = None,
) -> StageFeatures:
    """The features of images at the stages of a network, in one pass over the images, and one more for each view.

    What `strategy=feature_extract` caches is found in and added to the same cache (`paths.cache`, unless cache=none),
    and the features of lower stages as series of their own.

    Args:
        config: with the data, trainer, cache and paths with which the network would be trained.
        network: from `pretrained`.
        images: of any split.
        source: `Splits.source` of the data set; runs with the same wait for one another's features.
        stages: stages of the backbone to cut after, besides the last; None: all.
        views: number of the first epochs with whose augmentation the images are passed to `use`, too.
        use: called once with the stored tensors at the end of the backbone, while they are protected from removal; not
            called if they cannot be stored.

    Raises:
        DataError: an image cannot be read, and data.on_error=raise.
        NoCut: the network cannot be cut at the end of its backbone.
    """
    lower = network.backbone[:-1] if stages is None else stages
    with tempfile.TemporaryDirectory() as folder:
        reader = _Reader(config, network, images, source, lower, Path(folder) / "unreadable.jsonl", views, use)
        read = np.arange(len(images))
        while True:
            try:
                found, computed, seconds = reader.features(read)
            except _Unreadable as error:
                read = np.setdiff1d(read, error.rows)
                if not len(read):
                    raise DataError(f"none of the {len(images):,} images can be read.") from error
                continue
            break
    left_out = np.setdiff1d(np.arange(len(images)), read)
    names = tuple(images.names[row] for row in left_out)
    if names:
        log.warning("note  %d images cannot be read (data.on_error=skip): %s", len(names), listed(names, 20))
    return StageFeatures(
        {name: _spread(rows, read, len(images)) for name, rows in found.items()}, computed, seconds, names
    )


def _spread(rows: Matrix, indices: npt.NDArray[np.int64], count: int) -> Matrix:
    """`rows` at `indices` of a matrix of `count` rows, the others NaN."""
    if len(rows) == count:
        return rows
    matrix = np.full((count, rows.shape[1]), np.nan, np.float32)
    matrix[indices] = rows
    return matrix


class _Unreadable(Exception):
    """Images turned out to be unreadable: the `rows` of the set."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"{len(rows)} images cannot be read")
        self.rows = rows


class _Reader:
    """Obtains the features of a set of images from the store or from a pass; see `stage_features`."""

    def __init__(
        self,
        config: TrainConfig,
        network: Pretrained,
        images: ImageSet,
        source: str,
        stages: Sequence[Stage],
        record: Path,
        views: int,
        use: Use | None,
    ) -> None:
        self.config, self.network, self.images, self.source = config, network, images, source
        self.views, self.use = views, use
        self.runner = runner_of(config, network)
        self.data = ImageDataModule(
            Splits((), images, images, images, source=source),
            network.preprocessing,
            augment_of(config),
            batch_size=self.runner.batch_size,
            num_workers=config.data.num_workers,
            seed=config.seed,
            resident_gb=0,  # each image is read once
            unreadable=UnreadableImages(record) if config.data.on_error == "skip" else None,
            draft=config.data.draft,
            timeout=config.data.timeout,
        )
        self.stages = [*stages, network.backbone[-1]]

    @cached_property
    def _cuts(self) -> tuple[Cut, Taps]:
        """The end of the backbone as training cuts it, and all stages."""
        backbone = self.network.backbone
        frozen = [self.network.parameters_in(backbone[: backbone.index(stage) + 1]) for stage in self.stages]
        with self.runner.computing():
            normalised = self.runner.normalise(noise(self.network.preprocessing, 2).to(self.runner.device))
            return (
                find_cut(self.network.network, frozen[-1], normalised),
                find_taps(self.network.network, frozen, normalised),
            )

    def features(self, rows: npt.NDArray[np.int64]) -> tuple[dict[str, Matrix], int, float]:
        """(features by stage, number of images computed at the end, seconds) of the images at the indices `rows`."""
        _, taps = self._cuts
        names = [self.stages[depth].name for depth in taps.depths]
        vectors: list[Matrix] | None = None
        if self.config.cache.mode != "none":
            try:
                vectors, computed, seconds = self._from_store(rows)
            except OSError as error:
                log.warning("note  features cannot be kept in paths.cache=%s (%s)", self.config.paths.cache, error)
        if vectors is None:
            started, computed = time.perf_counter(), len(rows)
            batches = [outputs[: len(names)] for outputs in self._pass(rows)]
            vectors = [torch.cat(each).numpy() for each in zip(*batches, strict=True)]
            seconds = time.perf_counter() - started
        return dict(zip(names, vectors, strict=True)), computed, seconds

    def _from_store(self, rows: npt.NDArray[np.int64]) -> tuple[list[Matrix], int, float]:
        """(features at each depth, number of images computed at the end, seconds); raises OSError."""
        cut, taps = self._cuts
        lower = len(taps.depths) - 1
        vectors: dict[int, tuple[Tensor, ...]] = {}

        def at_end(missing: npt.NDArray[np.int64]) -> Generator[tuple[Tensor, ...], None, None]:
            done = 0
            for outputs in self._pass(rows[missing]):
                for row, *vector in zip(missing[done:].tolist(), *outputs[:lower], strict=False):
                    vectors[row] = tuple(vector)
                done += len(outputs[0])
                yield outputs[lower + 1 :]

        def below(missing: npt.NDArray[np.int64]) -> Generator[tuple[Tensor, ...], None, None]:
            if vectors.keys() >= set(missing.tolist()):  # the pass for the end has been here
                yield tuple(torch.stack(each) for each in zip(*(vectors[row] for row in missing.tolist()), strict=True))
            else:
                yield from (outputs[:lower] for outputs in self._pass(rows[missing]))

        def augmented(view: int, missing: npt.NDArray[np.int64]) -> Batches:
            return self._pass(rows[missing], view)

        def request(
            layers: str,
            examples: Sequence[Tensor],
            batches: Callable[[npt.NDArray[np.int64]], Batches],
            view: int | None = None,
        ) -> FeatureRequest:
            pixels, identities = self.data.pixels_of("val" if view is None else "train", view)
            key, layouts = self.runner.key(layers, pixels), [Layout.of(example) for example in examples]
            return FeatureRequest(key, layouts, identities[rows], self.source, batches)

        network = self.network.network
        end = cut.fingerprint(network)
        requests = [request(end, cut.examples, at_end)]
        if lower:
            requests.append(request(taps.fingerprint(network), taps.examples[:lower], below))
        first = len(requests)  # of the views
        requests += [request(end, cut.examples, partial(augmented, view), view) for view in range(self.views)]
        store = FeatureStore(
            Path(self.config.paths.cache).expanduser().absolute(), int(self.config.cache.max_gb * 2**30)
        )
        with contextlib.closing(store):
            stored = [store.obtain([each])[0] for each in requests]  # in this order: one pass gives both
            found = [tensor.numpy() for tensor in _read(requests[1], stored[1])] if lower else []
            found += [tensor.numpy() for tensor in _read(requests[0], stored[0], lambda *maps: (pooled(*maps),))]
            if self.use is not None:
                layouts = requests[0].layouts
                tensors = [Features(cut.name, layouts, each.segments, each.rows) for each in stored]
                self.use(cut, tensors[0], tensors[first:], rows)
        computed = sum(each.computed for each in (stored[0], *stored[first:]))
        return found, computed, sum(each.seconds for each in stored)

    def _pass(self, rows: npt.NDArray[np.int64], view: int | None = None) -> Batches:
        """The outputs of `Taps.compute` for the images at the indices `rows`, in batches, on the CPU.

        Args:
            rows: indices of images.
            view: the epoch as in which the images are augmented; then the tensors at the end of the backbone alone.

        Raises:
            _Unreadable: at the end, if some images cannot be read and data.on_error=skip.
        """
        cut, taps = self._cuts
        part, layers, note = ("val", taps.compute, "") if view is None else ("train", cut.prefix, f", view {view + 1}")
        name = self.network.recipe.name
        log.info("features  %s: %s images%s", name, f"{len(rows):,}", note)
        known = self._unreadable()
        loader = self.data.in_order(part, view, self.runner.batch_size, rows)
        with self.runner.computing():
            for _, outputs in self.runner.outputs(layers, loader, f"features of {name}{note}"):
                yield tuple(tensor.cpu() for tensor in outputs)
        if found := self._unreadable() - known:  # padding or another image is in their place
            raise _Unreadable([row for row in rows.tolist() if self.images.names[row] in found])

    def _unreadable(self) -> set[str]:
        """Names of the images that turned out to be unreadable so far (data.on_error=skip)."""
        return set() if self.data.unreadable is None else set(self.data.unreadable.known())


def _separate(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


def _read(
    request: FeatureRequest, stored: Stored, change: Callable[..., tuple[Tensor, ...]] = _separate
) -> tuple[Tensor, ...]:
    """What `change` makes of the stored tensors, each [N, ...], a few images at a time."""
    features = Features("", request.layouts, stored.segments, stored.rows)
    parts = [change(*features.pick(rows)) for rows in torch.arange(len(stored.rows)).split(64)]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
