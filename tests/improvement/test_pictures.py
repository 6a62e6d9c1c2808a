"""Pictures that are dark, over-exposed, pale, blurred, grey, tiny or of an odd shape are recognised."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from graft.data.images import ImageSet
from graft.improvement.pictures import CHECKS
from graft.inspection.copies import described
from graft.inspection.examine import ImageFacts, describe_file


def picture(
    seed: int, low: int = 20, high: int = 235, size: tuple[int, int] = (96, 72), grey: bool = False
) -> Image.Image:
    """Coloured squares between two brightnesses."""
    values = np.random.RandomState(seed).randint(low, high, (size[1] // 8, size[0] // 8, 1 if grey else 3))
    pixels = np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    return Image.fromarray(pixels)


ODD = {
    "dark": picture(1, 5, 60),
    "overexposed": picture(2, 200, 256),
    "low_contrast": picture(3, 120, 150),
    "blurred": picture(4).filter(ImageFilter.GaussianBlur(6)),
    "grey": picture(5, grey=True),
    "tiny": picture(6, size=(16, 16)),
    "odd_shape": picture(7, size=(288, 64)),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_picture_that_is_odd_in_one_way_is_found_among_normal_ones(kind: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for number, file in enumerate(files):
        (ODD[kind] if number == 7 else picture(100 + number)).save(file)
    images = ImageSet([file.name for file in files], np.zeros(12, np.int64), files)
    memory = tmp_path / "memory.npy"
    first = described(images, memory)
    decoded: list[int] = []
    again = described(images, memory, lambda: decoded.append(1))
    assert not decoded  # remembered
    for facts in ([each for each in first if each is not None], [each for each in again if each is not None]):
        assert np.flatnonzero(CHECKS[kind].scores(facts) > 0.5).tolist() == [7]
        normal = [kind for kind, check in CHECKS.items() if (check.scores(facts[:7]) > 0.5).any()]
        assert normal == []


def test_grey_images_among_grey_images_are_normal(tmp_path: Path) -> None:
    facts = []
    for number in range(6):
        picture(number, grey=number < 3).save(tmp_path / "one.png")
        facts.append(describe_file(tmp_path / "one.png"))
    described_images = [each for each in facts if isinstance(each, ImageFacts)]
    assert not (CHECKS["grey"].scores(described_images) > 0.5).any()
