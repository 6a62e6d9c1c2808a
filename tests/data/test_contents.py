"""Content hashes distinguish files whose names, sizes and modification times are equal."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_folders import load
from PIL import Image

from graft.data.contents import BLOCK, BLOCKS, WHOLE, contents
from graft.data.images import ImageSet

TIME = 1_700_000_000


def write(path: Path, content: bytes) -> Path:
    """A file that always has the same time of change."""
    path.write_bytes(content)
    os.utime(path, (TIME, TIME))
    return path


def digests(*paths: Path) -> list[bytes]:
    return [digest.tobytes() for digest in contents(paths)["digest"]]


@pytest.mark.parametrize("size", [1, WHOLE, WHOLE + 1, 10 * WHOLE])
def test_a_byte_at_the_beginning_or_the_end_makes_a_difference(size: int, tmp_path: Path) -> None:
    files = [write(tmp_path / str(position), bytes(size)) for position in (0, 1, 2)]
    assert len(set(digests(*files))) == 1
    write(files[1], b"x" + bytes(size - 1))
    write(files[2], bytes(size - 1) + b"y")
    assert len(set(digests(*files))) == 3


def test_small_files_are_read_whole_and_large_ones_at_four_offsets(tmp_path: Path) -> None:
    small, large = bytes(WHOLE), bytes(3 * WHOLE)
    files = [write(tmp_path / "0", small), *(write(tmp_path / f"{at}", small[:at] + b"x" + small[at + 1 :]) for at in
             range(1, WHOLE, 777))]  # fmt: skip
    assert len(set(digests(*files))) == len(files)
    seen = sum(
        digests(write(tmp_path / "x", large[:at] + b"x" + large[at + 1 :])) != digests(write(tmp_path / "y", large))
        for at in range(0, len(large), BLOCK // 2)
    )
    assert seen == pytest.approx(2 * BLOCKS, abs=2)


def test_only_regular_files_are_opened_and_missing_files_differ_from_empty_ones(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "pipe", tmp_path / "folder", tmp_path / "missing", write(tmp_path / "empty", b"")]
    rows = contents(paths)
    assert rows["size"].tolist()[2:] == [-1, 0]


def test_files_are_read_again_only_if_they_changed(tmp_path: Path) -> None:
    files = [write(tmp_path / name, name.encode() * 9) for name in "ab"]
    rows = contents(files)
    write(files[0], b"x" * 9)
    assert (contents(files, rows) == rows).all(), "the same size and time: what was read counts"
    os.utime(files[0], (TIME + 1, TIME + 1))
    again = contents(files, rows)
    assert (again == rows).tolist() == [False, True]
    assert (again == contents(files)).all()


def photographs(root: Path, shared_data: Path, ending: str) -> None:
    """Real photographs in two class folders, all of one size in bytes and one time of change."""
    originals = {
        name: sorted((shared_data / "flower_photos" / name).glob("*.jpg"))[:12] for name in ("daisy", "tulips")
    }
    longest = max(file.stat().st_size for files in originals.values() for file in files)
    for name, files in originals.items():
        (root / name).mkdir(parents=True)
        for number, file in enumerate(files):
            target = root / name / f"{number}{ending}"
            if ending == ".jpg":
                content = file.read_bytes()
                write(target, content + bytes(longest - len(content)))
            else:
                Image.open(file).convert("RGB").resize((128, 128)).save(target)
                os.utime(target, (TIME, TIME))


def swap(one: Path, other: Path) -> None:
    """What a person does who has found two images in each other's class."""
    aside = one.with_name("aside")
    shutil.move(one, aside)
    shutil.move(other, one)
    shutil.move(aside, other)


def states(root: Path) -> set[tuple[int, int]]:
    return {(file.stat().st_size, file.stat().st_mtime_ns) for file in root.rglob("*.*")}


@pytest.mark.parametrize("ending", [".bmp", ".jpg"])
def test_swapping_two_photographs_changes_the_fingerprint(ending: str, tmp_path: Path, shared_data: Path) -> None:
    root = tmp_path / "photos"
    photographs(root, shared_data, ending)
    assert len(states(root)) == 1
    before = load("folder", root)
    prints = before.fingerprint(), before.train.fingerprint()
    assert (load("folder", root).fingerprint(), load("folder", root).train.fingerprint()) == prints
    daisy, tulip = (sorted(root / name for name in before.train.names if name.startswith(c))[0] for c in "dt")
    swap(daisy, tulip)
    assert len(states(root)) == 1
    after = load("folder", root)
    assert after.fingerprint() != prints[0]
    assert after.train.fingerprint() != prints[1], "the features kept for the training images are of others"
    swap(daisy, tulip)
    assert (load("folder", root).fingerprint(), load("folder", root).train.fingerprint()) == prints


def test_moving_a_photograph_to_another_class_changes_the_fingerprint(tmp_path: Path, shared_data: Path) -> None:
    root = tmp_path / "photos"
    photographs(root, shared_data, ".jpg")
    before = load("folder", root).fingerprint()
    shutil.move(root / "daisy" / "0.jpg", root / "tulips" / "moved.jpg")
    assert load("folder", root).fingerprint() != before


def test_a_copy_of_the_set_has_the_same_fingerprint(tmp_path: Path, shared_data: Path) -> None:
    photographs(tmp_path / "photos", shared_data, ".jpg")
    shutil.copytree(tmp_path / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
    assert len(states(tmp_path / "photos") | states(tmp_path / "copy")) > 1
    assert load("folder", tmp_path / "copy").fingerprint() == load("folder", tmp_path / "photos").fingerprint()


def test_file_names_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    files = [write(tmp_path / name, b"same") for name in "ab"]
    labels = np.zeros(1, np.int64)
    assert (
        ImageSet(["a/1.jpg"], labels, paths=files[:1]).fingerprint()
        != ImageSet(["b/1.jpg"], labels, paths=files[1:]).fingerprint()
    )
