"""Figures have a bounded size, show any script and mark mistakes."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from graft.learning.predictions import Predictions
from graft.review import drawing, figures, grids

AWKWARD = ["개미 사진", "$x^2", "<script>alert(1)</script>", "a class " * 30, "naïve", "", r"\frac{1}{", "100 %"]


def matrix(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.diag(random.integers(5, 50, count)) + random.integers(0, 2, (count, count)) * (count < 100)


@pytest.mark.parametrize("count", [2, 8, 31, 61, 1000])
def test_figures_have_a_readable_size_for_any_number_of_classes(count: int) -> None:
    classes = (AWKWARD * 200)[:count]
    confusion = matrix(count)
    pictures = [
        figures.draw_confusion(confusion, classes, "Confusion matrix\nepoch 1"),
        figures.draw_accuracy(np.diag(confusion), confusion.sum(1), classes, "Accuracy per class\nepoch 1"),
    ]
    for picture in pictures:
        assert 150 < picture.width < 1500
        assert 90 < picture.height < 1300
        assert len(grids.encoded(picture, photograph=False)) < 250_000


def test_a_class_without_images_gets_no_accuracy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_accuracy(np.array([1, 0]), np.array([2, 0]), ["a", "b"], "x")


def test_the_most_frequent_confusions_are_named() -> None:
    confusion = np.array([[9, 3, 0], [0, 9, 0], [5, 0, 9]])
    assert figures.most_confused(confusion, ["cat", "dog", "fox"]) == ["5 × fox as cat", "3 × cat as dog"]


def test_a_title_has_the_prediction_and_marks_mistakes() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    right = grids.verdict(image, "ants", "ants", 0.974)
    wrong = grids.verdict(image, "ants", "bees", 0.6)
    assert (right.lines, right.colour) == (("✓ ants (ants) 97 %",), drawing.CORRECT)
    assert (wrong.lines, wrong.colour) == (("✗ ants (bees) 60 %",), drawing.WRONG)
    long = grids.verdict(image, "sunflowers of May", "dandelion", 0.6)
    assert long.lines == ("✗ sunflowers of May", "(dandelion) 60 %")
    assert all(len(line) <= grids.LETTERS for line in grids.verdict(image, "a" * 90, "b" * 90, 1.0).lines)


@pytest.mark.parametrize("size", [8, 32, 33, 64, 65, 224, 299])
def test_a_grid_shows_every_image_at_a_readable_size(size: int) -> None:
    red = np.full((size, size, 3), (255, 0, 0), np.uint8)
    tiles = [grids.verdict(red, name, AWKWARD[0], 0.5) for name in AWKWARD]
    picture = np.asarray(grids.grid(tiles, "Heading\nwith a second line"))
    shown = (picture == (255, 0, 0)).all(axis=2)
    side = grids.fitted(red).shape[0]
    assert 99 < side < 160
    assert shown.sum() == len(tiles) * (side - 6) ** 2, "all tiles whole, but for their frames"


def test_a_run_without_mistakes_is_reported() -> None:
    assert grids.grid([], "No mistakes\nepoch 3").size[0] > 50


def test_photographs_are_compressed_and_pixel_images_are_exact() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8).astype(np.uint8))
    exact = Image.open(io.BytesIO(grids.encoded(noise, photograph=False)))
    assert np.array_equal(np.asarray(exact), np.asarray(noise))
    assert Image.open(io.BytesIO(grids.encoded(noise, photograph=True))).format == "JPEG"


def test_a_script_that_the_base_font_lacks_is_drawn_with_one_that_has_it() -> None:
    from matplotlib import font_manager

    files = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    if not any(ord("개") in drawing.characters_of(file) for file in files.values()):
        pytest.skip("no font with Korean on this machine (Debian: fonts-nanum)")
    assert drawing.fonts_for(frozenset("ants ✓✗ é")) == (), "the base font has these"
    (font,) = drawing.fonts_for(frozenset("개미"))
    assert {ord("개"), ord("미")} <= drawing.characters_of(files[font])


def test_a_character_without_a_font_neither_warns_nor_fails() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grids.grid([grids.Tile(np.zeros((32, 32, 3), np.uint8), ("\U000f1234",))], "x")


def test_the_heat_map_is_drawn_next_to_the_image() -> None:
    image, heat = np.full((10, 10, 3), 100, np.uint8), np.zeros((10, 10))
    heat[:5] = 1
    both = grids.overlaid(image, heat)
    assert both.shape == (10, 20, 3)
    assert np.array_equal(both[:, :10], image)
    assert both[2, 15].sum() > both[8, 15].sum()


def test_calibration_is_drawn_where_bins_are_empty() -> None:
    count = 3
    sure = np.array([0.95, 0.97, 0.4])
    predictions = Predictions(
        0, 0, np.arange(count), np.zeros(count, int), np.zeros(count, int), sure, sure, np.zeros((count, 0)),
        np.zeros((0, 1)), np.zeros(0, int),
    )  # fmt: skip
    assert figures.draw_calibration(predictions.calibration(), "Calibration\nepoch 1").width < 900
