"""Images that become unreadable during training: an error that names them, or a replacement."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch, FileDataset
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import ResidentDataset
from graft.data.splits import Splits
from graft.data.unreadable import UnreadableImages
from graft.errors import DataError, UnreadableImage

SMALL = Preprocessing(input_size=8, resize_size=8)
SHIFT, CROP = Augment(random_crop_padding=1), Augment(random_resized_crop={})
COUNT = 10


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Ten pictures, each as bright as ten times its index; of classes 0 and 1 in turn."""
    paths = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(path)
    return ImageSet([path.name for path in paths], np.arange(COUNT) % 2, paths=paths)


def module(
    images: ImageSet, unreadable: UnreadableImages | None, augment: Augment = CROP, **options: object
) -> ImageDataModule:
    """The same images train, validate and test."""
    settings: dict[str, object] = {"batch_size": 4, "num_workers": 0, "seed": 0, "resident_gb": 0} | options
    splits = Splits(("a", "b"), images, images.select(range(COUNT)), images.select(range(COUNT)))
    return ImageDataModule(splits, SMALL, augment, unreadable=unreadable, **settings)


def rows(batches: list[Batch]) -> list[tuple[int, int, int]]:
    """(index, label, brightness) of every picture, in order of index."""
    joined = [torch.cat(columns) for columns in zip(*batches, strict=True)]
    brightness = joined[0].float().mean(dim=(1, 2, 3)).round().int()
    return sorted(zip(joined[2].tolist(), joined[1].tolist(), brightness.tolist(), strict=True))


def sound(*without: int) -> list[tuple[int, int, int]]:
    return [(i, i % 2, 10 * i) for i in range(COUNT) if i not in without]


@pytest.mark.parametrize("workers", [0, 2])
def test_by_default_a_missing_file_stops_training_with_a_clear_error(images: ImageSet, workers: int) -> None:
    loader = module(images, None, num_workers=workers).train_dataloader()
    images.paths[6].unlink()  # type: ignore[index]
    with pytest.raises(DataError) as raised:
        list(loader)
    assert str(raised.value) == (
        f"{images.paths[6]}: cannot be read as an image (no such file).\nRemove or replace it."  # type: ignore[index]
    )


@pytest.mark.parametrize(("workers", "augment", "resident_gb"), [(0, CROP, 0), (2, CROP, 0), (0, SHIFT, 1)])
def test_training_replaces_an_unreadable_image_and_evaluation_does_not_count_it(
    images: ImageSet, tmp_path: Path, workers: int, augment: Augment, resident_gb: float
) -> None:
    unreadable = UnreadableImages(tmp_path / "unreadable.jsonl")
    for index in (3, 4, 9):
        images.paths[index].write_bytes(b"changed while training")  # type: ignore[index]
    data = module(images, unreadable, augment, num_workers=workers, resident_gb=resident_gb)
    assert (data.resident == {"train", "val"}) is (resident_gb == 1)
    trained = rows(list(data.train_dataloader()))
    instead = [(0, 0), (5, 1), (5, 1)]  # after 9 comes 0
    assert sorted(row[1:] for row in trained) == sorted(
        [row[1:] for row in sound(3, 4, 9)] + [(i % 2, 10 * i) for i, _ in instead]
    )
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert rows(list(loader)) == [(-1, -1, 0)] * 3 + sound(3, 4, 9)
    assert list(unreadable.known()) == ["3.png", "4.png", "9.png"]
    assert unreadable.known()["3.png"].startswith("no image: it begins with b'changed")
    assert unreadable.notes() == ["3 images could not be read while training (data.on_error=skip): 3.png, 4.png, 9.png"]


def test_a_record_with_truncated_lines_is_read_except_for_them(images: ImageSet, tmp_path: Path) -> None:
    unreadable = UnreadableImages(tmp_path / "unreadable.jsonl")
    unreadable.note("a.png", UnreadableImage(Path("a.png"), "empty", "0 bytes"))
    with unreadable.record.open("ab") as file:
        file.write(b'[1, 2]\n{"name": "x"}\n\xff\xfe\n{"name": "b.p')  # the last as after a kill or on a full disk
    assert unreadable.known() == {"a.png": "empty: 0 bytes"}
    unreadable.note("c\n.png", UnreadableImage(Path("c.png"), "missing", "no such file"))
    assert unreadable.known() == {"a.png": "empty: 0 bytes", "c\n.png": "missing: no such file"}
    assert unreadable.notes()[1:] == [
        "4 lines of unreadable.jsonl cannot be read, so that many more images may have been unreadable"
    ]


def test_no_record_is_written_while_all_images_are_readable(images: ImageSet, tmp_path: Path) -> None:
    unreadable = UnreadableImages(tmp_path / "unreadable.jsonl")
    data = module(images, unreadable)
    assert rows(list(data.val_dataloader())) == sound()
    list(data.train_dataloader())
    assert not unreadable.record.exists()
    assert (unreadable.known(), unreadable.notes()) == ({}, [])


def test_an_unreadable_image_does_not_change_the_others(images: ImageSet, tmp_path: Path) -> None:
    whole = FileDataset(images, SMALL, augment=CROP)[(3, 5)]
    images.paths[4].unlink()  # type: ignore[index]
    unreadable = UnreadableImages(tmp_path / "unreadable.jsonl")
    with_loss = FileDataset(images, SMALL, augment=CROP, unreadable=unreadable, replace=True)
    assert torch.equal(with_loss[(3, 5)][0], whole[0])


@pytest.mark.parametrize("resident_gb", [0, 1])
def test_training_ends_when_all_images_are_unreadable(images: ImageSet, tmp_path: Path, resident_gb: float) -> None:
    data = module(images, UnreadableImages(tmp_path / "x"), SHIFT, resident_gb=resident_gb)
    for path in images.paths or ():
        path.unlink()
    with pytest.raises(DataError, match=r"(consecutive images cannot be read|none of the 10 images can be read)"):
        list(data.train_dataloader())


def test_a_resident_set_names_the_file_that_cannot_be_read(images: ImageSet) -> None:
    images.paths[2].write_bytes(b"")  # type: ignore[index]
    with pytest.raises(UnreadableImage, match=r"2\.png"):
        module(images, None, SHIFT, resident_gb=1).train_dataloader()


def test_an_unreadable_image_is_displayed_as_black(images: ImageSet, tmp_path: Path) -> None:
    images.paths[7].unlink()  # type: ignore[index]
    data = module(images, UnreadableImages(tmp_path / "x"))
    assert data.picture("val", 7).max() == 0
    assert data.picture("val", 8).max() == 80


def test_a_sample_excludes_unreadable_images(images: ImageSet, tmp_path: Path) -> None:
    images.paths[9].unlink()  # type: ignore[index]
    sample = module(images, UnreadableImages(tmp_path / "x")).sample(4)
    assert sample.float().mean(dim=(1, 2, 3)).tolist() == [0, 30, 60]


def test_padding_of_batches_is_removed_on_request() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    batch = Batch(images, torch.tensor([1, -1, 0]), torch.tensor([5, -1, 7]))
    assert [part.tolist() for part in batch.real()[1:]] == [[1, 0], [5, 7]]
    assert batch.real().real().images[1].max() == 2


def test_resident_augmentation_does_not_change_with_unreadable_images(images: ImageSet, tmp_path: Path) -> None:
    whole = module(images, None, SHIFT, resident_gb=1).train_dataloader().dataset
    images.paths[0].unlink()  # type: ignore[index]
    less = module(images, UnreadableImages(tmp_path / "x"), SHIFT, resident_gb=1).train_dataloader().dataset
    assert isinstance(whole, ResidentDataset)
    assert isinstance(less, ResidentDataset)
    keys = [(2, i) for i in range(1, COUNT)]
    assert torch.equal(whole.__getitems__(keys).images, less.__getitems__(keys).images)


def test_evaluation_of_a_checkpoint_does_not_count_an_unreadable_image(images: ImageSet, tmp_path: Path) -> None:
    from graft.learning.decisions import ONE_CLASS
    from graft.learning.metrics import Scores
    from graft.tasks.evaluation import measure

    class AlwaysFirst:
        device = torch.device("cpu")
        many = nullcontext

        members, classes, decisions = (None,), ("a", "b"), ONE_CLASS

        def member_logits(self, batches: list[torch.Tensor]) -> list[torch.Tensor]:
            (pictures,) = batches
            assert len(pictures)
            return [torch.tensor([[1.0, 0.0]]).expand(len(pictures), 2)]

    for index in (0, 1, 2, 3, 4, 5, 6, 7, 8):  # the whole first batch, and all but one of the second
        images.paths[index].unlink()  # type: ignore[index]
    data = module(images, UnreadableImages(tmp_path / "x"))
    scores = Scores(("a", "b"), torch.device("cpu"))
    (scored,) = measure(AlwaysFirst(), [data], "test", scores, [], tmp_path / "predictions.csv", 1)  # type: ignore[arg-type]
    assert scored.confusion == [[0, 0], [1, 0]]
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 2
