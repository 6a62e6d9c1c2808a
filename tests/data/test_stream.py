"""Images by file, folder and pattern are read in order and lazily."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from graft.data.layout import image_files
from graft.data.stream import Found, find_images, read_ahead
from graft.errors import DataError

NAMES = ("b.png", "a.jpg", "B.JPG", "10.png", "sub/c.png", "sub/deep/d.png", "sub.png", "zoo [1]/é.png")
HIDDEN = (".x.png", ".cache/y.png", "notes.txt")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES + HIDDEN:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("no picture")
        else:
            Image.new("RGB", (4, 4)).save(file)
    return tmp_path / "photos"


def below(*sources: object) -> list[str]:
    return [found.relative for found in find_images([str(source) for source in sources])]


def test_a_folder_gives_its_images_at_any_depth_in_the_order_of_whole_paths(photos: Path) -> None:
    assert below(photos) == sorted(NAMES)
    assert below(photos) == [name for name, _ in image_files(photos)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    {
        "*.png": ["10.png", "b.png", "sub.png"],
        "*": ["10.png", "B.JPG", "a.jpg", "b.png", "sub/c.png", "sub/deep/d.png", "sub.png", "zoo [1]/é.png"],
        "?.*": ["B.JPG", "a.jpg", "b.png"],
        "**/*.png": ["10.png", "b.png", "sub.png", "sub/c.png", "sub/deep/d.png", "zoo [1]/é.png"],
        "**": ["10.png", "B.JPG", "a.jpg", "b.png", "sub.png", "sub/c.png", "sub/deep/d.png", "zoo [1]/é.png"],
        "**/*": ["10.png", "B.JPG", "a.jpg", "b.png", "sub.png", "sub/c.png", "sub/deep/d.png", "zoo [1]/é.png"],
        "s*/c.png": ["sub/c.png"],
        "s*/deep": ["sub/deep/d.png"],
        "[ab].*": ["a.jpg", "b.png"],
        "*.gif": [],
    }.items(),
)
def test_a_pattern_gives_what_matches_sorted(pattern: str, names: list[str], photos: Path) -> None:
    assert below(photos / pattern) == names


def test_an_existing_name_that_looks_like_a_pattern_is_a_name(photos: Path) -> None:
    assert below(photos / "zoo [1]") == ["é.png"]
    assert below(photos / "zoo [1]" / "é.png", photos / "b.png") == ["é.png", "b.png"]


def test_a_missing_source_is_reported_before_any_image_is_read(photos: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_images([str(photos), str(photos / "nowhere")])


def test_a_cycle_of_links_ends(photos: Path) -> None:
    (photos / "sub" / "circle").symlink_to(photos)
    assert len(below(photos)) == len(NAMES)
    assert len(below(photos / "**")) == len(NAMES)


def test_only_requested_images_are_read_in_order(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    for number in range(1, 50):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    taken = 0

    def counted() -> Iterator[Found]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield Found(tmp_path / f"{number}.png", f"{number}.png")

    done = []
    for found, size in read_ahead(counted(), lambda image: image.size, workers=4, ahead=6):
        done.append(found.relative)
        assert size == (4, 4)
        assert taken <= len(done) + 6
    assert done == [f"{number}.png" for number in range(50)]


def test_a_damaged_file_yields_the_reason(photos: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:40])
    results = dict(read_ahead(find_images([str(photos)]), lambda image: image.mode, workers=2, ahead=3))
    wrong = {found.relative: result for found, result in results.items() if isinstance(result, DataError)}
    assert list(wrong) == ["broken.png"]
    assert "broken.png" in str(wrong["broken.png"])
    assert len(results) == len(NAMES) + 1
