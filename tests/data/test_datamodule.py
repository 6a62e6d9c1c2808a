"""Loaders give the same batches on every machine and resume within an epoch."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from graft.data.augment import Augment
from graft.data.cached_images import CachedImages
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch, FileDataset
from graft.data.feature_batches import Features, FeatureTable, Layout, Segment
from graft.data.images import ImageSet
from graft.data.loader import ResumableLoader
from graft.data.preprocessing import Preprocessing
from graft.data.resident import ResidentDataset
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError

SMALL = Preprocessing(input_size=12, resize_size=14)
BATCHABLE = Augment(random_crop_padding=2, horizontal_flip=0.5)
NOT_BATCHABLE = Augment(random_resized_crop={}, horizontal_flip=0.5, color_jitter=0.2)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """22 training, 10 validation and 7 test images in files."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.RandomState(0)

    def part(name: str, count: int) -> ImageSet:
        paths = [folder / f"{name}{i}.png" for i in range(count)]
        for path in paths:
            Image.fromarray(noise.randint(0, 256, (18, 16, 3), dtype=np.uint8)).save(path)
        return ImageSet([path.name for path in paths], np.arange(count) % 2, paths=paths)

    return Splits(("a", "b"), part("train", 22), part("val", 10), part("test", 7))


def data_module(splits: Splits, augment: Augment = NOT_BATCHABLE, **options: object) -> ImageDataModule:
    settings: dict[str, object] = {"batch_size": 4, "num_workers": 0, "seed": 3} | options
    return ImageDataModule(splits, SMALL, augment, **settings)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True)
    )


def epoch(loader: ResumableLoader, number: int = 0) -> list[Batch]:
    loader.sampler.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize("augment", [BATCHABLE, NOT_BATCHABLE])
def test_the_number_of_workers_changes_nothing(splits: Splits, augment: Augment) -> None:
    alone = data_module(splits, augment, resident_gb=0, num_workers=0).train_dataloader()
    helped = data_module(splits, augment, resident_gb=0, num_workers=2).train_dataloader()
    assert (alone.num_workers, helped.num_workers) == (0, 2)
    assert helped.persistent_workers
    for number in (0, 1, 0):
        assert equal(epoch(alone, number), epoch(helped, number))


def test_a_sample_is_spread_over_the_training_images_as_evaluation_sees_them(splits: Splits) -> None:
    data = data_module(splits, BATCHABLE)
    whole = torch.cat([batch.images for batch in data.eval_loader("train")])
    assert torch.equal(data.sample(3), whole[[0, 10, 21]])
    assert torch.equal(data.sample(500), whole)


def test_epochs_and_seeds_differ(splits: Splits) -> None:
    loader = data_module(splits).train_dataloader()
    assert not equal(epoch(loader, 0), epoch(loader, 1))
    assert not equal(epoch(loader, 0), epoch(data_module(splits, seed=4).train_dataloader(), 0))


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 1}, {"augment": BATCHABLE}])
def test_iterating_does_not_touch_the_global_generator(splits: Splits, options: dict[str, object]) -> None:
    data = data_module(splits, **options)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [BATCHABLE, NOT_BATCHABLE])
def test_resuming_within_an_epoch_gives_the_rest_of_the_epoch(splits: Splits, augment: Augment, workers: int) -> None:
    def loader() -> ResumableLoader:
        return data_module(splits, augment, num_workers=workers).train_dataloader()

    whole, first = epoch(loader(), 2), loader()
    first.sampler.set_epoch(2)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 2}
    second = loader()
    second.load_state_dict(state)
    assert len(second) == len(whole) == 6
    assert equal(list(second), whole[2:])
    assert second.state_dict() == {"epoch": 2, "batches": 6}
    assert equal(list(second), whole), "only the first iteration is shortened"


def test_the_state_after_a_whole_epoch_resumes_with_the_next_epoch(splits: Splits) -> None:
    first, second = (data_module(splits).train_dataloader() for _ in range(2))
    epoch(first, 2)
    second.load_state_dict(first.state_dict())
    assert equal(list(second), epoch(first, 3))


def test_evaluation_is_in_order_complete_and_deterministic(splits: Splits) -> None:
    resident, decoded = data_module(splits), data_module(splits, resident_gb=0)
    assert isinstance(resident.val_dataloader().dataset, ResidentDataset)
    assert isinstance(decoded.val_dataloader().dataset, FileDataset)
    batches = epoch(resident.val_dataloader(), 0)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
    assert equal(batches, epoch(resident.val_dataloader(), 5))
    assert equal(batches, epoch(decoded.val_dataloader(), 0))


def test_resident_images_depend_on_augmentation_and_size(splits: Splits) -> None:
    image = 3 * 12 * 12 / 2**30
    assert data_module(splits, BATCHABLE).resident == {"train", "val"}
    assert data_module(splits, NOT_BATCHABLE).resident == {"val"}
    assert data_module(splits, BATCHABLE, resident_gb=22 * image).resident == {"train"}
    assert data_module(splits, BATCHABLE, resident_gb=21 * image).resident == {"val"}
    assert data_module(splits, BATCHABLE, resident_gb=0).resident == frozenset()


def test_one_set_that_validates_and_tests_is_decoded_once(splits: Splits) -> None:
    shared = Splits(splits.classes, splits.train, splits.val, splits.val)
    data = data_module(shared)
    assert data.resident == {"val", "test"}
    assert data.val_dataloader().dataset is data.test_dataloader().dataset


def test_the_number_of_steps_is_known_before_any_image_is_decoded(splits: Splits) -> None:
    for options, steps in (({}, 6), ({"batch_size": 7}, 4), ({"batch_size": 7, "avoid_single": True}, 3)):
        data = data_module(splits, **options)
        assert data.steps_per_epoch == steps == len(data.train_dataloader()) == len(list(data.train_dataloader()))


def test_a_lone_image_for_batchnorm_is_an_error(splits: Splits) -> None:
    lone = Splits(splits.classes, splits.train.select([0]), splits.val, splits.test)
    with pytest.raises(DataError, match="1 training images for 1 processes make a batch of one image"):
        _ = data_module(lone, avoid_single=True).steps_per_epoch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"num_workers": "many"}, "data.num_workers=many"),
        ({"batch_size": 0}, "data.batch_size=0"),
    ],
)
def test_an_invalid_number_names_its_key(splits: Splits, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_module(splits, **options)


@pytest.mark.filterwarnings("ignore:.*worker processes in total.*")
def test_automatic_workers_follow_the_cores_and_the_batches(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(cores: int, gpu: bool, resident_gb: float = 0) -> int:
        monkeypatch.setattr("graft.data.datamodule.available_cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        data = data_module(splits, num_workers="auto", resident_gb=resident_gb)
        return data.train_dataloader().num_workers

    assert [workers(cores, gpu=False) for cores in (1, 2, 8)] == [0, 1, 4]
    assert [workers(cores, gpu=True) for cores in (1, 2, 6)] == [1, 1, 5]
    assert workers(64, gpu=True) == 6, "no more than there are batches"
    assert workers(64, gpu=False, resident_gb=1) == 0, "cached images are loaded sooner"
    assert workers(64, gpu=True, resident_gb=1) == 6


def test_a_training_gpu_keeps_the_sets_that_leave_enough_memory(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, free = torch.device("cuda", 1), 8 * 22 * 3 * 12 * 12
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free if device == gpu else 0, 0))
    data = data_module(splits, BATCHABLE)
    size = 22 * 12 * 12 * 3
    assert data._device_for(size) is None, "nobody trains"
    for device, home in ((gpu, gpu), (torch.device("cpu"), None)):
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))  # type: ignore[assignment]
        assert data._device_for(size) == home
    data.trainer.strategy.root_device = gpu  # type: ignore[union-attr,misc]
    assert data._device_for(size + 1) is None


def test_images_on_the_gpu_are_not_pinned(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageDataModule, "_on_gpu", lambda self: True)
    monkeypatch.setattr(ImageDataModule, "_device_for", lambda self, size: torch.device("cpu"))
    for augment in (BATCHABLE, NOT_BATCHABLE):
        pinned = [
            data_module(splits, augment, resident_gb=gigabytes).train_dataloader().pin_memory for gigabytes in (1, 0)
        ]
        assert pinned == [False, True]


class Listener(LightningModule):
    """Learns nothing, remembers which images came in which epoch; stops by an error after `limit` batches."""

    def __init__(self, limit: int = 1000) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.limit = limit

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.limit:
            raise KeyError("stop")
        self.seen.append((self.current_epoch, batch.indices.tolist()))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [4, 6, 8])
def test_lightning_resumes_with_the_next_batch(splits: Splits, tmp_path: Path, every: int, workers: int) -> None:
    """Checkpoints after 4, 6 and 8 steps of epochs of 6: in the middle, at the end, in the second epoch."""

    def fit(listener: Listener, checkpoint: Path | None = None) -> list[tuple[int, list[int]]]:
        trainer = Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)],
        )
        data = data_module(splits, num_workers=workers)
        try:
            trainer.fit(listener, data, ckpt_path=checkpoint)
        except KeyError:
            assert len(listener.seen) == listener.limit
        return listener.seen

    whole = fit(Listener())
    assert [number for number, _ in whole] == [0] * 6 + [1] * 6 + [2] * 6
    fit(Listener(limit=every + 1))
    resumed = fit(Listener(), tmp_path / f"step={every}.ckpt")
    assert resumed == whole[every:]


def test_a_training_set_that_fits_is_read_once_and_gives_the_same_batches(splits: Splits) -> None:
    read = data_module(splits, resident_gb=0)
    for workers in (0, 1):
        cached = data_module(splits, num_workers=workers)
        loader, plain = cached.train_dataloader(), read.train_dataloader()
        assert isinstance(loader.dataset.images, CachedImages)  # type: ignore[attr-defined]
        assert isinstance(plain.dataset.images, ImageSet)  # type: ignore[attr-defined]
        for number in (0, 1):
            assert equal(epoch(loader, number), epoch(plain, number))
    one_short = 22 * 3 * 18 * 16 + 10 * 3 * 12 * 12 - 1  # the validation images, as evaluation sees them, go first
    short = data_module(splits, resident_gb=one_short / 2**30).train_dataloader()
    assert isinstance(short.dataset.images, ImageSet)  # type: ignore[attr-defined]


def long_tail(splits: Splits) -> Splits:
    """18 training images of the first class and 4 of the second."""
    return replace(splits, train=replace(splits.train, labels=(np.arange(22) >= 18).astype(np.int64)))


@pytest.mark.parametrize("augment", [BATCHABLE, NOT_BATCHABLE])
def test_a_balanced_epoch_is_the_same_from_files_and_memory_with_other_pixels_at_each_repetition(
    splits: Splits, augment: Augment
) -> None:
    few = long_tail(splits)
    memory, files = (
        epoch(data_module(few, augment, balanced=True, resident_gb=gb).train_dataloader(), 2) for gb in (2.0, 0.0)
    )
    assert equal(memory, files)
    labels, indices, images = (
        torch.cat([getattr(batch, name) for batch in memory]) for name in ("labels", "indices", "images")
    )
    assert labels.bincount().tolist() == [11, 11]
    assert labels.tolist() == few.train.labels[indices.numpy()].tolist()
    repeated = images[indices == indices[labels == 1].mode().values]
    assert len(repeated) >= 3
    assert len({bytes(image.contiguous().numpy()) for image in repeated}) > 1


def test_balanced_features_are_those_of_the_repeated_images(splits: Splits, tmp_path: Path) -> None:
    few = long_tail(splits)
    file = tmp_path / "features"
    rows = torch.arange(22.0)[:, None]
    layout = Layout.of(rows)
    file.write_bytes(layout.to_bytes(rows))
    rows_of_images = np.stack([np.zeros(22, dtype=np.int64), np.arange(22)], 1)
    features = Features("cut", [layout], [Segment((file,), 22)], rows_of_images)
    module = data_module(few, balanced=True)
    module.use_features("train", FeatureTable({0: features}, 1))
    batches = list(module.train_dataloader())
    assert [batch.features[0][:, 0].tolist() for batch in batches] == [batch.indices.tolist() for batch in batches]
    assert sum(batch.labels.sum() for batch in batches) == 11
