"""Random crops of images on a device equal those of files; the device is the CPU here, the code that of a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from graft.data import resident
from graft.data.augment import Augment
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch, FileDataset, collate
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset, readable_sources, resize_weights
from graft.data.splits import Splits
from graft.data.unreadable import UnreadableImages
from graft.errors import UnreadableImage

CPU = torch.device("cpu")
SIDES = ((90, 60), (31, 57), (24, 24), (200, 33), (5, 4), (1, 40), (64, 48), (120, 110))
MOVED = Augment(random_resized_crop={}, random_crop_padding=2, horizontal_flip=0.5, random_erasing=0.5)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Noise of many sizes, in files."""
    noise = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(len(SIDES))]
    for path, (width, height) in zip(paths, SIDES, strict=True):
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return ImageSet([path.name for path in paths], np.arange(len(paths)) % 3, paths=paths)


def on_device(
    images: ImageSet, preprocessing: Preprocessing, augment: Augment = MOVED, unreadable: UnreadableImages | None = None
) -> CroppedDataset:
    cached = CachedImages(images, bytes_when_decoded(images))
    list(cached.decode())
    shown = readable_sources(cached, unreadable)
    assert shown is not None
    return CroppedDataset(cached, shown, preprocessing, augment=augment, seed=3, device=CPU)


def keys(epoch: int) -> list[tuple[int, int]]:
    return [(epoch, index) for index in (4, 0, 7, -1, 3, 3, 1, 2, 5, 6)]


def batch_of(dataset: FileDataset, epoch: int) -> Batch:
    samples = dataset.__getitems__(keys(epoch))
    assert isinstance(samples, list)
    return collate(samples)


LEVELS = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 2
"""Without AVX2, torchvision resizes in floating point, without intermediate rounding."""


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "most"), [(16, 1 << 23), (16, 3000), ((10, 24), 1 << 23)])
def test_a_batch_on_a_device_is_that_of_files(
    images: ImageSet, interpolation: str, size: int | tuple[int, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "MAX_PIXELS", most)
    preprocessing = Preprocessing(size, 18, interpolation=interpolation)  # type: ignore[arg-type]
    there = on_device(images, preprocessing)
    read = FileDataset(images, preprocessing, augment=MOVED, seed=3)
    for epoch in range(12):
        ours, theirs = there.__getitems__(keys(epoch)), batch_of(read, epoch)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.indices, theirs.indices)
        assert (ours.images.int() - theirs.images.int()).abs().max() <= LEVELS
        assert ours.images.stride() == theirs.images.stride()


def test_colours_are_drawn_the_same(images: ImageSet) -> None:
    preprocessing = Preprocessing(16, 18)
    augment = replace(MOVED, color_jitter=0.4, policy="rand")
    there = on_device(images, preprocessing, augment)
    read = FileDataset(images, preprocessing, augment=augment, seed=3)
    far = [there.__getitems__(keys(e)).images.int() - batch_of(read, e).images.int() for e in range(12)]
    # a grey level before posterizing, equalizing and the like is many behind it
    assert (torch.stack(far).abs() > 6).float().mean() <= LEVELS / 100


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("length", "size"), [(1, 7), (3, 7), (7, 7), (8, 7), (40, 7), (333, 224), (50, 224)])
def test_resize_weights_are_torch_s(interpolation: str, length: int, size: int) -> None:
    row = torch.rand(1, 1, 1, length, generator=torch.Generator().manual_seed(0))
    smooth: dict[str, Any] = {} if interpolation == "nearest" else {"antialias": True, "align_corners": False}
    theirs = interpolate(row, (1, size), mode=interpolation, **smooth)
    lengths = torch.tensor([length, 1])[:, None, None]
    weights, whole = resize_weights(lengths, length + 2, size, interpolation)
    weights = weights / whole
    assert torch.allclose(weights[0, :, :length] @ row.flatten(), theirs.flatten(), atol=2e-3)
    assert weights[0, :, length:].abs().max() == 0
    assert torch.allclose(weights.sum(-1), torch.ones(2, size), atol=1e-3)


def test_neither_autocast_nor_a_lower_precision_of_products_changes_a_pixel(images: ImageSet) -> None:
    dataset, before = on_device(images, Preprocessing(16, 18)), torch.get_float32_matmul_precision()
    expected = dataset.__getitems__(keys(0)).images
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(dataset.__getitems__(keys(0)).images, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(dataset.__getitems__(keys(0)).images, expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_unreadable_picture_is_replaced_as_in_files(images: ImageSet, tmp_path: Path) -> None:
    assert images.paths is not None
    for index in (3, 4, 7):
        images.paths[index].write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        on_device(images, Preprocessing(16, 18))
    unreadable = UnreadableImages(tmp_path / "unreadable.jsonl")
    there = on_device(images, Preprocessing(16, 18), unreadable=unreadable)
    assert list(unreadable.known()) == ["3.png", "4.png", "7.png"]
    read = FileDataset(images, Preprocessing(16, 18), augment=MOVED, seed=3, unreadable=unreadable, replace=True)
    for epoch in range(3):
        ours, theirs = there.__getitems__(keys(epoch)), batch_of(read, epoch)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.indices, theirs.indices)
        assert (ours.images.int() - theirs.images.int()).abs().max() <= LEVELS


def test_a_set_that_does_not_fit_is_not_copied_to_the_device(images: ImageSet) -> None:
    cached = CachedImages(images, bytes_when_decoded(images) - 1)
    list(cached.decode())
    assert readable_sources(cached, None) is None


def test_a_training_gpu_crops_its_resident_images_without_worker_processes(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def module(**options: Any) -> ImageDataModule:
        splits = Splits(("a", "b", "c"), images, images.select([0, 1]), images.select([0, 1]))
        settings: dict[str, Any] = {"batch_size": 5, "num_workers": 2, "seed": 3} | options
        return ImageDataModule(splits, Preprocessing(16, 18), MOVED, **settings)

    expected = module(num_workers=0).train_dataloader()
    key, _ = module().pixels_of("train", 0)
    monkeypatch.setattr(ImageDataModule, "_on_gpu", lambda self: True)
    monkeypatch.setattr(ImageDataModule, "_device_for", lambda self, size: CPU)
    data = module()
    assert data.cached_bytes == sum(3 * width * height for width, height in SIDES) + 2 * 3 * 16 * 16
    assert data.pixels_of("train", 0)[0] != key, "resized elsewhere"
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, CroppedDataset)
    assert (loader.num_workers, loader.pin_memory) == (0, False)
    for ours, theirs in zip(loader, expected, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert (ours.images.int() - theirs.images.int()).abs().max() <= LEVELS
    assert data.training_images(2, [7, 1]).shape == (2, 3, 16, 16)
    assert not isinstance(module(num_workers=8).train_dataloader().dataset, CroppedDataset), "processes suffice"
    monkeypatch.setattr(ImageDataModule, "_device_for", lambda self, size: None)  # too little memory
    full = module()
    assert isinstance(full.train_dataloader().dataset, FileDataset)
    assert full.train_dataloader().num_workers == 2
    assert full.pixels_of("train", 0)[0] == key


def test_custom_transforms_of_crops_on_a_device_equal_those_of_files(images: ImageSet) -> None:
    own = replace(MOVED, transforms=({"_target_": "torchvision.transforms.v2.RandomPerspective", "p": 1},))
    preprocessing = Preprocessing(16, 18)
    read = FileDataset(images, preprocessing, augment=own, seed=3)
    there = on_device(images, preprocessing, own)
    plain = on_device(images, preprocessing)
    for epoch in range(2):
        mine, other = batch_of(read, epoch).images, there.__getitems__(keys(epoch)).images
        assert (mine.int() - other.int()).abs().max() <= LEVELS
        assert not torch.equal(other, plain.__getitems__(keys(epoch)).images)
