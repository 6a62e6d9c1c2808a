"""Several labels per image: tables of all kinds, splits that keep every label's share, batches."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import fill, load
from table_files import parquet, write

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.feature_batches import FeatureDataset, FeatureTable
from graft.data.label_splits import labelled_fold, labelled_fraction
from graft.data.labels import PADDING, multi_hot, strata_of, task_of
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import EpochSampler
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError

NAMES = ("cat", "dog", "tree")
ROWS = [
    (f"all/{number}.png", sets)
    for number, sets in enumerate([("cat",), ("cat", "tree"), (), ("dog",), ("tree", "dog")] * 8)
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", {"all": 40})


def read(file: Path, **arguments: Any) -> Splits:
    options = {key: arguments.pop(key) for key in ("fold", "folds", "shots", "val_fraction") if key in arguments}
    return load("table", None, arguments={"table": str(file), **arguments}, **options)


def labels_of(splits: Splits) -> dict[str, tuple[str, ...]]:
    """Image -> its labels, sorted."""
    images = splits.part("all")
    pairs = zip(images.names, images.labels, strict=True)
    return {name: tuple(sorted(splits.classes[i] for i in np.flatnonzero(row))) for name, row in pairs}


def test_separator_columns_and_lists_give_the_same_labels(photos: Path) -> None:
    expected = {name: tuple(sorted(labels)) for name, labels in ROWS}
    joined = write(photos / "joined.csv", [("file", "labels"), *((name, " ; ".join(each)) for name, each in ROWS)])
    flags = [(name, *(int(label in each) for label in NAMES)) for name, each in ROWS]
    one_hot = write(photos / "one_hot.csv", [("file", *NAMES), *flags])
    signs = write(
        photos / "signs.csv", [("file", *NAMES), *((name, *(2 * i - 1 for i in row)) for name, *row in flags)]
    )
    words = write(
        photos / "words.tsv",
        [("file", *NAMES), *((name, *(["no", "yes"][i] for i in row)) for name, *row in flags)],
        "\t",
    )
    lists = parquet(photos / "lists.parquet", [("file", "labels"), *((name, list(each)) for name, each in ROWS)])
    found = [read(joined, label_separator=";"), *map(read, (one_hot, signs, words, lists))]
    assert [labels_of(splits) for splits in found] == [expected] * 5
    assert [splits.fingerprint() for splits in found] == [found[0].fingerprint()] * 5
    assert {splits.task.name for splits in found} == {"multi-label"}
    assert "data.label_columns=[cat,dog,tree]" in found[1].notes[0]


def test_one_hot_columns_keep_their_order_and_their_number(photos: Path) -> None:
    rows = [(name, *(int(label in each) for label in NAMES), "north") for name, each in ROWS]
    file = write(photos / "l.csv", [("file", *NAMES, "where"), *rows])
    splits = read(file, label_columns=["tree", "cat"])
    assert splits.classes == ("tree", "cat")
    assert splits.train.labels.dtype == np.int8
    with pytest.raises(ConfigError, match=r"data.label_columns=tre: .* no such column. Did you mean tree\?"):
        read(file, label_columns=["tre"])
    with pytest.raises(
        ConfigError, match=r"none of the columns cat, dog, tree, where .*\n.*data.label_columns=\[A,B\]"
    ):
        read(file)
    with pytest.raises(ConfigError, match=r"label_column=cat and data.label_columns=\[dog,tree\] disagree"):
        read(file, label_column="cat", label_columns=["dog", "tree"])


def test_flags_that_are_no_yes_or_no_are_refused_and_empty_ones_counted(photos: Path) -> None:
    names = [name for name, _ in ROWS]
    cells = ["1", "0", "maybe", *["1", "0", ""] * 13][:40]
    other = [*reversed(cells[3:]), "0", "1", "0"]
    file = write(photos / "l.csv", [("file", "a", "b"), *zip(names, cells, other, strict=True)])
    with pytest.raises(DataError, match=r"column a has maybe \(line 4\); a label's column has 0 and 1"):
        read(file, label_columns=["a", "b"])
    cells[2] = "-1"
    file = write(photos / "l.csv", [("file", "a", "b"), *zip(names, cells, other, strict=True)])
    with pytest.raises(DataError, match=r"column a has -1 \(line 4\) next to 0 and 1, which may mean no or unknown"):
        read(file, label_columns=["a", "b"])
    cells[2] = "0"
    notes = read(write(photos / "l.csv", [("file", "a", "b"), *zip(names, cells, other, strict=True)])).notes
    assert any(note.endswith("empty cells of the label columns count as 0") for note in notes)


def test_a_list_that_is_read_as_one_label_is_pointed_out(photos: Path) -> None:
    rows = [(name, ";".join(each) or "cat") for name, each in ROWS]
    splits = read(write(photos / "l.csv", [("file", "label"), *rows]))
    assert splits.task.name == "single-label"
    assert any(
        "16 labels seem to be lists, e.g. cat;tree: with data.label_separator=';'" in note for note in splits.notes
    )


def drawn_labels(seed: int) -> np.ndarray:
    """Labels of 400 images: common, rare, very rare (3 images), of one image; a tenth has none."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((400, 6)) < [0.5, 0.3, 0.1, 0.05, 0, 0]).astype(np.int8)
    labels[draw.choice(400, 3, replace=False), 4] = 1
    labels[draw.integers(400), 5] = 1
    return labels


def test_every_label_keeps_its_share_and_a_single_image_is_trained_on() -> None:
    labels = drawn_labels(0)
    rest, drawn = labelled_fraction(labels, 0.2, 7, key="k", way_out="")
    assert sorted(rest + drawn) == list(range(400))
    assert abs(len(drawn) - 80) <= 8
    totals, chosen = labels.sum(0), labels[drawn].sum(0)
    assert (np.abs(chosen - 0.2 * totals) <= 1).all()
    assert chosen[5] == 0
    assert chosen[4] == 1
    empty = ~labels.any(axis=1)
    assert abs(empty[drawn].sum() - 0.2 * empty.sum()) <= 1
    assert labelled_fraction(labels, 0.2, 7, key="k", way_out="") == (rest, drawn)
    assert labelled_fraction(labels, 0.2, 8, key="k", way_out="") != (rest, drawn)
    with pytest.raises(DataError, match=r"data.x=0.1: 1 images are too few to draw from.\nAdd images."):
        labelled_fraction(labels[:1], 0.1, 0, key="data.x", way_out="Add images.")


def test_folds_cover_the_images_once_with_equal_shares_of_each_label() -> None:
    labels = drawn_labels(1)
    folds = [labelled_fold(labels, fold, 4, 0)[1] for fold in range(4)]
    assert sorted(itertools.chain(*folds)) == list(range(400))
    counts = np.array([labels[fold].sum(0) for fold in folds])
    assert (np.ptp(counts, axis=0) <= 2).all()
    with pytest.raises(DataError, match=r"data.folds=4: there are only 3 images"):
        [labelled_fold(labels[:3], fold, 4, 0) for fold in range(4)]


def test_a_group_is_never_divided_and_labels_still_keep_their_shares() -> None:
    labels = drawn_labels(2)
    groups = [f"g{number}" for number in np.random.default_rng(3).integers(0, 60, 400)]
    rest, drawn = labelled_fraction(labels, 0.25, 0, key="k", way_out="", groups=groups)
    assert not {groups[i] for i in rest} & {groups[i] for i in drawn}
    common = labels.sum(0) > 30
    assert (np.abs(labels[drawn].sum(0) / labels.sum(0) - 0.25)[common] < 0.06).all()


def test_a_table_is_split_by_groups_and_folds_and_shots_are_refused(photos: Path) -> None:
    rows = [(name, ";".join(each), f"p{number // 4}") for number, (name, each) in enumerate(ROWS)]
    file = write(photos / "l.csv", [("file", "labels", "patient"), *rows])
    group = {name: patient for name, _, patient in rows}
    for options in ({}, {"fold": 1, "folds": 3}):
        splits = read(file, label_separator=";", **options)
        owners = [{group[name] for name in part.names} for part in splits.parts().values()]
        assert not owners[0] & owners[1]
        assert not owners[0] & owners[2]
        assert all(part.labels.any() for part in splits.parts().values())
    with pytest.raises(ConfigError, match=r"data.shots=2: draws images of one class each"):
        read(file, label_separator=";", shots=2)


def test_labels_move_with_the_names_of_the_classes(photos: Path) -> None:
    file = write(photos / "l.csv", [("file", "labels"), *((name, ";".join(each)) for name, each in ROWS)])
    splits = read(file, label_separator=";")
    moved = splits.relabelled(("tree", "bird", "cat", "dog"))
    assert labels_of(moved) == labels_of(splits)
    assert moved.counts()["train"]["bird"] == 0
    single = load("folder", fill(photos.parent / "two", {"cat": 12, "dog": 12}))
    assert labels_of(single.of_task(splits.task))["cat/1.png"] == ("cat",)
    with pytest.raises(DataError, match="the images have several labels, and the network names one class"):
        splits.of_task(single.task)


@pytest.mark.parametrize("resident", [1.0, 0.0])
def test_batches_have_rows_of_labels_and_padding_has_none(photos: Path, resident: float) -> None:
    file = write(photos / "l.csv", [("file", "labels"), *((name, ";".join(each)) for name, each in ROWS)])
    splits = read(file, label_separator=";")
    data = ImageDataModule(splits, Preprocessing(8, 8), Augment(), batch_size=4, num_workers=0, resident_gb=resident)
    dataset = data.eval_loader("train").dataset
    order = [(0, index) for index in EpochSampler(len(dataset), seed=0, shuffle=False, world=3)._order(0)[-4:]]
    samples = dataset.__getitems__(order)
    from graft.data.datasets import Batch, collate

    batch = samples if isinstance(samples, Batch) else collate(samples)
    assert batch.labels.dtype == torch.int8
    expected = [splits.train.labels[i] if i != PADDING else np.full(3, PADDING) for _, i in order]
    assert batch.labels.tolist() == np.stack(expected).tolist()
    real = sum(i != PADDING for _, i in order)
    assert len(batch.real().labels) == real
    features = FeatureDataset(splits.train.labels, FeatureTable({}, None), None)
    assert len(features) == len(splits.train)


def test_images_are_ordered_and_sampled_by_their_rarest_label() -> None:
    labels = multi_hot([(0,), (0, 1), (), (1, 2), (0, 1)], 3)
    assert strata_of(labels).tolist() == [0, 0, 3, 2, 0]  # 0 and 1 have three images each
    assert task_of(labels).name == "multi-label"
