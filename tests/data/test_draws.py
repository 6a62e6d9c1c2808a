"""Random parameters have torchvision's distributions, and depend on seed, epoch and image alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from graft.data.augment import Augment
from graft.data.draws import JITTER, Draws, uniforms

MANY = np.arange(6000)
SIZE = 32


def draws(seed: int = 0, **augment: Any) -> Draws:
    return Draws(Augment(**augment), seed, (SIZE, SIZE))


def splitmix(state: int, number: int) -> int:
    """Output `number`, from 1 on, of SplitMix64, in Python's whole numbers."""
    bits = (state + number * 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


def test_the_numbers_are_the_same_on_every_machine() -> None:
    assert splitmix(1234567, 1) == 6457827717110365317  # as published
    for key in (1, 2**63 - 1):
        expected = [[(splitmix(splitmix(key, index + 1), n) >> 11) / 2**53 for n in (1, 2, 3)] for index in (0, 7)]
        assert uniforms(key, np.array([0, 7]), 3).tolist() == expected


def test_the_numbers_are_uniform_and_unrelated() -> None:
    columns = np.concatenate([uniforms(key, MANY, 3) for key in (0, 1, 2**62)], axis=1)
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in columns.T])
    assert ((counts - 300) ** 2 / 300).sum(1).max() < 44  # chi-squared, 19 degrees of freedom, 0.1 %
    related = np.corrcoef(np.concatenate([columns[:-1], columns[1:]], axis=1).T) - np.eye(18)
    assert np.abs(related).max() < 0.055


EVERYTHING: dict[str, Any] = {
    "random_resized_crop": {},
    "random_crop_padding": 3,
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "policy": "trivial",
    "color_jitter": 0.4,
    "random_erasing": 0.5,
}


def of_everything(source: Draws, epoch: int, indices: np.ndarray) -> list[list[Any]]:
    """What each of `indices` gets, as plain values."""
    sides = 20 + indices % 50, 90 - indices % 60
    parts = [source.crops(epoch, indices, *sides), source.moves(epoch, indices), source.erased(epoch, indices)]
    steps = source.operations(epoch, indices)
    parts += [np.array([[*zip(step.names, step.magnitudes.tolist(), strict=True)] for step in steps]).swapaxes(0, 1)]
    return [[part[row].tolist() for part in parts] for row in range(len(indices))]


@pytest.mark.parametrize("policy", [None, "trivial", "rand", "auto"])
def test_the_draws_of_an_image_do_not_depend_on_its_batch(policy: str | None) -> None:
    source = draws(**EVERYTHING | {"policy": policy})
    indices = np.array([41, 3, 3, 0, 77, 12])
    together = of_everything(source, 5, indices)
    assert together == [of_everything(source, 5, indices[row : row + 1])[0] for row in range(len(indices))]
    assert together[1] == together[2] != together[3]
    assert together != of_everything(source, 6, indices)
    assert together != of_everything(draws(1, **EVERYTHING | {"policy": policy}), 5, indices)


def test_an_additional_operation_does_not_change_the_draws_of_the_others() -> None:
    alone, among = draws(horizontal_flip=0.5), draws(**EVERYTHING)
    assert (alone.moves(2, MANY)[:, 3] == among.moves(2, MANY)[:, 3]).all()


@pytest.mark.parametrize(
    ("side", "ranges"),
    [
        ((40, 60), {}),
        ((50, 50), {"scale": (0.5, 1.0)}),
        ((20, 90), {"scale": (0.7, 1.0)}),  # mostly the fallback
        ((90, 7), {"scale": (0.9, 1.0)}),
        ((1, 1), {}),
        ((3, 50), {"ratio": (1.0, 2.0)}),
    ],
)
def test_resized_crops_are_torchvision_s(side: tuple[int, int], ranges: dict[str, Any]) -> None:
    height, width = side
    full = np.full(len(MANY), height), np.full(len(MANY), width)
    ours = draws(random_resized_crop=ranges).crops(0, MANY, *full)
    torch.manual_seed(0)
    theirs, image = v2.RandomResizedCrop(SIZE, **ranges), torch.zeros(3, height, width)
    made = [theirs.make_params([image]) for _ in range(3000)]
    other = np.array([[each[key] for key in ("top", "left", "height", "width")] for each in made])
    for found in (ours, other):
        assert (found[:, :2] >= 0).all()
        assert (found[:, :2] + found[:, 2:] <= side).all()
        assert (found[:, 2:] > 0).all()
    _agree(*(np.stack([f[:, 2] * f[:, 3], *f.T, f[:, 2] == f[:, 3], f[:, 0] == 0], 1) for f in (ours, other)))


def _agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means and standard deviations of all columns agree, within four and a half standard errors."""
    for mine, other in ((ours, theirs), (ours.astype(float) ** 2, theirs.astype(float) ** 2)):
        error = np.sqrt(mine.var(0) / len(mine) + other.var(0) / len(other))
        assert (np.abs(mine.mean(0) - other.mean(0)) <= 4.5 * error + 1e-9).all(), (mine.mean(0), other.mean(0))


def test_padded_crops_and_flips_are_equally_likely() -> None:
    moves = draws(random_crop_padding=2, horizontal_flip=0.3, vertical_flip=0.1).moves(0, MANY)
    for axis in (0, 1):
        values, counts = np.unique(moves[:, axis], return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert np.abs(counts - 1200).max() < 140
    assert np.abs(moves[:, 2:].mean(0) - (0.1, 0.3)).max() < 0.025
    assert set(np.unique(moves[:, 2:])) == {0, 1}


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_colour_jitter_is_torchvision_s(strength: float) -> None:
    steps = draws(color_jitter=strength).operations(0, MANY)
    ours = np.zeros((len(MANY), 8))
    for position, step in enumerate(steps):
        kinds = np.array([JITTER.index(name) for name in step.names])
        ours[MANY, kinds] = step.magnitudes + (kinds < 3)
        ours[MANY, 4 + kinds] = position
    torch.manual_seed(0)
    jitter = v2.ColorJitter(strength, strength, strength, min(0.5, strength / 4))
    made = [jitter.make_params([]) for _ in range(3000)]
    keys = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    theirs = np.array([[*(each[key] for key in keys), *each["fn_idx"].argsort().tolist()] for each in made])
    assert (np.sort(ours[:, 4:], 1) == [0, 1, 2, 3]).all()
    assert np.abs(ours[:, :4].min(0) - theirs[:, :4].min(0)).max() < 0.01
    assert np.abs(ours[:, :4].max(0) - theirs[:, :4].max(0)).max() < 0.01
    _agree(ours, theirs)


@pytest.mark.parametrize(
    ("policy", "theirs"),
    [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment), ("auto", v2.AutoAugment)],
)
def test_policies_are_torchvision_s(policy: str, theirs: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As often each operation, as large and as often negative its magnitude."""
    transform, applied = theirs(), []

    def record(image: torch.Tensor, name: str, magnitude: float, **_: Any) -> torch.Tensor:
        applied.append((name, magnitude))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", record)
    torch.manual_seed(0)
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    theirs_count = 4000
    for _ in range(theirs_count):
        transform(image)
    ours = [
        pair
        for step in draws(policy=policy).operations(0, MANY)
        for pair in zip(step.names, step.magnitudes.tolist(), strict=True)
    ]
    names = {name for name, _ in applied} - {"Identity"}
    assert names == {name for name, _ in ours} - {"Identity"}
    for name in sorted(names):
        mine, other = (np.array([m for each, m in found if each == name]) for found in (ours, applied))
        share, expected = len(mine) / len(MANY), len(other) / theirs_count
        assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 / len(MANY) + 1 / theirs_count)), name
        assert np.abs(np.abs(mine).max() - np.abs(other).max()) < 1e-6, name
        assert set(np.sign(mine)) == set(np.sign(other)), name
        _agree(mine[:, None], other[:, None])
