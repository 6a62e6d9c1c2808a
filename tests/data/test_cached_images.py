"""Images cached in memory equal those of the files, and so do their random crops."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from graft.data.augment import Augment
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.images import ImageSet
from graft.data.reading import read_image
from graft.data.transforms import as_pixels
from graft.errors import UnreadableImage

SIDES = ((40, 30), (31, 57), (8, 9))


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Three noisy JPEGs of different sizes, the second on its side by its EXIF data."""
    noise = np.random.RandomState(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(len(SIDES))]
    for number, (path, (width, height)) in enumerate(zip(paths, SIDES, strict=True)):
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(noise.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(path, exif=exif)
    return ImageSet([path.name for path in paths], np.arange(len(paths)), paths=paths)


def same(one: Tensor, other: Image.Image | Tensor) -> bool:
    return torch.equal(one, as_pixels(other))


def test_cached_images_are_read_once_and_do_not_change(images: ImageSet) -> None:
    cached = CachedImages(images, bytes_when_decoded(images))
    first = [cached.load(index) for index in (2, 0, 1)]
    assert images.paths is not None
    for path in images.paths:
        path.unlink()
    assert all(same(cached.load(index), picture) for index, picture in zip((2, 0, 1), first, strict=True))
    assert first[2].shape == (3, 31, 57)  # upright


def test_a_restarted_worker_process_has_the_decoded_images(images: ImageSet) -> None:
    cached = CachedImages(images, bytes_when_decoded(images))
    assert list(cached.decode()) == [1, 2, 3]
    pictures = [images.load(index) for index in range(3)]
    assert images.paths is not None
    images.paths[0].unlink()
    moved = pickle.loads(pickle.dumps(cached))
    assert all(same(moved.load(index), picture) for index, picture in enumerate(pictures))


def test_images_that_do_not_fit_are_decoded_each_time(images: ImageSet) -> None:
    cached = CachedImages(images, 3 * 40 * 30 + 3 * 8 * 9 + 1)
    for _ in range(2):
        assert all(same(cached.load(index), images.load(index)) for index in range(3))
    assert images.paths is not None
    for path in images.paths:
        path.unlink()
    cached.load(0), cached.load(2)
    with pytest.raises(UnreadableImage, match=r"1\.jpg"):
        cached.load(1)


def test_an_unreadable_image_is_reported_when_it_is_used(images: ImageSet) -> None:
    assert images.paths is not None
    images.paths[1].write_bytes(images.paths[1].read_bytes()[:200])
    cached = CachedImages(images, bytes_when_decoded(images))
    list(cached.decode())
    cached.load(0)
    with pytest.raises(UnreadableImage, match=r"1\.jpg"):
        cached.load(1)


@pytest.fixture
def photograph(shared_data: Path, tmp_path: Path) -> Path:
    """A real photograph of 2,000 by 1,500 pixels."""
    real = sorted((shared_data / "hymenoptera_data" / "train" / "ants").glob("*.jpg"))[0]
    with Image.open(real) as picture:
        picture.convert("RGB").resize((2000, 1500), Image.Resampling.LANCZOS).save(tmp_path / "large.jpg", quality=92)
    return tmp_path / "large.jpg"


def test_a_large_photograph_is_decoded_smaller_and_its_crops_hardly_change(photograph: Path) -> None:
    augment, size = Augment(random_resized_crop={"scale": (0.3, 1.0)}), 224
    min_side = augment.min_side((size, size))
    assert min_side == 473  # 224 / sqrt(0.3 · 3/4)
    whole, reduced = read_image(photograph), read_image(photograph, min_side)
    assert (whole.size, reduced.size) == ((2000, 1500), (1000, 750))
    assert read_image(photograph, 800).size == (2000, 1500)  # a half would be too small
    set_of_one = ImageSet(["large"], np.zeros(1, np.int64), paths=[photograph], min_side=min_side)
    assert bytes_when_decoded(set_of_one) == 3 * 1000 * 750
    assert set_of_one.select([0]).min_side == min_side

    for left, top, width, height in ((0, 0, 2000, 1500), (400, 100, 1100, 820), (1300, 900, 700, 600)):
        box = (left, top, left + width, top + height)
        exact = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box), np.float64)
        half = tuple(side / 2 for side in box)
        near = np.asarray(reduced.resize((size, size), Image.Resampling.BILINEAR, box=half), np.float64)
        assert np.abs(near - exact).mean() < 2  # of 255


def test_without_a_random_crop_nothing_is_reduced() -> None:
    assert Augment(horizontal_flip=0.5, policy="rand").min_side((224, 224)) == 0


def test_joined_and_selected_sets_keep_their_minimum_side(images: ImageSet) -> None:
    set_ = replace(images, min_side=77)
    assert set_.select([2, 0]).min_side == set_.join(set_).min_side == 77
