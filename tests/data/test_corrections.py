"""data.corrections relabels and excludes images of any data set, and refuses rows that do not fit it."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import fill, load

from graft.data.corrections import read_corrections
from graft.data.splits import Splits
from graft.errors import ConfigError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", {"cat": 10, "dog": 10, "=owl": 6})


def corrections(tmp_path: Path, *rows: str, header: str = "path,given,action,label,kind") -> str:
    file = tmp_path / "corrections.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return str(file)


def labelled(splits: Splits) -> dict[str, dict[str, str]]:
    """Split -> name -> class."""
    return {
        part: {name: splits.classes[label] for name, label in zip(images.names, images.labels.tolist(), strict=True)}
        for part, images in splits.parts().items()
    }


def test_corrected_images_stay_in_their_split_with_the_new_class(photos: Path, tmp_path: Path) -> None:
    before = load("folder", photos)
    relabelled, excluded = before.train.names[0], before.train.names[-1]
    tested = before.test.names[0]
    given = labelled(before)
    rows = (
        f"{relabelled},{given['train'][relabelled]},relabel,dog,label",
        f"'{excluded}," + f"'{given['train'][excluded]},exclude,,outlier",  # as a spreadsheet's escape
        f"{tested},,exclude,,",
        f"{before.val.names[0]},{given['val'][before.val.names[0]]},keep,,label",
    )
    file = corrections(tmp_path, *rows)
    after = load("folder", photos, corrections=file)
    expected = {part: dict(names) for part, names in given.items()}
    expected["train"][relabelled] = "dog"
    del expected["train"][excluded], expected["test"][tested]
    assert labelled(after) == expected
    assert after.corrections is not None
    assert after.corrections.plain() == {
        "file": file, "sha256": read_corrections(file).digest, "kept": 1, "unused": 0,
        "relabelled": {"train": 1, "val": 0, "test": 0}, "excluded": {"train": 1, "val": 0, "test": 1},
    }  # fmt: skip
    assert dict(after.dropped).keys() == {excluded, tested}
    assert any("test images are corrected" in note for note in after.notes)
    assert len({after.fingerprint(), before.fingerprint()}) == 2
    assert after.source != before.source


def test_the_order_of_the_rows_does_not_matter_and_repeated_rows_are_counted(photos: Path, tmp_path: Path) -> None:
    rows = ("cat/0.png,cat,relabel,dog", "dog/1.png,dog,exclude,", "cat/0.png,,,dog")
    first = load("folder", photos, corrections=corrections(tmp_path, *rows, header="path,given,action,label"))
    second = load(
        "folder", photos, corrections=corrections(tmp_path, *reversed(rows), header="path,given,action,label")
    )
    assert (first.fingerprint(), first.source) == (second.fingerprint(), second.source)
    assert any("1 rows repeat others" in note for note in first.notes)


def test_folds_and_embedded_sets_and_tables_are_corrected(photos: Path, tmp_path: Path) -> None:
    digits = load("digits", None)
    name = digits.train.names[5]
    splits = load("digits", None, fold=1, folds=3, corrections=corrections(tmp_path, f"{name},,relabel,7,"))
    assert {names[name] for names in labelled(splits).values() if name in names} == {"7"}
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"cat/{n}.png,{'a' if n % 2 else 'b'}\n" for n in range(10)))
    splits = load(
        "table", photos, arguments={"table": str(table)}, corrections=corrections(tmp_path, "cat/0.png,b,relabel,a,")
    )
    assert {names["cat/0.png"] for names in labelled(splits).values() if "cat/0.png" in names} == {"a"}


def test_images_that_shots_leave_out_are_counted(photos: Path, tmp_path: Path) -> None:
    used = load("folder", photos, shots=2, arguments={"test_fraction": 0.2})
    everything = {name for part in load("folder", photos).parts().values() for name in part.names}
    unused = sorted(everything - set(used.part("all").names))
    if not unused:  # with shots the rest of a set without splits is tested on
        fill(tmp_path / "split", {f"{part}/{name}": 4 for part in ("train", "val", "test") for name in ("cat", "dog")})
        photos = tmp_path / "split"
        used = load("folder", photos, shots=2)
        unused = sorted(set(load("folder", photos).train.names) - set(used.train.names))
    splits = load("folder", photos, shots=2, corrections=corrections(tmp_path, f"{unused[0]},,exclude,,"))
    assert splits.corrections is not None
    assert splits.corrections.unused == 1
    assert any("in no split (data.shots)" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cat/0.png,dog,relabel,cat,"], "line 2: cat/0.png is of class cat in the data set, but given=dog"),
        (["cat/0.png,dog,keep,,"], "line 2: cat/0.png is of class cat in the data set, but given=dog"),
        (["cat/99.png,cat,relabel,dog,"], "line 2: the data set has no image cat/99.png"),
        (["cat/0.png,cat,relabel,dogs,"], "label=dogs: the data set has no such class. Did you mean dog?"),
        (["cat/0.png,cat,relabel,dog,", "cat/0.png,cat,exclude,,"], "lines 2 and 3 contradict each other: cat/0.png"),
        (["cat/0.png,cat,relable,dog,"], "action=relable: unknown. Did you mean relabel?"),
        (["cat/0.png,cat,relabel,,"], "cat/0.png: label is empty"),
        ([",cat,relabel,dog,"], "line 2: names no image"),
        ([f"dog/{n}.png,dog,exclude,," for n in range(10)], 'no training image of class "dog" is left'),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_line(photos: Path, tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.corrections=") as raised:
        load("folder", photos, corrections=corrections(tmp_path, *rows))
    assert message in str(raised.value)


def test_files_that_are_no_corrections_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_corrections(str(tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match="has no column path"):
        read_corrections(corrections(tmp_path, "a,b", header="file,label"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_corrections(str(tmp_path))


def test_several_labels_per_image_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    table.write_text("file,label\n" + "".join(f"cat/{n}.png,{'a;b' if n % 2 else 'b'}\n" for n in range(10)))
    with pytest.raises(ConfigError, match="the images have several labels"):
        load(
            "table", photos, arguments={"table": str(table), "label_separator": ";"},
            corrections=corrections(tmp_path, "cat/0.png,,exclude,,"),
        )  # fmt: skip


def test_pixels_in_memory_are_excluded_with_their_labels(tmp_path: Path) -> None:
    before = load("digits", None)
    name = before.val.names[3]
    after = load("digits", None, corrections=corrections(tmp_path, f"{name},,exclude,,"))
    kept = np.delete(np.arange(len(before.val)), 3)
    assert np.array_equal(after.val.pixels, before.val.pixels[kept])  # type: ignore[index]
    assert after.val.labels.tolist() == before.val.labels[kept].tolist()
