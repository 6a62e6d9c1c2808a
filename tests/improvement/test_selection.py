"""What to label next: uncertain images that are unlike the labelled ones and one another."""

import numpy as np

from graft.improvement.selection import Choice, as_choices, select, uncertainties


def unit(*angles: float) -> np.ndarray:
    """Directions in the plane, by degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_uncertain_images_come_first_and_no_two_alike() -> None:
    uncertainty = uncertainties(np.array([[0.5, 0.5], [0.52, 0.48], [0.9, 0.1], [0.6, 0.4]]))
    assert uncertainty.round(2).tolist() == [1, 0.96, 0.2, 0.8]
    chosen = select(unit(90, 91, 180, 270), unit(0), uncertainty, 3)
    assert chosen.indices == [0, 3, 2]  # 91 degrees is a copy of the first


def test_an_image_like_a_labelled_one_is_worth_least() -> None:
    assert select(unit(1, 60), unit(0), np.array([1.0, 0.3]), 2).indices == [1, 0]
    assert select(unit(1, 60), np.zeros((0, 2), np.float32), np.array([1.0, 0.3]), 9).indices == [0, 1]


def test_names_are_no_formulas_for_a_spreadsheet() -> None:
    text = as_choices([Choice("=1+1.jpg", "/x/=1+1.jpg", "cat", 0.5, 1.0)])
    assert text == "path,predicted,probability,uncertainty\n'=1+1.jpg,cat,0.5000,1.0000\n"
