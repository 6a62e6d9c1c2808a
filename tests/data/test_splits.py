"""Splits are exact, seeded, disjoint and the same on every machine."""

from pathlib import Path

import numpy as np
import pytest

from graft.data.images import ImageSet
from graft.data.splits import Splits, few_shot, stratified_fold, stratified_fraction, stratified_split
from graft.errors import DataError

LABELS = [0] * 10 + [1] * 20 + [2] * 5


def draw_fraction(labels: list[int], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    return stratified_fraction(labels, fraction, seed, key="data.val_fraction", way_out="Way out.", classes=("a", "b"))


def test_stratified_split_gives_exact_counts_and_covers_everything() -> None:
    train, test = stratified_split(LABELS, {0: 3, 1: 7}, seed=0)
    assert np.bincount(np.array(LABELS)[test], minlength=3).tolist() == [3, 7, 0]
    assert sorted(train + test) == list(range(35))
    assert (train, test) == (sorted(train), sorted(test))


def test_the_draw_is_pinned_across_machines_and_versions() -> None:
    """Written down once: a change here silently moves images between training and test."""
    assert stratified_split(LABELS, {0: 3, 1: 2}, seed=0)[1] == [3, 6, 7, 17, 25]


def test_other_seeds_draw_others_and_the_same_seed_the_same() -> None:
    draws = [stratified_split(LABELS, {1: 7}, seed)[1] for seed in (0, 1, 0, -1, 2**40)]
    assert draws[0] == draws[2]
    assert len({tuple(draw) for draw in draws}) == 4


def test_the_draw_of_a_class_does_not_depend_on_the_other_classes() -> None:
    alone = stratified_split(LABELS[:10], {0: 3}, seed=4)[1]
    assert alone == [i for i in stratified_split(LABELS, {0: 3, 1: 5}, seed=4)[1] if i < 10]


def test_requesting_a_whole_class_names_it_and_both_numbers() -> None:
    with pytest.raises(DataError, match='class "tulips" has 5 images, but 5 are requested'):
        stratified_split(LABELS, {2: 5}, seed=0, classes=("a", "b", "tulips"))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_a_fraction_takes_at_least_one_of_each_class_and_never_all(fraction: float) -> None:
    rest, drawn = draw_fraction([0] * 2 + [1] * 30, fraction)
    for side in (rest, drawn):
        assert {0, 1} == set(np.array([0] * 2 + [1] * 30)[side])


def test_a_fraction_of_a_single_image_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError) as raised:
        draw_fraction([0, 0, 1], 0.1)
    assert str(raised.value) == 'class "b" has 1 image, but data.val_fraction=0.1 needs at least 2.\nWay out.'


def test_shots_are_exact_and_nested() -> None:
    fewer, more = (set(few_shot(LABELS, shots, seed=3)[0]) for shots in (2, 5))
    assert fewer < more
    assert np.bincount(np.array(LABELS)[sorted(more)]).tolist() == [5, 5, 5]


def test_more_shots_than_images_names_the_class() -> None:
    with pytest.raises(DataError, match=r"class 2 has 5 images.*data\.shots=6 needs 6"):
        few_shot(LABELS, 6, seed=0)


def images_of(*names: str, labels: tuple[int, ...] = (), folder: Path | None = None) -> ImageSet:
    values = np.array(labels or [0] * len(names))
    if folder is not None:
        return ImageSet(names, values, paths=[folder / name for name in names])
    return ImageSet(names, values, pixels=np.zeros((len(names), 2, 2, 3), np.uint8))


def test_the_fingerprint_changes_with_splits_labels_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"12")
    a, b = images_of("a", folder=tmp_path), images_of("b", folder=tmp_path)
    whole = Splits(("x", "y"), a, b, b)
    prints = {
        whole.fingerprint(),
        Splits(("x", "z"), a, b, b).fingerprint(),
        Splits(("x", "y"), b, a, b).fingerprint(),
        Splits(("x", "y"), images_of("a", labels=(1,), folder=tmp_path), b, b).fingerprint(),
    }
    before = whole.fingerprint()
    (tmp_path / "a").write_bytes(b"123")
    assert len(prints | {whole.fingerprint()}) == 5
    (tmp_path / "a").write_bytes(b"21")
    assert whole.fingerprint() != before, "of the same size"
    (tmp_path / "a").write_bytes(b"12")
    assert whole.fingerprint() == before
    (tmp_path / "a").unlink()
    assert whole.fingerprint() not in prints


def test_the_fingerprint_of_pictures_in_memory_depends_on_their_pixels() -> None:
    dark, light = images_of("a"), images_of("a")
    assert light.pixels is not None
    light.pixels[0, 0, 0, 0] = 1
    assert Splits(("x",), dark, dark, dark).fingerprint() != Splits(("x",), light, dark, dark).fingerprint()


@pytest.mark.parametrize("folds", [2, 3, 5, 12])
def test_folds_are_even_in_every_class_and_overall(folds: int) -> None:
    parts = [stratified_fold(LABELS, fold, folds, seed=3) for fold in range(folds)]
    assert sorted(index for _, drawn in parts for index in drawn) == list(range(35))
    assert all(sorted(rest + drawn) == list(range(35)) for rest, drawn in parts)
    for count in np.array([np.bincount(np.array(LABELS)[drawn], minlength=3) for _, drawn in parts]).T:
        assert count.max() - count.min() <= 1
    sizes = [len(drawn) for _, drawn in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_fold_of_a_class_with_one_sample_is_refused() -> None:
    with pytest.raises(DataError, match=r'class "b" has 1 image, but data.folds=5'):
        stratified_fold([0, 0, 0, 1], 0, 5, seed=0, classes=("a", "b"))
