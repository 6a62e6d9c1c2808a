"""Batches of stored features equal the features that were stored, for the requested epoch and images."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch
from graft.data.feature_batches import FeatureBatch, FeatureDataset, Features, FeatureTable, Layout, Segment
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import PADDING
from graft.data.splits import Splits


def stored(folder: Path, name: str, *tensors: Tensor) -> Features:
    layouts = [Layout.of(tensor) for tensor in tensors]
    files = [folder / f"{name}{number}" for number, _ in enumerate(tensors)]
    for layout, file, tensor in zip(layouts, files, tensors, strict=True):
        file.write_bytes(layout.to_bytes(tensor))
    count = len(tensors[0])
    rows = np.stack([np.zeros(count, dtype=np.int64), np.arange(count)], 1)
    return Features(name, layouts, [Segment(tuple(files), count)], rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 4, 2), (5, 3, 1, 1)])
def test_batches_of_features_equal_the_stored_ones_in_the_same_memory_format(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = torch.randn(shape).mul(100).to(dtype)
    formats = [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]
    order = torch.tensor([4, 0, 0, 2])
    for number, form in enumerate(formats):
        tensor = tensor.contiguous(memory_format=form)
        features = pickle.loads(pickle.dumps(stored(tmp_path, f"{number}", tensor, tensor + 1)))
        one, other = features.pick(order)
        assert torch.equal(one, tensor[order])
        assert torch.equal(other, tensor[order] + 1)
        assert one.is_contiguous(memory_format=form)
        one.zero_()
        assert torch.equal(features.pick(order)[0], tensor[order]), "a batch is a copy"


def test_a_batch_is_gathered_from_several_segments(tmp_path: Path) -> None:
    tensor = torch.randn(6, 4)
    segments = [stored(tmp_path, name, tensor[part]).segments[0] for name, part in (("a", [5, 0, 3]), ("b", [1, 2, 4]))]
    rows = np.array([(0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (0, 0)])
    order = torch.tensor([2, 5, 2, 0])
    assert torch.equal(Features("", [Layout.of(tensor)], segments, rows).pick(order)[0], tensor[order])


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    """Seven training images and three others in memory."""
    noise = np.random.RandomState(0)

    def part(count: int) -> ImageSet:
        pixels = noise.randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        return ImageSet([str(i) for i in range(count)], np.arange(count) % 2, pixels=pixels)

    splits = Splits(("a", "b"), part(7), part(3), part(3))
    small = Preprocessing(input_size=8, resize_size=8)
    return ImageDataModule(splits, small, Augment(horizontal_flip=0.5), batch_size=4, num_workers=0, resident_gb=0)


def test_views_alternate_and_images_are_used_in_epochs_without_features(data: ImageDataModule, tmp_path: Path) -> None:
    first, second = (stored(tmp_path, name, torch.arange(7.0) + shift) for name, shift in (("a", 0), ("b", 10)))
    data.use_features("train", FeatureTable({0: first, 1: second}, 2))
    loader = data.train_dataloader()
    for epoch, shift in enumerate((0, 10, 0, 10)):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert all(isinstance(batch, FeatureBatch) for batch in batches)
        assert {batch.cut for batch in batches} == {"ab"[epoch % 2]}
        for batch in batches:
            assert torch.equal(batch.features[0], batch.indices + shift)
            assert batch.labels.tolist() == (batch.indices % 2).tolist()
    data.use_features("train", FeatureTable({1: second}, None))
    loader = data.train_dataloader()
    kinds = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        kinds.append({type(batch) for batch in loader})
    assert kinds == [{Batch}, {FeatureBatch}, {Batch}]


def test_features_come_in_the_order_of_the_images(data: ImageDataModule, tmp_path: Path) -> None:
    order = {}
    for kind, table in (("images", FeatureTable({}, None)), ("features", None)):
        data.use_features("train", table or FeatureTable({0: stored(tmp_path, "a", torch.arange(7))}, 1))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        order[kind] = [batch.indices.tolist() for batch in loader]
    assert order["images"] == order["features"]


def test_padding_has_no_label(tmp_path: Path) -> None:
    table = FeatureTable({0: stored(tmp_path, "a", torch.arange(3))}, 1)
    batch = FeatureDataset(np.array([5, 6, 7]), table, None).__getitems__([(4, 2), (4, PADDING)])
    assert isinstance(batch, FeatureBatch)
    assert batch.labels.tolist() == [7, PADDING]
    assert batch.indices.tolist() == [2, PADDING]


def test_the_description_contains_everything_that_decides_the_pixels(data: ImageDataModule, tmp_path: Path) -> None:
    assert data.pixels_of("train", 0)[0] != data.pixels_of("train", 1)[0], "another augmentation"
    assert data.pixels_of("val", 0)[0] == data.pixels_of("val", 1)[0] == data.pixels_of("train", None)[0]
    file = tmp_path / "picture"
    file.write_bytes(b"abc")
    images = ImageSet(["picture"], np.array([0]), paths=[file])
    before = images.fingerprint()
    assert images.fingerprint() == before
    large = tmp_path / "large"
    large.write_bytes(bytes(100_000))
    one, copy = ImageSet(["a"], np.array([0]), paths=[large]), ImageSet(["b"], np.array([1]), paths=[large])
    assert one.identities() == copy.identities(), "regardless of its name and label"
    with large.open("r+b") as content:
        content.seek(10_000)  # between the blocks that the fingerprint reads
        content.write(b"x")
    assert ImageSet(["a"], np.array([0]), paths=[large]).identities() != one.identities()
    file.write_bytes(b"abd")
    assert images.fingerprint() != before, "the same size, written later"


@pytest.mark.parametrize("resident_gb", [0, 1])
def test_a_sample_of_training_images_is_augmented_as_in_an_epoch(data: ImageDataModule, resident_gb: float) -> None:
    options = {"batch_size": 4, "num_workers": 0, "seed": 2, "resident_gb": resident_gb}
    some, all_ = (ImageDataModule(data.splits, data.preprocessing, data.augment, **options) for _ in range(2))
    whole = torch.cat([batch.images for batch in all_.in_order("train", 5, 3)])
    assert torch.equal(some.training_images(5, [6, 2]), whole[[6, 2]])


def test_a_view_has_the_augmentation_of_its_epoch(data: ImageDataModule) -> None:
    for epoch in (0, 3):
        loader = data.in_order("train", epoch, 3)
        seen = torch.cat([batch.images for batch in loader])
        images = data._images("train")
        assert torch.equal(seen, torch.stack([images[epoch, index][0] for index in range(7)]))


@pytest.mark.parametrize("resident_gb", [0, 1])
def test_an_image_is_augmented_alike_in_every_split_that_trains_on_it(
    data: ImageDataModule, resident_gb: float
) -> None:
    options = {"batch_size": 4, "num_workers": 0, "seed": 2, "resident_gb": resident_gb}
    few = replace(data.splits, train=data.splits.train.select([6, 2, 4]))
    some, all_ = (ImageDataModule(each, data.preprocessing, data.augment, **options) for each in (few, data.splits))
    whole = torch.cat([batch.images for batch in all_.in_order("train", 5, 3)])
    assert torch.equal(torch.cat([batch.images for batch in some.in_order("train", 5, 3)]), whole[[6, 2, 4]])
    rows = np.array([4, 1])
    part = ImageDataModule(data.splits, data.preprocessing, data.augment, **options)
    assert torch.equal(torch.cat([batch.images for batch in part.in_order("train", 5, 3, rows)]), whole[[4, 1]])
