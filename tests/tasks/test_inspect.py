"""`graft inspect` names the defects of a data set and does not change the data set."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command
from hydra import compose, initialize_config_dir
from PIL import Image

from graft.config import conf_dir
from graft.config.registration import register
from graft.errors import ConfigError, DataError
from graft.tasks import inspect


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("inspect", list(overrides))


def photograph(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture like no other of another number."""
    coarse = np.random.RandomState(number).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(root: Path, counts: dict[str, int]) -> Path:
    """Create the given number of different images in each folder of `root`."""
    number = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            photograph(number).save(root / folder / f"{i:02d}.png")
            number += 1
    return root


def inspected(root: Path, tmp_path: Path, *overrides: str, spoiled: bool = False) -> dict[str, Any]:
    """The JSON of `graft inspect data=folder data.root=ROOT`, which must fail exactly when `spoiled`."""
    output = tmp_path / "report.json"
    words = ["data=folder", f"data.root={root}", f"output={output}", f"folder={tmp_path}/sheets", *overrides]
    if spoiled:
        with pytest.raises(DataError, match="training would be spoiled"):
            inspect.main(composed(*words))
    else:
        inspect.main(composed(*words))
    report = json.loads(output.read_text())
    assert report["ok"] is not spoiled
    return report


def files(report: dict[str, Any], kind: str) -> dict[str, str]:
    """Name → reason of the files in the findings of one kind."""
    return {
        file["name"]: file["reason"]
        for finding in report["findings"]
        for file in finding["files"]
        if finding["kind"] == kind
    }


def groups(report: dict[str, Any], kind: str) -> list[set[str]]:
    """Names that belong together in the findings of one kind."""
    found = [finding for finding in report["findings"] if finding["kind"] == kind]
    return [{member["name"] for member in group} for finding in found for group in finding["groups"]]


def kinds(report: dict[str, Any], severity: str) -> set[str]:
    return {finding["kind"] for finding in report["findings"] if finding["severity"] == severity}


def state(folder: Path) -> set[tuple[str, int, int]]:
    return {(str(file), file.lstat().st_mtime_ns, file.lstat().st_size) for file in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that goes wrong."""
    root = fill(tmp_path_factory.mktemp("set") / "photos", {f"{part}/{name}": 8 for part in ("train", "test")
                                                            for name in ("ants", "bees")})  # fmt: skip
    train, test = root / "train", root / "test"
    whole = (train / "ants" / "00.png").read_bytes()
    (train / "ants" / "zero.jpg").touch()
    (train / "ants" / "page [bold red].jpg").write_bytes(b"<!doctype html><html>404</html>")
    (train / "bees" / "half.png").write_bytes(whole[: len(whole) // 2])
    photograph(100).save(train / "ants" / "whole.jpg")
    (train / "bees" / "half.jpg").write_bytes((train / "ants" / "whole.jpg").read_bytes()[:900])
    (train / "bees" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    Image.new("1", (100_000, 4_000)).save(train / "bees" / "bomb.png")
    photograph(101).save(train / "ants" / "really_a_png.jpg", format="PNG")
    shutil.copy(train / "ants" / "01.png", test / "ants" / "copy.png")
    photograph(2).save(train / "ants" / "other_file.bmp")  # the pixels of 02.png
    shutil.copy(train / "bees" / "03.png", train / "ants" / "a bee.png")
    photograph(4).resize((66, 50)).save(test / "ants" / "smaller.jpg", quality=60)
    Image.new("RGB", (64, 64), "grey").save(train / "bees" / "grey.png")
    Image.new("L", (4_000, 30)).save(train / "bees" / "strip.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(102).save(train / "bees" / "turned.jpg", exif=exif)
    photograph(103).convert("CMYK").save(train / "bees" / "cmyk.jpg")
    photograph(104).save(train / "bees" / "moving.webp", save_all=True, append_images=[photograph(105)])
    deep = np.random.RandomState(0).randint(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(deep).save(train / "bees" / "deep.png")
    (train / "bees" / "labels.csv").write_text("a,b")
    (train / "bees" / "IMG_1.HEIC").write_bytes(b"heic")
    return root


@pytest.fixture(scope="module")
def report(spoiled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inspected(spoiled, tmp_path_factory.mktemp("out"), NO_VAL, spoiled=True)


NO_VAL = "data.val_fraction=0"

PROBE = """
import sys
from graft.cli import main
try:
    main("inspect")
finally:
    print("torch imported:", "torch" in sys.modules)
"""


def test_the_command_names_what_is_wrong_and_fails_without_torch(spoiled: Path, tmp_path: Path) -> None:
    before = state(spoiled)
    done = command(tmp_path / "x", "-c", PROBE, "data=folder", f"data.root={spoiled}", "paths.outputs=out", NO_VAL)
    assert done.code == 1
    assert "torch imported: False" in done.out
    assert "same image in train and test: 1 image both trained and tested on" in done.err
    assert "Traceback" not in done.err
    flat = "".join(done.out.split())
    for name in ("ants/zero.jpg", "train/ants/page[bold red].jpg", "bees/half.jpg", "test/ants/copy.png(valandtest)"):
        assert name.replace(" ", "") in flat, name
    assert len(list((tmp_path / "out" / "inspect").glob("*/*.png"))) == 2
    assert state(spoiled) == before


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"ants": 12, "bees": 12})
    done = command(
        tmp_path / "x", "-m", "graft.cli", "inspect", "data=folder", f"data.root={root}", "model=vgg16_cifar"
    )
    assert done.code == 0, done.err
    assert done.err == ""
    assert "0 errors, 0 warnings" in done.out
    assert not (tmp_path / ".hydra").exists()


def test_every_unreadable_file_is_named_with_its_reason(report: dict[str, Any]) -> None:
    found = {name: reason.split(":")[0] for name, reason in files(report, "unreadable").items()}
    assert found == {
        "train/ants/page [bold red].jpg": "no image",
        "train/ants/zero.jpg": "empty",
        "train/bees/bomb.png": "too large",
        "train/bees/gone.jpg": "missing",
        "train/bees/half.jpg": "truncated",
        "train/bees/half.png": "truncated",
    }


def test_identical_pixels_are_found_regardless_of_the_file_format(report: dict[str, Any]) -> None:
    assert groups(report, "same image in train and test") == [{"train/ants/01.png", "test/ants/copy.png"}]
    assert groups(report, "same image twice") == [
        {"train/ants/02.png", "train/ants/other_file.bmp"},
        {"train/ants/a bee.png", "train/bees/03.png"},
    ]
    assert groups(report, "same image in two classes") == [{"train/ants/a bee.png", "train/bees/03.png"}]
    assert groups(report, "near duplicates across parts") == [{"train/ants/04.png", "test/ants/smaller.jpg"}]
    assert groups(report, "near duplicates") == []


def test_misleading_file_formats_are_reported(report: dict[str, Any]) -> None:
    assert files(report, "mislabelled ending") == {"train/ants/really_a_png.jpg": "its content is PNG"}
    assert set(files(report, "format not read")) == {"train/bees/IMG_1.HEIC"}
    assert set(files(report, "other files")) == {"train/bees/labels.csv"}
    assert set(files(report, "blank")) == {"train/bees/grey.png", "train/bees/strip.png"}
    expected = {"animated": "moving.webp", "turned": "turned.jpg", "CMYK": "cmyk.jpg", "I;16": "deep.png"}
    assert {kind: set(files(report, kind)) for kind in expected} == {
        kind: {f"train/bees/{name}"} for kind, name in expected.items()
    }


def test_counts_sizes_and_the_resize_are_reported(report: dict[str, Any]) -> None:
    assert report["counts"]["train"] == {"ants": 14, "bees": 18}
    assert sum(report["readable"]["train"].values()) == sum(report["counts"]["train"].values()) - 6
    assert report["sizes"]["width"] == {"min": 40, "median": 96, "max": 4000}
    assert report["sizes"]["aspect"]["min"] == 0.75, "the turned one stands upright: 72 x 96"
    assert report["resize"]["preprocessing"]["resize_size"] == 256
    assert report["resize"]["cropped"]["worst"] == "train/bees/strip.png"
    assert report["resize"]["cropped"]["median"] == pytest.approx(1 - (224 / 256) ** 2 * 72 / 96)
    assert files(report, "cut off") == {"train/bees/strip.png": "99% cut off"}
    assert files(report, "enlarged")["train/bees/deep.png"] == "enlarged 6.4 times"


def test_only_findings_that_spoil_training_are_errors(report: dict[str, Any]) -> None:
    assert kinds(report, "error") == {"same image in train and test"}


@pytest.mark.parametrize(
    ("words", "cropped", "enlarged"),
    [
        (("model=inception_v3",), 1 - (299 / 342) ** 2 * 72 / 96, 24),
        (("data.preprocess.fit=squash",), 0.0, 24),
        (("data.preprocess.input_size=64", "data.preprocess.resize_size=64"), 0.25, 0),
    ],
)
def test_the_resize_is_that_of_the_network_and_of_data_preprocess(
    tmp_path: Path, words: tuple[str, ...], cropped: float, enlarged: int
) -> None:
    report = inspected(fill(tmp_path / "set", {"a": 12, "b": 12}), tmp_path, *words)
    assert report["resize"]["cropped"]["max"] == pytest.approx(cropped)
    assert report["resize"]["enlarged"] == enlarged


# ---- sets that cannot be divided, or not well


def empty_class(root: Path) -> None:
    (root / "train" / "wasps").mkdir()


def single_image(root: Path) -> None:
    fill(root, {"train/wasps": 1})


def unreadable_class(root: Path) -> None:
    (root / "train" / "wasps").mkdir()
    for name in "ab":
        (root / "train" / "wasps" / f"{name}.jpg").touch()


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (empty_class, "cannot be divided", "wasps: no images in this class folder"),
        (single_image, "cannot be divided", 'class "wasps" has 1 image, but data.val_fraction=0.1 needs at least 2'),
        (unreadable_class, "nothing readable", "1 class without a readable image in train"),
    ],
)
def test_a_class_without_training_images_is_an_error_and_the_rest_is_inspected(
    tmp_path: Path, spoil: Callable[[Path], None], kind: str, text: str
) -> None:
    root = fill(tmp_path / "set", {f"{part}/{name}": 6 for part in ("train", "test") for name in ("ants", "bees")})
    spoil(root)
    (root / "train" / "ants" / "broken.jpg").touch()
    report = inspected(root, tmp_path, spoiled=True)
    assert kind in kinds(report, "error")
    assert any(text in finding["message"] for finding in report["findings"] if finding["kind"] == kind)
    assert "train/ants/broken.jpg" in files(report, "unreadable")
    assert report["classes"] == ["ants", "bees", "wasps"]


def test_a_folder_without_class_folders_names_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images but no class folders"):
        inspect.main(composed("data=folder", f"data.root={fill(tmp_path / 'set', {'.': 3})}"))


def test_class_imbalance_and_similar_names_are_reported(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"Cats": 40, "cats": 8, "벌 🐝": 8})
    report = inspected(root, tmp_path)
    assert groups(report, "confusable classes") == [{"Cats", "cats"}]
    text = next(finding["message"] for finding in report["findings"] if finding["kind"] == "class imbalance")
    assert text.startswith("5.8 times as many train images of Cats (29) as of cats (5); always predicting Cats")
    assert report["counts"]["test"] == {"Cats": 8, "cats": 2, "벌 🐝": 2}
    even = inspected(fill(tmp_path / "even", {"a": 20, "b": 10}), tmp_path)
    assert "class imbalance" not in kinds(even, "warning")


def test_a_validation_split_that_is_the_test_split_is_inspected_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {f"{part}/{name}": 6 for part in ("train", "val") for name in ("a", "b")})
    shutil.copy(root / "train" / "a" / "00.png", root / "val" / "a" / "x.png")
    report = inspected(root, tmp_path, spoiled=True)
    assert kinds(report, "error") == {"same image in train and test"}
    assert report["counts"]["val"] == report["counts"]["test"] == {"a": 7, "b": 6}


def test_embedded_images_are_inspected(tmp_path: Path) -> None:
    output = tmp_path / "faces.json"
    inspect.main(composed("data=faces", "model=vgg16_cifar", f"output={output}", f"folder={tmp_path}"))
    report = json.loads(output.read_text())
    assert report["sizes"]["width"] == {"min": 25, "median": 25, "max": 25}
    assert set(files(report, "blank")) == {"no_face/052"}, "lfw_subset really holds one"
    assert sum(sum(counts.values()) for counts in report["counts"].values()) == 200


def test_the_real_ants_and_bees_have_no_errors(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "hymenoptera_data"
    before = state(root)
    inspect.main(composed("data=hymenoptera", f"data.root={root}", f"output={tmp_path}/r.json", f"folder={tmp_path}"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["ok"]
    assert set(files(report, "format not read")) == {"train/ants/imageNotFound.gif"}
    assert not groups(report, "near duplicates") + groups(report, "near duplicates across parts")
    assert state(root) == before


# ---- contact sheets


def test_a_contact_sheet_shows_the_images_and_dims_the_cropped_margin(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a/b", "ü" * 80):
            (tmp_path / "set" / part / name.replace("/", "∕")).mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (256, 128), (200, i, 0)).save(
                    tmp_path / "set" / part / name.replace("/", "∕") / f"{i}.png"
                )
    inspected(tmp_path / "set", tmp_path, "per_sheet=16", spoiled=True)
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert [sheet.name[:5] for sheet in sheets] == ["0_a_b", "1_üüü"]
    sheet = Image.open(sheets[0])
    assert sheet.width == 8 * 132 + 4
    row = np.asarray(sheet)[20 + 64, 4 : 4 + 128, 0].tolist()
    assert row[:32] == [70] * 32, "dimmed: of 512 x 256 after the resize the middle 224 are seen"
    assert row[64 - 27 : 64 + 27] == [200] * 54
    assert sheet.getpixel((4 + 64, 20 + 10)) == (211, 211, 211), "grey above a picture twice as wide as high"


def test_contact_sheets_are_limited_with_many_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {f"{i:02d}": 4 for i in range(12)})
    report = inspected(root, tmp_path, "sheets=3", "data.val_fraction=0")
    assert sorted(report["sheets"]) == ["00", "01", "02"]


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("output=report.csv",), "output=report.csv: give a name that ends in .json"),
        (("output=SET/report.json",), r"is in data\.root=.*, the data set"),
        (("folder=SET",), r"is in data\.root=.*, the data set"),
        (("near=16",), "near=16"),
        (("rows=0",), "rows=0"),
        (("data.preprocess.fit=crpo",), "Did you mean crop"),
        (("data.preprocess.input_size=300", "data.preprocess.resize_size=200"), "the crop would be larger"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_read_or_written(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = fill(tmp_path / "set", {"a": 3, "b": 3})
    before = state(root)
    with pytest.raises(ConfigError, match=message):
        inspect.main(composed("data=folder", f"data.root={root}", *(word.replace("SET", str(root)) for word in words)))
    assert state(root) == before


def test_a_fifo_and_a_self_linked_file_are_named_as_unreadable(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", {"cats": 12, "dogs": 12})
    os.mkfifo(root / "cats" / "pipe.jpg")
    (root / "dogs" / "loop.jpg").symlink_to("loop.jpg")
    found = files(inspected(root, tmp_path), "unreadable")
    assert found == {
        "cats/pipe.jpg": "not a regular file: a FIFO",
        "dogs/loop.jpg": "missing: a link to itself",
    }
