"""Modified copies are found, and different images are not reported as copies."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from graft.data.layout import image_files
from graft.data.reading import read_image
from graft.inspection.duplicates import difference_hash, near_groups, near_pairs, same_groups, thumbnail


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Image.Image]:
    """Sixty different photographs."""
    return [read_image(path) for _, path in image_files(shared_data / "hymenoptera_data" / "val")[:60]]


def groups_of(pictures: list[Image.Image]) -> list[list[int]]:
    grey = [picture.convert("L") for picture in pictures]
    return near_groups([difference_hash(one) for one in grey], [thumbnail(one) for one in grey])


def recompressed(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=20)
    return Image.open(content).convert("RGB")


def turned_by_a_hair(picture: Image.Image) -> Image.Image:
    return picture.crop((picture.width // 100, 0, picture.width, picture.height - picture.height // 100))


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        turned_by_a_hair,
        lambda picture: picture.resize((picture.width // 3, picture.height // 3)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
        lambda picture: ImageEnhance.Color(picture).enhance(0.0),
        lambda picture: picture.filter(ImageFilter.GaussianBlur(1)),
    ],
    ids=["recompressed", "cropped", "reduced", "darkened", "grey", "blurred"],
)
def test_a_changed_copy_is_found_among_other_photographs(photographs: list[Image.Image], change) -> None:
    count = len(photographs)
    found = groups_of(photographs + [change(picture) for picture in photographs])
    right = [[index, index + count] for index in range(count)]
    assert all(group in right for group in found), "another photograph was reported as a copy"
    assert len(found) >= 0.9 * count


def test_all_photographs_of_a_real_set_are_different(shared_data: Path) -> None:
    files = image_files(shared_data / "hymenoptera_data")
    assert groups_of([read_image(path) for _, path in files[::4]]) == []


def test_different_positions_of_a_spot_are_different_images() -> None:
    """Nearly all bits of a dark picture's hash are 0, regardless of its content."""
    chance = np.random.RandomState(0)
    pictures = []
    for _ in range(40):
        pixels = np.zeros((64, 64), np.uint8)
        for x, y in chance.randint(4, 60, (2, 2)):
            pixels[y - 2 : y + 2, x - 2 : x + 2] = 255
        pictures.append(Image.fromarray(pixels))
    hashes = np.array([np.frombuffer(difference_hash(one), np.uint16) for one in pictures])
    assert sum(len(one) for one, _ in near_pairs(hashes)) > 10, "the hashes alone would find many"
    assert groups_of(pictures) == []


@pytest.mark.parametrize("most", [0, 3, 7, 8, 12, 15])
def test_all_pairs_within_the_distance_are_found_and_no_others(most: int) -> None:
    chance = np.random.RandomState(most)
    bits = np.repeat(chance.rand(30, 128) < 0.3, 12, axis=0)
    bits ^= chance.rand(*bits.shape) < chance.choice([0, 0.02, 0.06, 0.1], len(bits))[:, None]
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    expected = {(i, j) for i, j in np.argwhere(distances <= most).tolist() if i < j}
    words = np.packbits(bits, axis=1).view(np.uint16)
    found = {pair for one, other in near_pairs(words, most) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert found == expected
    assert expected


def test_any_number_of_pairs_comes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.inspection.duplicates._PAIRS", 50)
    words = np.zeros((40, 8), np.uint16)
    found = [pair for one, other in near_pairs(words) for pair in zip(one.tolist(), other.tolist(), strict=True)]
    assert set(found) == {(i, j) for j in range(40) for i in range(j)}


def test_transitively_similar_images_are_one_group() -> None:
    """A row of pictures, each 10 bits from the next: the first and the last are very different."""
    rows = np.zeros((5, 128), bool)
    for step in range(5):
        rows[step, : 10 * step] = True
    order = [3, 0, 4, 2, 1]
    hashes = [np.packbits(rows[step]).tobytes() for step in order]
    thumb = bytes(range(256))
    assert near_groups(hashes, [thumb] * 5) == [[0, 1, 2, 3, 4]]
    assert near_groups([], []) == []


def test_equal_digests_are_grouped_and_missing_ones_are_not() -> None:
    assert same_groups([b"a", None, b"b", b"a", None, b"c", b"a"]) == [[0, 3, 6]]
