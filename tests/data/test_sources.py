"""Data sources give the published splits, refuse common mistakes and write nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_folders import BLACK, fill, load, sizes, state

from graft.data.layout import image_files
from graft.data.loading import load_splits, locate
from graft.data.sources import checked_name, known_sources, source_arguments, source_name, suggest_data
from graft.errors import ConfigError, DataError

# ---- the real sets


def test_flowers_gives_the_published_counts_and_a_fixed_test_set(shared_data: Path) -> None:
    root = shared_data / "flower_photos"
    before = state(root)
    splits, other_seed = load("flowers", root), load("flowers", root, seed=7)
    assert list(splits.counts()["test"].values()) == [92, 132, 91, 101, 124]
    assert splits.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert len(splits.train) + len(splits.val) == 3130
    assert set(splits.test.names) == set(other_seed.test.names)
    assert set(splits.val.names) != set(other_seed.val.names)
    names = [*splits.train.names, *splits.val.names, *splits.test.names]
    assert len(set(names)) == len(names) == 3670
    assert state(root) == before


def test_hymenoptera_gives_the_published_counts_and_notes_its_test_split(shared_data: Path) -> None:
    splits = load("hymenoptera", shared_data / "hymenoptera_data")
    assert sizes(splits) == (244, 153, 153)
    assert splits.test is splits.val
    assert "serve as test" in " ".join(splits.notes)
    assert not any(name.endswith(".gif") for name in splits.train.names)


def test_mask_divides_persons_by_id_and_labels_by_file_name(shared_data: Path) -> None:
    root = shared_data / "mask"
    before = state(root)
    splits = load("mask", root)
    assert sizes(splits) == (959, 322, 322)
    assert splits.classes == ("normal", "mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask")
    assert set(splits.counts()["val"].values()) == {46}
    assert any("-1_" in name for name in splits.train.names)
    for name, label in zip(splits.train.names, splits.train.labels, strict=True):
        assert Path(name).stem == splits.classes[label]
    assert state(root) == before


# ---- anybody's folder


def test_class_folders_are_split_by_fractions_independently_of_the_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", {"cats": 20, "dogs": 10})
    splits = load("folder", root, val_fraction=0.25)
    assert splits.counts() == {
        "train": {"cats": 12, "dogs": 6},
        "val": {"cats": 4, "dogs": 2},
        "test": {"cats": 4, "dogs": 2},
    }
    assert set(load("folder", root, seed=9).test.names) == set(splits.test.names)


def test_the_split_does_not_depend_on_the_file_system_s_order(tmp_path: Path) -> None:
    names = [f"{letter}{i}.png" for i in range(8) for letter in "aBäZ"]
    for folder, order in (("one", names), ("two", sorted(names)[::-1])):
        for class_folder in ("Zebra", "ape")[:: -1 if folder == "two" else 1]:
            (tmp_path / folder / class_folder).mkdir(parents=True)
            for name in order:
                (tmp_path / folder / class_folder / name).write_bytes(BLACK.getvalue())
    one, two = (load("folder", tmp_path / folder) for folder in ("one", "two"))
    assert one.classes == two.classes == ("Zebra", "ape")
    assert one.fingerprint() == two.fingerprint()


def test_class_names_are_unicode_normalised(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301x"):
        fill(tmp_path, {name: 1})
    assert [name for name, _ in image_files(tmp_path)][:2] == ["caf\u00e9/0.png", "caf\u00e9x/0.png"]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = fill(tmp_path / "set", {"a": 4, "b": 4}), os.scandir

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"data\.root=.*set: .*/b cannot be read \(Permission denied\)"):
        load("folder", root)


def test_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ("a", "a b", "a-b", "a.b", "aB", "b", "B")
    assert load("folder", fill(tmp_path, dict.fromkeys(names, 4))).classes == tuple(sorted(names))


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "accents", {"caf\u00e9": 4, "cafe\u0301": 4, "bar": 4})
    with pytest.raises(DataError, match="two folders named caf\u00e9"):
        load("folder", tmp_path / "accents")
    for one, other in (("train", "Train"), ("val", "validation")):
        root = fill(tmp_path / one, {f"{part}/{name}": 4 for part in {"train", one, other} for name in "ab"})
        with pytest.raises(DataError, match=f"are both {one} folders"):
            load("folder", root)


def test_names_that_are_not_unicode_are_escaped(tmp_path: Path) -> None:
    """An archive made on a Korean Windows, unpacked on Linux: bytes of CP949."""
    root = fill(tmp_path / "set", {"bees": 6, "ants": 6})
    raw = os.fsencode(root / "ants") + b"/\xb0\xb3\xb9\xcc.png"
    with open(raw, "wb") as file:
        file.write(BLACK.getvalue())
    os.rename(root / "bees", os.fsencode(root) + b"/\xb9\xfa")
    splits = load("folder", root)
    assert splits.classes == ("\\xb9\\xfa", "ants")
    names = [name for part in splits.parts().values() for name in part.names]
    assert "ants/\\xb0\\xb3\\xb9\\xcc.png" in names
    assert all(part.load(index).size == (4, 4) for part in splits.parts().values() for index in range(len(part)))
    json.dumps(names, ensure_ascii=False).encode()
    assert len(splits.fingerprint()) == 64


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"train": 10, "val": 4, "test": 6}, (20, 8, 12)),
        ({"train": 10, "val": 4}, (20, 8, 8)),
        ({"train": 10, "test": 6}, (18, 2, 12)),
        ({"train": 10}, (14, 2, 4)),
        ({"Training": 10, "Validation": 4, "Testing": 6}, (20, 8, 12)),
    ],
)
def test_split_folders_are_used_as_they_are(
    tmp_path: Path, folders: dict[str, int], expected: tuple[int, int, int]
) -> None:
    counts = {f"{split}/{name}": count for split, count in folders.items() for name in ("a", "b")}
    assert sizes(load("folder", fill(tmp_path / "set", counts))) == expected


def test_no_validation_fraction_validates_on_the_test_split_with_a_note(tmp_path: Path) -> None:
    splits = load("folder", fill(tmp_path / "set", {"a": 10, "b": 10}), val_fraction=0)
    assert splits.val is splits.test
    assert "data.val_fraction=0" in splits.notes[0]


def test_shots_do_not_change_validation_and_test(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 30, "b": 20})
    whole, few = load("folder", root), load("folder", root, shots=3)
    assert few.counts()["train"] == {"a": 3, "b": 3}
    assert few.val.names == whole.val.names
    assert few.test.names == whole.test.names
    assert set(few.train.names) < set(whole.train.names)


def test_folds_do_not_change_the_test_split_and_validate_every_other_image_once() -> None:
    whole = load_splits("digits", root=None, seed=0)
    parts = [load_splits("digits", root=None, seed=0, fold=fold, folds=4) for fold in range(4)]
    assert all(part.test.names == whole.test.names for part in parts)
    validated = [name for part in parts for name in part.val.names]
    assert sorted(validated) == sorted([*whole.train.names, *whole.val.names])
    assert all(not set(part.train.names) & {*part.val.names, *part.test.names} for part in parts)
    assert "validation is fold 2 of 4 (data.fold, data.folds)" in parts[2].notes


def test_a_fold_keeps_a_person_on_one_side(shared_data: Path) -> None:
    parts = [load_splits("mask", root=shared_data / "mask", seed=0, fold=fold, folds=5) for fold in range(5)]
    person = re.compile(r"\d+")
    for part in parts:
        sides = [{int(person.match(name)[0]) for name in images.names} for images in (part.train, part.val)]  # type: ignore[index]
        assert not sides[0] & sides[1]
        assert part.test is part.val
    assert sum(len(part.val) for part in parts) == len(parts[0].train) + len(parts[0].val)


@pytest.mark.parametrize(
    ("fold", "folds", "message"),
    [
        (0, None, r"data.fold=0 and data.folds=null disagree"),
        (None, 5, r"data.fold=null and data.folds=5 disagree"),
        (5, 5, r"data.fold=5: with data.folds=5 there are folds 0 to 4"),
        (0, 1, r"data.folds=1: must be at least 2"),
    ],
)
def test_an_invalid_fold_is_refused(fold: int | None, folds: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_splits("digits", root=None, seed=0, fold=fold, folds=folds)


def test_hidden_files_are_ignored_and_nested_and_linked_ones_found(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 3, "a/deeper": 2, "b": 3})
    (root / "a" / "._0.jpg").write_bytes(b"junk of macOS")
    (root / "a" / "notes.txt").write_text("none")
    fill(root, {"__MACOSX": 1, ".thumbnails": 1})
    (root / "b" / "elsewhere").symlink_to(fill(tmp_path / "more", {"x": 2}))
    (root / "b" / "loop").symlink_to(root / "b")
    splits = load("folder", root)
    assert splits.classes == ("a", "b")
    assert sum(sizes(splits)) == 10


# ---- mistakes


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"a": 5}, 'there is only one class ("a")'),
        ({"a": 5, "b": 0}, "b: no images in this class folder"),
        ({"a": 5, "b": 1}, 'class "b" has 1 image, but data.test_fraction=0.2 needs at least 2'),
        ({"a": 5, "b": 2}, 'class "b" has 1 image, but data.val_fraction=0.1 needs at least 2'),
        ({"val/a": 5, "val/b": 5}, "has a val folder but no train"),
        ({"train/a": 5, "train/b": 5, "val/c": 2}, 'class "c" is not among the training classes (a, b)'),
        ({"train/a": 5, "val/a": 5}, 'there is only one class ("a")'),
        ({"train/a": 5, "train/b": 5, "val": 3}, "val: 3 images but no class folders"),
        ({".": 4}, "4 images but no class folders"),
    ],
)
def test_an_unusable_folder_is_refused_with_the_reason(tmp_path: Path, folders: dict[str, int], message: str) -> None:
    root = tmp_path / "photos"
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(BLACK.getvalue())
    with pytest.raises(DataError) as raised:
        load("folder", root)
    assert message in str(raised.value)
    assert "photos" in str(raised.value)
    assert "\n" in str(raised.value), "the way out has its own line"


def test_the_message_of_the_style_guide(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/roses": 5, "train/tulips": 1, "test/roses": 1})
    with pytest.raises(DataError) as raised:
        load("folder", root)
    assert str(raised.value) == (
        f'data.root={root}: class "tulips" has 1 image, but data.val_fraction=0.1 needs at least 2.\n'
        "Add images, or set data.val_fraction=0 to validate on the test split."
    )


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_a_missing_folder_names_the_key(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "nowhere")
    for name in ("folder", "mask"):
        with pytest.raises(DataError, match=r"data\.root=.*nowhere: .*cannot be downloaded"):
            load(name, tmp_path / "nowhere")
        assert isinstance(locate(name, tmp_path / "nowhere"), DataError)


def test_the_error_of_mask_describes_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ID_SEX_RACE_AGE"):
        load("mask", tmp_path / "mask")
    with pytest.raises(DataError, match=r"no person folders.\nExpected: folders ID_SEX_RACE_AGE"):
        load("mask", fill(tmp_path / "other", {"a": 1}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "flwers"}, "no such data set. Did you mean flowers"),
        ({"name": "no.such.module"}, "no.such cannot be imported"),
        ({"name": "json"}, "no such data set"),
        ({"name": "json.decoder"}, "is a module; name a function in it, e.g. data._target_=json.decoder.load"),
        ({"name": "folder", "root": None}, "data.root is not set"),
        (
            {"arguments": {"tset_fraction": 0.1}},
            "data.tset_fraction=0.1: graft.data.sources.folder.load has no such argument. Did you mean test_fraction?",
        ),
        ({"arguments": {"test_fraction": "many"}}, "data.test_fraction=many: must be float"),
        ({"arguments": {"options": {"test_fraction": 0.1}}}, "data.options.test_fraction=0.1: the key is data.test_fr"),
        ({"arguments": {"test_fraction": 1.5}}, "data.test_fraction=1.5"),
        ({"shots": 0}, "data.shots=0"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0"),
    ],
)
def test_an_invalid_key_is_named(tmp_path: Path, call: dict[str, Any], message: str) -> None:
    root = fill(tmp_path / "set", {"a": 3, "b": 3})
    arguments: dict[str, Any] = {"name": "folder", "root": root} | call
    with pytest.raises(ConfigError) as raised:
        load(**arguments)
    assert message in str(raised.value)


def test_too_many_shots_name_the_class_and_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root=.*has 7 images to train on, but data\.shots=8 needs 8"):
        load("folder", fill(tmp_path / "set", {"a": 10, "b": 10}), shots=8)
    with pytest.raises(DataError, match=r"data=faces: .*data\.shots=100 leaves none"):
        load("faces", None, shots=100)


# ---- the layout of mask


def test_an_irregular_folder_is_the_same_person_and_no_person_is_on_both_sides(tmp_path: Path) -> None:
    for person in (
        "000020_male_Asian_25",
        "000020-1_male_Asian_25",
        "001001_male_Asian_30",
        "000700_male_Asian_3",
    ):
        (tmp_path / person).mkdir()
        for kind in ("normal_2", "001_mask1", "Incorrect_Mask"):
            (tmp_path / person / f"{kind}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match='class "mask2" has no training images'):
        load("mask", tmp_path)
    for folder in tmp_path.iterdir():
        for kind in ("mask2", "mask3", "mask4", "mask5"):
            (folder / f"{kind}.jpg").write_bytes(b"")
    splits = load("mask", tmp_path)
    assert sizes(splits) == (14, 7, 7)
    (tmp_path / "000020_male_Asian_25" / "selfie.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"000020_male_Asian_25/selfie\.jpg: its name contains no class"):
        load("mask", tmp_path)
    (tmp_path / "000020_male_Asian_25" / "selfie.jpg").unlink()
    assert any("000700" in note for note in splits.notes)
    shifted = load("mask", tmp_path, arguments={"train_max_id": 21, "val_min_id": 20, "val_max_id": 1000})
    assert {name.split("_")[0] for name in shifted.val.names} == {"000700"}
    with pytest.raises(ConfigError, match=r"train_max_id=1002 and data\.val_min_id=1000 disagree"):
        load("mask", tmp_path, arguments={"train_max_id": 1002})


# ---- files that are not used


def test_every_file_that_is_not_used_is_counted_by_reason(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 6, "b": 6, "a/@eaDir": 1, "__MACOSX/a": 1})
    for name in ("a/new.heic", "b/labels.csv", "loose.jpg", "a/Thumbs.db", ".hidden.jpg"):
        (root / name).write_bytes(b"")
    splits = load("folder", root)
    assert len(splits.part("all")) == 12
    assert dict(splits.unused) == {
        "a/new.heic": "image format that is not read",
        "b/labels.csv": "not an image",
        "loose.jpg": "not part of the data set",
    }
    assert "1 file is not used (not part of the data set): loose.jpg" in splits.notes
    few = load("folder", root, shots=2)
    assert any("images are not used (data.shots=2)" in note for note in few.notes)


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".avif"])
def test_an_image_with_a_rare_ending_is_read(ending: str, tmp_path: Path) -> None:
    from PIL import Image, features

    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot read AVIF")
    root = fill(tmp_path / "set", {"a": 4, "b": 4})
    Image.new("RGB", (8, 8), "red").save(root / "a" / f"photo{ending}")
    images = load("folder", root).part("all")
    assert len(images) == 9
    red = images.load(list(images.names).index(f"a/photo{ending}")).getpixel((4, 4))
    assert red[0] > 200 > 60 > red[1]


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_named_like_a_split(name: str, tmp_path: Path) -> None:
    splits = load("folder", fill(tmp_path / "vehicles", {name: 10, "bus": 10, "car": 10}))
    assert splits.classes == tuple(sorted(("bus", "car", name)))
    assert len(splits.part("all")) == 30


# ---- sources are light, and open to others


NO_TORCH = """
import sys, json
from pathlib import Path
from graft.data.loading import load_splits
from graft.data.loading import locate
from graft.data.sources import checked_name, known_sources, source_arguments, source_name, suggest_data
for name in known_sources():
    locate(name, Path("/nowhere"), download=False)
try:
    load_splits("folder", root=Path(sys.argv[1]), seed=0)
except Exception as error:
    print(type(error).__name__)
load_splits("faces", root=None, seed=0)
heavy = ("torch", "torchvision", "lightning", "hydra", "sklearn")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def test_sources_do_not_import_torch(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 3})
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(root)], capture_output=True, text=True, check=True)
    kind, loaded = done.stdout.splitlines()
    assert kind == "DataError"
    assert json.loads(loaded) == []


def test_every_data_config_names_a_source_and_its_options() -> None:
    import inspect
    from importlib import import_module

    from omegaconf import OmegaConf

    from graft.config import conf_dir
    from graft.config.schema import DataConfig

    files = sorted((conf_dir() / "data").glob("*.yaml"))
    assert [file.stem for file in files] == sorted([*known_sources(), "target"])
    for file in files:
        if file.stem == "target":
            continue
        config = OmegaConf.load(file)
        assert source_name(config._target_) == file.stem
        keywords = inspect.signature(import_module(f"graft.data.sources.{file.stem}").load).parameters
        for key in [key for key in config if OmegaConf.is_interpolation(config, key)]:
            del config[key]  # depends on another key
        for key, value in source_arguments(config, DataConfig).items():
            assert keywords[key].default == value, "a config repeats its source's default, so that it can be seen"


def test_a_custom_source_is_loaded_by_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sets").mkdir()
    (tmp_path / "my_sets" / "two.py").write_text(
        "from graft.data.layout import read_class_folders\n"
        "from graft.data.sources import Source\n"
        "def load(root, *, seed, upside_down: bool = False):\n"
        "    return Source(('a', 'b'), read_class_folders(root))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    root = fill(tmp_path / "set", {"a": 10, "b": 10})
    assert sizes(load("my_sets.two.load", root, arguments={"upside_down": True})) == (18, 2, 2)
    with pytest.raises(ConfigError, match="Did you mean upside_down"):
        load("my_sets.two.load", root, arguments={"upsidedown": True})


def test_flowers_in_train_and_test_folders_are_used_as_they_are(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"train/daisy": 10, "train/roses": 10, "test/daisy": 3, "test/roses": 2})
    assert sizes(load("flowers", root)) == (18, 2, 5)
    partial = fill(tmp_path / "part", dict.fromkeys(("daisy", "dandelion", "roses", "sunflowers"), 200))
    with pytest.raises(DataError, match="there is no tulips"):
        load("flowers", partial)
    with pytest.raises(DataError, match='class "tulips" has 3 images, but 124 are requested'):
        load("flowers", fill(partial, {"tulips": 3}))


def test_an_invalid_data_option_suggests_the_nearest_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "my_source.py").write_text("from graft.data.sources.digits import load\n")
    assert suggest_data("photos") == "data=folder data.root=photos"
    assert suggest_data(str(tmp_path / "photos")) == f"data=folder data.root={tmp_path / 'photos'}"
    assert suggest_data("my_source") == suggest_data("my_source.py") == "data._target_=my_source.load"
    assert suggest_data("my_package.my_set.load") == "data._target_=my_package.my_set.load"
    assert "no folder" in str(suggest_data("/no/such/folder"))
    assert suggest_data("flwers") is None


def test_a_single_module_in_the_working_directory_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "my_digits.py").write_text("from graft.data.sources.digits import load\n")
    assert len(load("my_digits.load", None).classes) == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [("my_package.my_set", "data._target_=my_package.my_set.load"), ("flowers", "chosen by data=flowers")],
)
def test_the_name_of_another_set_suggests_the_key_that_chooses_it(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked_name(name, "graft.data.sources.digits.load")
    assert checked_name("mine", "graft.data.sources.digits.load") == "mine"
    assert checked_name(None, "graft.data.sources.digits.load") == "digits"


def test_the_checks_of_names_and_arguments_import_no_numpy() -> None:
    checks = """
import sys
from graft.data.sources import check_source, checked_name, known_sources, suggest_data
from graft.errors import ConfigError
suggest_data("nowhere"), known_sources(), checked_name(None, "graft.data.sources.flowers.load")
try:
    check_source("flowers", {"split_sede": 1})
except ConfigError as error:
    print(error)
print("numpy" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", checks], capture_output=True, text=True, check=True).stdout
    assert "Did you mean split_seed?" in answer
    assert answer.endswith("False\n")
