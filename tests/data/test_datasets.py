"""Random augmentation of an image depends on seed, epoch and index alone."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_parts import Stamped
from PIL import Image
from torchvision.transforms import v2

from graft.data import decoding
from graft.data.augment import Augment
from graft.data.datasets import FileDataset, collate
from graft.data.decoding import decode_resident
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import ResidentDataset
from graft.data.transforms import eval_transform
from graft.errors import ConfigError, DataError, UnreadableImage

SIZE = 12
SMALL = Preprocessing(input_size=SIZE, resize_size=SIZE)
STRONG = Augment(random_resized_crop={}, horizontal_flip=0.5, policy="trivial", random_erasing=0.3)
OWN: tuple[dict[str, Any], ...] = (
    {"_target_": "torchvision.transforms.v2.GaussianBlur", "kernel_size": 3},
    {"_target_": "data_parts.Speckle", "strength": 20},
    {"_target_": "data_parts.turned", "_partial_": True},
)
STAMPED = {"_target_": "data_parts.Stamped"}
SHIFT_AND_FLIP = Augment(random_crop_padding=3, horizontal_flip=0.5, vertical_flip=0.5)


def in_memory(count: int = 8, size: int = SIZE) -> ImageSet:
    pixels = np.random.RandomState(0).randint(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet([str(i) for i in range(count)], np.arange(count) % 3, pixels=pixels)


def file_dataset(seed: int = 0, augment: Augment = STRONG) -> FileDataset:
    return FileDataset(in_memory(), SMALL, augment=augment, seed=seed)


def resident(
    augment: Augment | None = SHIFT_AND_FLIP, seed: int = 0, count: int = 8, device: torch.device | None = None
) -> ResidentDataset:
    images = in_memory(count)
    pixels = decode_resident(images, SMALL)
    return ResidentDataset(pixels, images.labels, SMALL, augment=augment, seed=seed, device=device)


@pytest.mark.parametrize("dataset", [file_dataset(), resident(), resident(None)])
def test_the_global_generators_are_untouched(dataset: FileDataset | ResidentDataset) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for epoch in range(3):
        dataset[(epoch, 1)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_augmentation_depends_on_epoch_seed_and_index_and_not_on_earlier_images() -> None:
    first = file_dataset()[(4, 2)][0]
    torch.manual_seed(99)
    again = file_dataset()
    again[(0, 0)]
    assert torch.equal(again[(4, 2)][0], first)
    others = [file_dataset()[(5, 2)][0], file_dataset(seed=1)[(4, 2)][0]]
    assert not any(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("augment", [STRONG, SHIFT_AND_FLIP, None])
def test_a_worker_process_that_is_not_forked_gives_the_same_images(augment: Augment | None) -> None:
    dataset = FileDataset(in_memory(), SMALL, augment=augment, seed=2)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[(3, 1)][0], dataset[(3, 1)][0])


def test_a_resident_image_does_not_depend_on_its_batch() -> None:
    order = [5, 0, 3, 3]
    batch = resident().__getitems__([(2, i) for i in order])
    for row, index in enumerate(order):
        alone = resident()[(2, index)]
        assert torch.equal(batch.images[row], alone.images[0])
        assert (batch.labels[row], batch.indices[row]) == (index % 3, index)


ERASING = Augment(random_crop_padding=1, random_erasing=0.6)
COLOURS = Augment(horizontal_flip=0.5, policy="rand", color_jitter=0.4, random_erasing=0.5)


@pytest.mark.parametrize("augment", [None, SHIFT_AND_FLIP, Augment(horizontal_flip=0.5), ERASING, COLOURS])
def test_a_set_on_a_device_gives_the_same_batches_to_the_bit(augment: Augment | None) -> None:
    """The device is the CPU here, the code that of a GPU."""
    here, there = resident(augment), resident(augment, device=torch.device("cpu"))
    for dataset in (here, there):
        dataset.labels[5] = -1  # an unreadable image
    for epoch in range(3):
        keys = [(epoch, index) for index in (7, 0, 3, 5, -1)]
        for mine, other in zip(here.__getitems__(keys), there.__getitems__(keys), strict=True):
            assert torch.equal(mine, other)
            assert (mine.dtype, mine.stride()) == (other.dtype, other.stride())


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        SHIFT_AND_FLIP,
        Augment(horizontal_flip=0.5),
        ERASING,
        COLOURS,
        Augment(policy="trivial", vertical_flip=0.5),
        Augment(policy="auto", random_crop_padding=20),
        Augment(horizontal_flip=0.5, transforms=OWN),
        Augment(horizontal_flip=0.5, transforms=(STAMPED,)),
        Augment(horizontal_flip=0.5, transforms=(*OWN, STAMPED, *OWN)),
    ],
)
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_a_file_and_a_resident_set_give_the_same_image_to_the_bit(augment: Augment, device: torch.device) -> None:
    preprocessing = Preprocessing(input_size=SIZE, resize_size=14)
    images = in_memory(size=20)
    read = FileDataset(images, preprocessing, augment=augment, seed=5)
    pixels = decode_resident(images, preprocessing)
    resident = ResidentDataset(pixels, images.labels, preprocessing, augment=augment, seed=5, device=device)
    for epoch in range(6):
        keys = [(epoch, index) for index in (7, 0, 3, 3, -1, 5)]
        for mine, other in zip(collate(read.__getitems__(keys)), resident.__getitems__(keys), strict=True):  # type: ignore[arg-type]
            assert torch.equal(mine, other)
    assert np.array_equal(resident.pixels, decode_resident(images, preprocessing)), "batches are copies"


def test_resident_epochs_and_seeds_differ_and_are_repeatable() -> None:
    dataset = resident()
    keys = [[(epoch, i) for i in range(8)] for epoch in (0, 1)]
    first, second = (dataset.__getitems__(k).images for k in keys)
    assert not torch.equal(first, second)
    assert torch.equal(dataset.__getitems__(keys[0]).images, first)
    assert not torch.equal(resident(seed=1).__getitems__(keys[0]).images, first)


def test_a_resident_crop_is_a_window_of_the_reflected_image_flipped_or_not() -> None:
    """Every outcome is a window of the image padded by reflection, and many different ones come up."""
    image = in_memory(1).pixels
    assert image is not None
    padded = np.pad(image[0], ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = {
        np.ascontiguousarray(padded[y : y + SIZE, x : x + SIZE][::down, ::across]).tobytes(): (
            y,
            x,
            down,
            across,
        )
        for y in range(7)
        for x in range(7)
        for down in (1, -1)
        for across in (1, -1)
    }
    dataset = resident(count=1)
    seen = {
        windows[dataset[(epoch, 0)].images[0].permute(1, 2, 0).contiguous().numpy().tobytes()] for epoch in range(400)
    }
    assert len(windows) == 7 * 7 * 4
    assert len(seen) > 150
    assert {y for y, *_ in seen} == {x for _, x, *_ in seen} == set(range(7))


def test_resident_evaluation_is_exactly_evaluation_s_transform() -> None:
    images = in_memory(size=20)
    preprocessing = Preprocessing(input_size=SIZE, resize_size=16)
    pixels, transform = decode_resident(images, preprocessing), eval_transform(preprocessing)
    dataset = ResidentDataset(pixels, images.labels, preprocessing, augment=None, seed=0)
    batch = dataset.__getitems__([(0, i) for i in range(8)])
    for i in range(8):
        assert torch.equal(batch.images[i], transform(images.load(i)))


@pytest.mark.parametrize("augment", [None, Augment(), SHIFT_AND_FLIP])
def test_padding_is_black_and_has_no_label(augment: Augment | None) -> None:
    dataset = resident(augment)
    before = dataset.pixels.copy()
    for batch in (
        dataset.__getitems__([(0, 2), (0, -1)]),
        collate([file_dataset()[(0, 2)], file_dataset()[(0, -1)]]),
    ):
        assert batch.labels.tolist() == [2, -1]
        assert batch.indices.tolist() == [2, -1]
        assert batch.images[1].max() == 0
        assert batch.images.dtype == torch.uint8
    assert (dataset.pixels == before).all(), "a batch is a copy: the next epoch needs the originals"


def test_erasing_a_batch_is_torchvision_s_random_erasing() -> None:
    """As often, as large and as long, always a rectangle of the mean colour in a picture that is else as it was."""
    size, count, colour = 32, 2000, (7, 8, 9)
    pixels = np.full((count, size, size, 3), 200, dtype=np.uint8)
    preprocessing = Preprocessing(size, size, mean=tuple(level / 255 for level in colour))  # type: ignore[arg-type]
    batch = ResidentDataset(pixels, np.zeros(count, int), preprocessing, augment=Augment(random_erasing=0.7), seed=0)
    torch.manual_seed(0)
    theirs = v2.RandomErasing(0.7, value=list(colour))
    reference = torch.stack([theirs(image) for image in torch.from_numpy(pixels).permute(0, 3, 1, 2)])
    found = []
    for images in (batch.__getitems__([(1, i) for i in range(count)]).images, reference):
        erased = (images != 200).any(1)
        assert (images.permute(0, 2, 3, 1)[erased] == torch.tensor(colour)).all()
        heights, widths = erased.any(2).sum(1), erased.any(1).sum(1)
        assert torch.equal(erased.sum((1, 2)), heights * widths), "rectangles"
        there = heights > 0
        area, ratio = (heights * widths)[there] / size**2, (heights / widths)[there].log()
        tops, lefts = erased.any(2).long().argmax(1)[there], erased.any(1).long().argmax(1)[there]
        figures = (there.float(), area, area**2, ratio, ratio**2, tops.float(), lefts.float())
        found.append(torch.tensor([each.mean() for each in figures]))
    assert torch.allclose(found[0], found[1], rtol=0.06, atol=0.04), found


def test_only_batchable_augmentation_is_resident() -> None:
    with pytest.raises(ValueError, match="a random resized crop needs the original images"):
        resident(STRONG)


def test_decoding_names_the_damaged_file(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / f"{i}.png")
    images = ImageSet(list("01234"), np.zeros(5, np.int64), paths=[tmp_path / f"{i}.png" for i in range(5)])
    assert decode_resident(images, SMALL)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png: cannot be read"):
        decode_resident(images, SMALL)


def test_small_pictures_decoded_by_processes_equal_those_decoded_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    images = ImageSet([path.name for path in paths], np.zeros(9, dtype=np.int64), paths=paths)
    preprocessing = Preprocessing(8, 8)
    by_threads = decoding.decode_resident(images, preprocessing)
    monkeypatch.setattr(decoding, "MANY", 1)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 400)
    monkeypatch.setattr(decoding, "available_cores", lambda: 2)
    assert np.array_equal(decoding.decode_resident(images, preprocessing), by_threads)
    paths[7].write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"7\.png"):
        decoding.decode_resident(images, preprocessing)


def test_custom_transforms_draw_by_seed_epoch_and_index_and_leave_the_global_generators_alone() -> None:
    dataset = file_dataset(augment=Augment(transforms=OWN))
    random.seed(4), np.random.seed(4), torch.manual_seed(4)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    first = dataset[(2, 3)][0]
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[(2, 3)][0], first)
    assert not any(torch.equal(dataset[key][0], first) for key in ((1, 3), (2, 4)))
    assert not torch.equal(file_dataset(seed=1, augment=Augment(transforms=OWN))[(2, 3)][0], first)


def test_a_transform_receives_seed_epoch_and_index_if_it_has_these_arguments() -> None:
    augment = Augment(transforms=({"_target_": "data_parts.stamped", "_partial_": True},))
    assert file_dataset(seed=5, augment=augment)[(7, 2)][0][0, 0, :3].tolist() == [5, 7, 2]


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_a_transform_with_a_batch_method_gets_whole_batches_of_a_resident_set(device: torch.device | None) -> None:
    dataset = resident(Augment(transforms=(STAMPED,)), seed=5, device=device)
    before = Stamped.batches
    images = dataset.__getitems__([(7, index) for index in (4, 0, 6)]).images
    assert images[:, 0, 0, :3].tolist() == [[5, 7, 4], [5, 7, 0], [5, 7, 6]]
    assert Stamped.batches == before + 1


def test_a_batch_method_that_returns_other_images_is_named() -> None:
    dataset = resident(Augment(transforms=({"_target_": "data_parts.Halved"},)))
    with pytest.raises(DataError, match=r"\(data_parts\.Halved\): returned a uint8 tensor \[2, 3, 12, 12\], where"):
        dataset.__getitems__([(0, index) for index in range(4)])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("torchvision.transforms.v2.GaussianBlur", r"augment\.transforms\[0\]=.*must be a mapping with a _target_"),
        (
            {"_target_": "torchvision.transforms.v2.GaussianBlur", "kernal_size": 3},
            r"augment\.transforms\[0\]\.kernal_size=3: .*Did you mean kernel_size",
        ),
        ({"_target_": "torchvision.transforms.v2.GaussianBlur"}, r"transforms\[0\]\.kernel_size: .* requires it"),
        ({"_target_": "data_parts.turned"}, r"transforms\[0\]\.image: .* requires it"),
    ],
)
def test_the_arguments_of_a_transform_are_checked(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment(transforms=(node,))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "torchvision.transforms.v2.Resize", "size": [5, 5]}, r"returned a uint8 tensor \[3, 5, 5\]"),
        ({"_target_": "torchvision.transforms.v2.RandomErasing", "p": 1, "value": [1, 2]}, "failed on an image"),
    ],
)
def test_a_transform_that_fails_or_returns_something_else_is_named(node: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"augment\.transforms\[0\] \(torchvision.*\): {message}"):
        file_dataset(augment=Augment(transforms=(node,)))[(0, 0)]
