"""What holds of every division of every data set, held against data sets made up by hypothesis."""

import os
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graft.data.layout import SPLIT_NAMES
from graft.data.loading import load_splits
from graft.data.splits import Splits, few_shot, stratified_fold, stratified_fraction, stratified_split
from graft.errors import DataError

settings.register_profile("the same every time", derandomize=True, deadline=None)
settings.load_profile("the same every time")

SEEDS = st.integers(-(2**40), 2**40)

Draw = tuple[list[int], list[int]]


@st.composite
def labels(draw: st.DrawFn, least: int = 1) -> list[int]:
    """Labels of up to 8 classes with `least` to 40 images each, in any order; some classes may be missing."""
    counts = draw(st.dictionaries(st.integers(0, 9), st.integers(least, 40), min_size=1, max_size=8))
    rows = [label for label, count in counts.items() for _ in range(count)]
    return draw(st.permutations(rows))


def check_division(sides: Draw, total: int) -> None:
    """Both sides sorted, disjoint, and together everything."""
    assert [sorted(side) for side in sides] == list(sides)
    assert sorted(sides[0] + sides[1]) == list(range(total))


def counted(labels: list[int], side: list[int]) -> Counter[int]:
    return Counter(labels[index] for index in side)


@given(labels(), SEEDS, st.data())
def test_a_split_draws_exactly_the_requested_counts(labels: list[int], seed: int, data: st.DataObject) -> None:
    wanted = {
        label: data.draw(st.integers(0, count - 1)) for label, count in counted(labels, range(len(labels))).items()
    }  # type: ignore[arg-type]
    train, test = stratified_split(labels, wanted, seed)
    check_division((train, test), len(labels))
    assert counted(labels, test) == Counter({label: count for label, count in wanted.items() if count})
    assert (train, test) == stratified_split(labels, wanted, seed)


@given(labels(least=2), st.floats(0.001, 0.999), SEEDS)
def test_a_fraction_is_right_to_within_one_image_of_each_class(labels: list[int], fraction: float, seed: int) -> None:
    rest, drawn = stratified_fraction(labels, fraction, seed, key="k", way_out="w")
    check_division((rest, drawn), len(labels))
    for label, count in Counter(labels).items():
        got = counted(labels, drawn)[label]
        assert abs(got - count * fraction) <= 1
        assert 0 < got < count


@given(labels(least=2), st.integers(2, 12), SEEDS)
def test_folds_are_a_partition_even_to_within_one_image(labels: list[int], folds: int, seed: int) -> None:
    parts = [stratified_fold(labels, fold, folds, seed) for fold in range(folds)]
    for part in parts:
        check_division(part, len(labels))
    assert sorted(index for _, drawn in parts for index in drawn) == list(range(len(labels)))
    sizes = [len(drawn) for _, drawn in parts]
    assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        each = [counted(labels, drawn)[label] for _, drawn in parts]
        assert max(each) - min(each) <= 1


@given(labels(least=3), SEEDS)
def test_shots_are_exact_and_fewer_are_among_more(labels: list[int], seed: int) -> None:
    draws = [few_shot(labels, shots, seed) for shots in (1, 2, 3)]
    for shots, draw in enumerate(draws, 1):
        check_division(draw, len(labels))
        assert set(counted(labels, draw[0]).values()) == {shots}
    assert set(draws[0][0]) < set(draws[1][0]) < set(draws[2][0])


@given(labels(least=3), SEEDS, st.randoms(use_true_random=False))
def test_the_draw_of_a_class_does_not_depend_on_the_order_of_the_others(
    labels: list[int], seed: int, chance: random.Random
) -> None:
    """The k-th image of a class goes to the same side, however the classes are mixed."""

    def sides(labels: list[int]) -> dict[int, list[bool]]:
        drawn = set(stratified_fraction(labels, 0.3, seed, key="k", way_out="w")[1])
        return {label: [i in drawn for i in np.flatnonzero(np.array(labels) == label)] for label in set(labels)}

    mixed = list(labels)
    chance.shuffle(mixed)
    assert sides(mixed) == sides(labels)


# ---- folders

LETTERS = st.sampled_from([*"abAB01 .-_'\"[](),;&%$#", "é", "\u0301", "한", "글", "🐝", "ß", "İ"])
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(lambda name: name[0] != "." and name == name.strip())
RESERVED = {name for names in SPLIT_NAMES.values() for name in names}


@st.composite
def folders(draw: st.DrawFn) -> dict[str, list[str]]:
    """Class → file names; 2 to 4 classes of 4 to 12 files of any name, no two of them equal."""
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique_by=plain))
    assume(not RESERVED & {name.lower() for name in names})
    files = st.lists(NAMES, min_size=4, max_size=12, unique_by=plain)
    return {name: [f"{file}.png" for file in draw(files)] for name in names}


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@contextmanager
def any_order(chance: random.Random) -> Iterator[None]:
    """Inside, folders are listed in an order of their own each time, as file systems do."""
    scandir = os.scandir

    class Shuffled:
        def __init__(self, folder: Any) -> None:
            with scandir(folder) as entries:
                self.entries = list(entries)
            chance.shuffle(self.entries)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    with mock.patch.object(os, "scandir", Shuffled):
        yield


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "val_fraction": st.sampled_from([0, 0.1, 0.3]),
        "shots": st.integers(1, 2),
        "arguments": st.fixed_dictionaries({"test_fraction": st.sampled_from([0.1, 0.25, 0.5])}),
    },
) | st.fixed_dictionaries({"fold": st.integers(0, 1), "folds": st.just(2)})


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(folders(), OPTIONS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_folder_is_split_completely_evenly_and_independently_of_the_listing_order(
    classes: dict[str, list[str]], options: dict[str, Any], seed: int, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "set")
        for name, files in classes.items():
            (root / name).mkdir(parents=True)
            for file in files:
                (root / name / file).touch()
        refused = ""
        try:
            splits = load_splits("folder", root=root, seed=seed, **options)
        except DataError as error:
            refused = str(error)
        if refused:
            assert f"but data.shots={options['shots']} wants" in refused
            return
        with any_order(chance):
            again = load_splits("folder", root=root, seed=seed, **options)
        assert splits.fingerprint() == again.fingerprint()
        assert [part.paths for part in splits.parts().values()] == [part.paths for part in again.parts().values()]
        check_splits(splits, classes, options)
        with_other_seed = load_splits("folder", root=root, seed=seed + 1, **options)
        assert with_other_seed.test.names == splits.test.names or splits.test is splits.val


def check_splits(splits: Splits, classes: dict[str, list[str]], options: dict[str, Any]) -> None:
    """Disjoint, complete but for what data.shots leaves, and in each class as large as asked to within one image."""
    parts = {id(part): part for part in splits.parts().values()}
    names = [name for part in parts.values() for name in part.names]
    assert len(set(names)) == len(names)
    assert splits.classes == tuple(sorted(map(plain, classes)))
    everything = sorted(f"{plain(name)}/{plain(file)}" for name, files in classes.items() for file in files)
    assert set(names) <= set(everything)
    assert "shots" in options or sorted(names) == everything
    for part in parts.values():
        assert [splits.classes[label] for label in part.labels] == [name.split("/")[0] for name in part.names]
    test_fraction = options.get("arguments", {}).get("test_fraction", 0.2)
    for name, files in classes.items():
        tested = splits.counts()["test"][plain(name)]
        assert abs(tested - test_fraction * len(files)) <= 1
        if "shots" in options:
            assert splits.counts()["train"][plain(name)] == options["shots"]
        elif options.get("val_fraction", 0.1) and "folds" not in options:
            left = len(files) - tested
            assert abs(splits.counts()["val"][plain(name)] - options.get("val_fraction", 0.1) * left) <= 1
