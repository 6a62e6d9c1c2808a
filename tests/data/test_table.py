"""data=table: labels in CSV, TSV and Parquet; what is wrong in a table is counted and named, groups stay together."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import fill, load, sizes, state
from PIL import Image
from table_files import Rows, parquet, write

from graft.config.overrides import quote_literals
from graft.data.images import ImageSet
from graft.data.loading import load_splits, undivided
from graft.data.scan import exclude_unreadable
from graft.data.splits import Splits, grouped_fraction
from graft.data.stream import find_images
from graft.errors import ConfigError, DataError


def read(file: Path, root: Path | None = None, **arguments: Any) -> Splits:
    """The splits of a table without validation images of their own."""
    options = {
        key: arguments.pop(key) for key in ("fold", "folds", "shots", "seed", "val_fraction") if key in arguments
    }
    return load("table", root, arguments={"table": str(file), **arguments}, **options)


def labels_of(splits: Splits) -> dict[str, str]:
    """Image -> class of all splits."""
    images = splits.part("all")
    return {name: splits.classes[label] for name, label in zip(images.names, images.labels.tolist(), strict=True)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 cats and 20 dogs."""
    return fill(tmp_path / "photos", {"cat": 20, "dog": 20})


def listing(root: Path) -> list[tuple[str, str]]:
    return [(file.relative_to(root).as_posix(), file.parent.name) for file in sorted(root.rglob("*.png"))]


def test_a_table_of_a_folder_gives_the_splits_of_the_folder_in_any_order_of_rows(photos: Path) -> None:
    rows = listing(photos)
    before = state(photos)
    table = write(photos.parent / "labels.csv", [("file", "label"), *sorted(rows, key=lambda row: row[0][::-1])])
    for options in ({}, {"shots": 3}, {"fold": 1, "folds": 4}):
        expected, splits = load("folder", photos, **options), read(table, photos, **options)
        assert {name: list(part.names) for name, part in splits.parts().items()} == {
            name: list(part.names) for name, part in expected.parts().items()
        }
        assert splits.fingerprint() == expected.fingerprint()
        assert splits.source == expected.source
    assert state(photos) == before


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("l.csv", write),
        ("l.csv", lambda file, rows: write(file, rows, ";")),
        ("l.txt", lambda file, rows: write(file, rows, "|")),
        ("l.tsv", lambda file, rows: write(file, rows, "\t")),
        ("l.csv", lambda file, rows: write(file, rows, encoding="utf-8-sig")),
        ("l.csv", lambda file, rows: write(file, rows, "\t", encoding="utf-16")),
        ("L.PARQUET", parquet),
    ],
)
def test_every_format_delimiter_and_byte_order_mark_gives_the_same_labels(
    photos: Path, name: str, make: Callable[[Path, Rows], Path]
) -> None:
    rows = [(file, "Katze, groß" if label == "cat" else label) for file, label in listing(photos)]
    splits = read(make(photos / name, [("Image Path", "Species"), *rows]))
    assert labels_of(splits) == dict(rows)
    assert "data.image_column=Image Path, data.label_column=Species" in splits.notes[0]
    assert splits.root == photos
    assert splits.unused == (), "the table itself is not a stray file"


@pytest.mark.parametrize("labels", [("01", "1", "10", "9"), ("True", "False", "NA", "null")])
def test_a_label_stays_the_text_of_the_file(tmp_path: Path, labels: tuple[str, ...]) -> None:
    fill(tmp_path, {"i": 16})
    file = write(tmp_path / "l.csv", [("file", "label"), *((f"i/{n}.png", labels[n % 4]) for n in range(16))])
    splits = read(file)
    assert set(splits.classes) == set(labels)
    assert labels_of(splits)["i/1.png"] == labels[1]


def test_integer_classes_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    fill(tmp_path, {"i": 44})
    rows = [(f"i/{n}.png", n % 11) for n in range(44)]
    for file in (
        write(tmp_path / "l.csv", [("id", "y"), *rows]),
        parquet(tmp_path / "l.parquet", [("id", "y"), *rows]),
    ):
        assert read(file).classes == tuple(map(str, range(11)))


def test_paths_are_found_as_people_write_them(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (photos / "e\u0301te\u0301").mkdir()  # decomposed, as macOS stores it
    (photos / "cat" / "0.png").rename(photos / "e\u0301te\u0301" / "u\u0308.png")
    written = {
        "1.png": "../photos/cat/1.png",
        "2.png": "..\\photos\\cat\\2.png",
        "3.png": f"{photos}/cat/3.png",
        "4.png": "./../photos//cat/4.png",
        "5.png": "../photos/cat/5",
        "ü": "../photos/été/ü",
    }
    rows = [(path, "cat") for path in written.values()] + [(f"../photos/dog/{n}.png", "dog") for n in range(9)]
    splits = read(write(tmp_path / "labels" / "l.csv", [("path", "label"), *rows]))
    assert len(splits.part("all")) == 15
    assert all(path.is_file() for path in splits.part("all").paths or ())


def test_ids_without_an_ending_are_files_below_data_root(photos: Path, tmp_path: Path) -> None:
    rows = [(f"cat\\{n}", "cat") for n in range(20)] + [(f"dog/{n}", "dog") for n in range(20)]
    file = write(tmp_path / "train.csv", [("id", "breed"), *rows])
    assert sum(sizes(read(file, photos))) == 40
    with pytest.raises(DataError, match=rf"40 without a file.*\n.* It is in {photos}: set data.root={photos}"):
        read(file)
    (photos / "cat" / "0.jpg").write_bytes((photos / "cat" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"cat/0: 0\.(jpg|png), 0\.(jpg|png) may be meant"):
        read(file, photos)


def test_what_a_table_does_not_use_is_counted_and_named(photos: Path) -> None:
    rows = [*listing(photos)[1:], ("cat/gone.png", "cat"), ("", "dog"), ("dog/3.png", "dog"), ("dog/4.png", " ")]
    rows += [("dog/5.png", "cat")]
    splits = read(write(photos / "l.csv", [("file", "label"), *rows]))
    reasons = defaultdict(list)
    for name, reason in splits.unused:
        reasons[reason].append(name)
    assert reasons == {
        "not part of the data set": ["cat/0.png", "dog/5.png"],
        "without a file": ["cat/gone.png (line 41)"],
        "without an image": ["line 42"],
        "repeating another row": ["dog/3.png (line 43)"],
        "without a label": ["dog/4.png (line 44)"],
        "rows that contradict each other": ["dog/5.png (line 36: dog; line 45: cat)"],
    }
    assert "1 row is not used (without a file): cat/gone.png (line 41)" in splits.notes
    assert len(splits.part("all")) == 38
    with pytest.raises(
        DataError, match=r"1 image cannot be read:\n  cat/gone.png \(line 41\)  \(missing: no such file\)"
    ):
        exclude_unreadable(splits, "raise")
    assert exclude_unreadable(splits, "skip") is splits


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("split", ("train", "valid", "Test"), (20, 10, 10)),
        ("Partition", ("TRAINING", "dev", "testing"), (20, 10, 10)),
        ("subset", ("train", "val", "train"), (30, 10, 10)),
        ("is_valid", ("False", "True", "0"), (30, 10, 10)),
        ("split", ("train", "val", ""), (20, 10, 10)),
    ],
)
def test_the_split_column_is_understood_as_people_spell_it(
    photos: Path, column: str, values: tuple[str, str, str], expected: tuple[int, int, int]
) -> None:
    splits_of = (values[0], values[1], values[0], values[2])
    rows = [(*row, splits_of[number % 4]) for number, row in enumerate(listing(photos))]
    splits = read(write(photos / "l.csv", [("file", "label", column), *rows]))
    assert sizes(splits) == expected
    assert f"data.split_column={column}" in splits.notes[0]
    assert ("without a split" in dict.fromkeys(reason for _, reason in splits.unused)) == ("" in values)


def test_an_unknown_split_is_named_unless_the_column_is_left_out(photos: Path) -> None:
    rows = [(*row, "train" if number % 4 else "unlabelled") for number, row in enumerate(listing(photos))]
    file = write(photos / "l.csv", [("file", "label", "split"), *rows])
    with pytest.raises(DataError, match=r"column split has unlabelled \(10 rows\)"):
        read(file, split_column="split")
    assert sum(sizes(read(file, split_column=False))) == 40


# ---- groups


def grouped_photos(root: Path, count: int = 12) -> tuple[Path, dict[str, str]]:
    """A table of `count` patients with 2 to 6 images each, most of them of both classes, and image -> patient."""
    draw = np.random.RandomState(0)
    rows = []
    for patient in range(count):
        fill(root, {f"p{patient}": int(draw.randint(2, 7))})
        files = sorted((root / f"p{patient}").iterdir())
        rows += [(f"p{patient}/{f.name}", ("ill", "well")[draw.randint(2)], f"patient {patient}") for f in files]
    return write(root / "l.csv", [("file", "label", "patient_id"), *rows]), {row[0]: row[2] for row in rows}


def groups_of(images: ImageSet, group_of: dict[str, str]) -> set[str]:
    return {group_of[name] for name in images.names}


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"val_fraction": 0.3}, {"shots": 4}, {"fold": 2, "folds": 4}])
def test_no_group_is_in_two_splits(tmp_path: Path, options: dict[str, Any]) -> None:
    file, group_of = grouped_photos(tmp_path / "set")
    parts = [groups_of(part, group_of) for part in read(file, **options).parts().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) <= 12
    assert any("groups, none in two splits" in note for note in read(file, **options).notes)


def test_groups_of_a_folder_come_from_a_pattern_and_every_image_validates_once(tmp_path: Path) -> None:
    rows = [(f"{label}/cam{n % 6}_{n}.png", label) for label in ("cat", "dog") for n in range(30)]
    for name, _ in rows:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    folds = [load("folder", tmp_path, group_pattern=r"/(cam\d)_", fold=fold, folds=3) for fold in range(3)]
    cameras = [[{name.split("/")[1][:4] for name in part.names} for part in fold.parts().values()] for fold in folds]
    assert all(not (train & val or train & test or val & test) for train, val, test in cameras)
    validated = [name for fold in folds for name in fold.val.names]
    assert len(validated) == len(set(validated)) == 60 - len(folds[0].test)
    assert {tuple(fold.test.names) for fold in folds} == {tuple(folds[0].test.names)}
    with pytest.raises(DataError, match=r"data.group_pattern=cam\(\\d\)\$: has no match in the names of 60 images"):
        load("folder", tmp_path, group_pattern=r"cam(\d)$")


@pytest.mark.parametrize(
    ("pattern", "message"), [("(cam", "is no regular expression"), ("cam", "has 0 groups"), ("(c)(a)", "has 2 groups")]
)
def test_a_pattern_without_exactly_one_group_is_refused(photos: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("folder", photos, group_pattern=pattern)


def test_a_published_split_that_divides_a_group_is_refused(photos: Path) -> None:
    rows = [
        (*row, "test" if number % 5 == 0 else "train", f"g{number // 8}") for number, row in enumerate(listing(photos))
    ]
    file = write(photos / "l.csv", [("file", "label", "split", "scene"), *rows])
    with pytest.raises(DataError, match="group g0 and 4 more groups: has images in train as well as in val and test"):
        read(file, val_fraction=0.0)
    assert sizes(read(file, val_fraction=0.0, group_column=False)) == (32, 8, 8)


def test_shots_of_an_embedded_set_leave_no_group_on_both_sides() -> None:
    splits = load_splits("digits", root=None, seed=0, shots=2, group_pattern=r"/\d\d(\d\d)")
    sides = [{name[-2:] for name in part.names} for part in (splits.train, splits.test)]
    assert not sides[0] & sides[1]
    assert len(splits.train) == 20


def test_drawn_groups_come_close_to_the_fraction_of_each_class_in_any_order() -> None:
    draw = np.random.RandomState(1)
    labels, groups = draw.randint(0, 3, 900), draw.randint(0, 150, 900).astype(str)
    rest, drawn = grouped_fraction(labels, list(groups), 0.2, 7, key="data.val_fraction")
    assert not set(groups[rest]) & set(groups[drawn])
    assert np.abs(np.bincount(labels[drawn]) / np.bincount(labels) - 0.2).max() < 0.03
    order = draw.permutation(900)
    _, again = grouped_fraction(labels[order], list(groups[order]), 0.2, 7, key="data.val_fraction")
    assert sorted(order[again]) == drawn
    _, other = grouped_fraction(labels, list(groups), 0.2, 8, key="data.val_fraction")
    assert other != drawn


def test_a_class_in_a_single_group_is_never_drawn_completely() -> None:
    labels, groups = [0] * 10 + [1] * 10, ["a"] * 5 + ["b"] * 5 + ["c"] * 10
    _, drawn = grouped_fraction(labels, groups, 0.5, 0, key="data.val_fraction")
    assert {groups[index] for index in drawn} in ({"a"}, {"b"})
    with pytest.raises(DataError, match=r"data.val_fraction=0.5: no group can be drawn .* \(1 groups\)"):
        grouped_fraction(labels, ["a"] * 20, 0.5, 0, key="data.val_fraction")


# ---- mistakes


def test_mistakes_name_the_file_the_line_and_the_way_out(photos: Path) -> None:
    good = listing(photos)
    several = [("file", "label"), *((name, f"{label};pet") for name, label in good)]
    cases: list[tuple[Rows, dict[str, Any], str]] = [
        (
            [("file", "label"), ("https://x.org/a.jpg", "cat")],
            {},
            r"line 2 has the URL https://x.org/a.jpg; only files",
        ),
        ([("file", "label"), ("cat/1.png", "cat", "more")], {}, r"line 2 has 3 cells, but there are 2 columns"),
        ([("file", "label"), ("cat/1.png", "cat")], {"label_column": "lable"}, r"no such column. Did you mean label"),
        ([("file", "path", "label"), ("a", "b", "c")], {}, r"columns file, path may each be the image.\nChoose with"),
        ([("file", "x", "z"), ("a", "b", "c")], {}, r"none of the columns x, z has a name .* for the label"),
        ([("cat/1.png", "cat"), ("cat/2.png", "cat")], {}, r"Without a header, add data.header=false"),
        ([("file", "label")], {}, r"none of its 0 rows can be used"),
        (several, {"label_separator": ";", "shots": 3}, r"data.shots=3: draws images of one class each"),
        ([("file", "label")], {"delimiter": "ab"}, r"must be a single character"),
        ([("file", "label")], {"encoding": "utf-0"}, r"there is no such encoding"),
        ([("file", "label"), *good], {"test_fraction": 2.0}, r"data.test_fraction=2"),
    ]
    for rows, arguments, message in cases:
        with pytest.raises((ConfigError, DataError), match=message):
            read(write(photos / "l.csv", rows), **arguments)
    assert read(write(photos / "l.csv", several)).classes == ("cat;pet", "dog;pet")
    assert read(write(photos / "l.csv", good), header=False, image_column="1", label_column="2").classes == (
        "cat",
        "dog",
    )


def test_another_encoding_is_named_with_its_line_and_read_when_it_is_given(photos: Path) -> None:
    rows = [("file", "label"), *((name, "Käfer" if label == "cat" else label) for name, label in listing(photos))]
    file = write(photos / "l.csv", rows, encoding="latin-1")
    with pytest.raises(DataError, match=r"line 2 is not utf-8 \(byte 0xe4\).\n.*data.encoding=latin-1"):
        read(file)
    assert read(file, encoding="latin-1").classes == ("Käfer", "dog")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "l.csv", "is empty"),
        (b'file,label\n"a.png,cat\n', "l.csv", "line 2 cannot be read"),
        (b"PAR1 not really", "l.parquet", "is not a Parquet file, or damaged"),
        (b"PK", "l.xlsx", r"must end in .csv, .*Save it as one of these"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=f"(?s){message}"):
        read(tmp_path / name)


def test_a_table_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", [("file", "label")])
    with pytest.raises(DataError, match=r"lables.csv: there is no such file. Did you mean labels.csv"):
        read(tmp_path / "lables.csv")
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path)


def test_a_table_that_cannot_be_divided_can_still_be_inspected(photos: Path) -> None:
    file = write(photos / "l.csv", [("file", "label"), *listing(photos)[19:], ("gone.png", "cat")])
    with pytest.raises(DataError, match=r'class "cat" has 1 image, but data.test_fraction=0\.2 needs at least 2'):
        read(file)
    classes, parts, notes, unused = undivided("table", None, 0, {"table": str(file)}) or pytest.fail("not read")
    assert (classes, {name: len(part) for name, part in parts.items()}) == (("cat", "dog"), {"train": 21})
    assert "columns recognised in l.csv" in notes[0]
    assert unused == (("gone.png (line 23)", "without a file"),)


def test_separators_and_columns_on_the_command_line_are_text() -> None:
    words = quote_literals(
        ["data=table", "data.label_separator=;", "data.label_column=a (b)", "data.delimiter= ", "data.image_column=1",
         "data.group_column=false", "data.split_column=null", "data.test_fraction=0.3"],
        "train",
    )  # fmt: skip
    assert words == [
        "data=table", "data.label_separator=';'", "data.label_column='a (b)'", "data.delimiter=' '",
        "data.image_column='1'", "data.group_column=false", "data.split_column=null", "data.test_fraction=0.3",
    ]  # fmt: skip


def test_a_table_is_a_source_of_predict(photos: Path) -> None:
    file = write(photos / "test.csv", [("id", "score"), ("dog/1", 0), ("cat\\2", 0), ("gone", 0)])
    found = list(find_images([str(file)]))
    assert [image.relative for image in found] == ["dog/1.png", "cat/2.png", "gone"]
    assert [image.path.is_file() for image in found] == [True, True, False]


def test_the_notes_and_counts_of_a_table_are_in_the_summary(photos: Path, tmp_path: Path) -> None:
    from commands import TINY, succeeded, train

    rows = [*listing(photos), ("gone.png", "cat")]
    file = write(tmp_path / "l.csv", [("file", "label"), *rows])
    words = [word for word in TINY if not word.startswith("data=")]
    data = ("data=table", f"data.table={file}", f"data.root={photos}", "data.on_error=skip")
    run = succeeded(train(tmp_path / "run", *words, *data, "trainer.max_epochs=1", "data.batch_size=4"))
    assert "note  1 row is not used (without a file): gone.png (line 42)" in run.out
    assert run.summary["data"]["unused"] == {"without a file": 1}
    assert json.dumps(run.summary["data"]["notes"]).count("gone.png") == 1
