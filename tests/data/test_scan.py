"""The quick check before training reports damaged files and no readable ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.data.images import ImageSet
from graft.data.loading import load_splits
from graft.data.scan import exclude_unreadable, quick_check, scan
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError

NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (60, 80, 3), dtype=np.uint8))

KINDS: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any]]] = {
    "jpeg": ("JPEG", lambda: NOISE, {}),
    "progressive": ("JPEG", lambda: NOISE, {"progressive": True}),
    "cmyk": ("JPEG", lambda: NOISE.convert("CMYK"), {}),
    "png": ("PNG", lambda: NOISE, {}),
    "16 bits": ("PNG", lambda: Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13), {}),
    "palette": ("PNG", lambda: NOISE.convert("P"), {}),
    "webp": ("WEBP", lambda: NOISE, {}),
    "bmp": ("BMP", lambda: NOISE, {}),
    "bmp of two colours": ("BMP", lambda: NOISE.convert("1"), {}),
    "ppm": ("PPM", lambda: NOISE, {}),
    "pgm": ("PPM", lambda: NOISE.convert("L"), {}),
    "tiff": ("TIFF", lambda: NOISE, {}),
    "tiff lzw": ("TIFF", lambda: NOISE, {"compression": "tiff_lzw"}),
    "tiff jpeg": ("TIFF", lambda: NOISE, {"compression": "jpeg"}),
}


def saved(kind: str, path: Path) -> Path:
    format_, make, options = KINDS[kind]
    make().save(path, format_, **options)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_file_is_readable_and_half_of_it_is_not(kind: str, tmp_path: Path) -> None:
    path = saved(kind, tmp_path / "a")
    assert quick_check(path) is None
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * 500)
    assert quick_check(path) is None, "bytes after the end do no harm"
    path.write_bytes(content[: len(content) // 2])
    assert quick_check(path) is not None
    path.write_bytes(content[:-10])
    if kind in ("jpeg", "webp", "bmp", "ppm", "pgm"):  # of the others Pillow reads every pixel all the same
        assert quick_check(path) is not None


def test_the_real_sets_are_readable(shared_data: Path) -> None:
    for name, folder in (("hymenoptera", "hymenoptera_data"), ("mask", "mask")):
        splits = load_splits(name, root=shared_data / folder, seed=0)
        assert exclude_unreadable(splits, "raise") is splits


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of 30 and 20 sound pictures."""
    for name, count in (("cats", 30), ("dogs", 20)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            NOISE.rotate(i).save(tmp_path / "photos" / name / f"{i:02d}.png")
    return tmp_path / "photos"


def spoil(photos: Path) -> set[str]:
    """Spoil some of them; returns their names."""
    (photos / "cats" / "03.png").write_bytes(b"")
    (photos / "cats" / "11.png").unlink()
    (photos / "cats" / "11.png").symlink_to("nowhere.png")
    (photos / "dogs" / "05.png").write_text("<html>")
    content = (photos / "dogs" / "06.png").read_bytes()
    (photos / "dogs" / "06.png").write_bytes(content[: len(content) // 2])
    return {"cats/03.png", "cats/11.png", "dogs/05.png", "dogs/06.png"}


def load(photos: Path, **options: Any) -> Splits:
    return load_splits("folder", root=photos, seed=0, **options)


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0}, {"fold": 1, "folds": 3}, {"shots": 5}])
def test_skip_keeps_every_other_image_in_its_split(photos: Path, options: dict[str, Any]) -> None:
    before = load(photos, **options)
    bad = spoil(photos)
    after = exclude_unreadable(load(photos, **options), "skip")
    for name, part in before.parts().items():
        kept = after.parts()[name]
        assert kept.names == [one for one in part.names if one not in bad]
        assert kept.paths == [photos / one for one in kept.names]
        assert [after.classes[label] for label in kept.labels] == [one.split("/")[0] for one in kept.names]
    assert (after.val is after.test) is (before.val is before.test)
    drawn = {one for part in before.parts().values() for one in part.names}
    assert {name for name, _ in after.unreadable} == bad & drawn
    assert "excluded, unreadable (data.on_error=skip)" in after.notes[-1]


def test_raise_names_the_files_with_the_reason_and_the_way_out(photos: Path) -> None:
    for name in spoil(photos):
        assert any(name in part.names for part in load(photos).parts().values())
    with pytest.raises(DataError) as raised:
        exclude_unreadable(load(photos), "raise")
    first, *listed, last = str(raised.value).splitlines()
    assert first == f"data.root={photos}: 4 images cannot be read:"
    assert sorted(line.split("  (")[0].strip() for line in listed) == sorted(spoil(photos))
    assert any("(empty: 0 bytes)" in line for line in listed)
    assert last == "Remove or replace them, or set data.on_error=skip to exclude them."


def test_a_long_list_of_files_is_shortened(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="50 images cannot be read") as raised:
        exclude_unreadable(load(photos), "raise")
    assert "and 30 more; graft inspect lists all" in str(raised.value)


def test_a_split_that_would_be_empty_is_refused(photos: Path) -> None:
    for path in (photos / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r'none of the training images of class "dogs" can be read'):
        exclude_unreadable(load(photos), "skip")
    for path in (photos / "cats").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the train images can be read"):
        exclude_unreadable(load(photos), "skip")


def test_an_unknown_value_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.on_error=ignore: must be raise or skip"):
        exclude_unreadable(load(photos), "ignore")


def test_of_very_many_files_a_regular_sample_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    images = ImageSet([str(i) for i in range(40)], np.zeros(40, np.int64), paths=[tmp_path / "empty.png"] * 40)
    counts: list[int] = []
    assert list(scan(images, 7, done=counts.append)) == [0, 7, 14, 21, 28, 35]
    assert sum(counts) == len(images), "the progress bar ends at its end"
    monkeypatch.setattr("graft.data.scan.MAX_CHECKED", 10)
    looked: list[int] = []
    with pytest.raises(DataError, match="10 images cannot be read"):
        exclude_unreadable(Splits(("a", "b"), images, images, images), "raise", looked.append)
    assert sum(looked) >= 40


def test_nothing_is_written_and_images_in_memory_are_readable(photos: Path) -> None:
    before = {(path, path.stat().st_mtime_ns) for path in photos.rglob("*")}
    exclude_unreadable(load(photos), "skip")
    assert {(path, path.stat().st_mtime_ns) for path in photos.rglob("*")} == before
    faces = load_splits("faces", root=None, seed=0)
    assert exclude_unreadable(faces, "raise") is faces
    shutil.rmtree(photos)


def test_skip_excludes_a_self_linked_file_and_a_fifo_and_names_them(photos: Path) -> None:
    (photos / "cats" / "loop.jpg").symlink_to("loop.jpg")
    (photos / "dogs" / "loop").symlink_to("loop")
    os.mkfifo(photos / "dogs" / "pipe.png")
    splits = load_splits("folder", root=photos, seed=0)
    assert dict(exclude_unreadable(splits, "skip").unreadable) == {
        "cats/loop.jpg": "missing: a link to itself",
        "dogs/pipe.png": "not a regular file: a FIFO",
    }
    with pytest.raises(DataError, match="2 images cannot be read"):
        exclude_unreadable(splits, "raise")
