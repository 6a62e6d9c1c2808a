"""Data sets that the `datasets` library reads from a folder: columns, splits, classes and images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.loading import load_splits, locate
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, NotAvailable

datasets = pytest.importorskip("datasets")

CLASSES = ["ant", "bee"]


def picture(number: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.RandomState(number).randint(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(folder: Path, labels: dict[str, list[Any]], feature: Any, **columns: Any) -> Path:
    """Parquet files of splits with `labels` in the column `species`, and further columns of features."""
    features = datasets.Features({"photo": datasets.Image(), "species": feature, **columns})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, values in labels.items():
        rows: dict[str, list[Any]] = {
            "photo": [{"bytes": picture(100 * len(split) + row), "path": f"{row}.png"} for row in range(len(values))],
            "species": values,
        }
        rows |= {name: [0] * len(values) for name in columns}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def load(root: Path, tmp_path: Path, **arguments: Any) -> Splits:
    return load_splits("hf", root=root, seed=0, arguments={"cache": str(tmp_path / "cache"), **arguments})


def test_parquet_with_class_labels_and_all_splits(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=CLASSES)
    labels = {"train": [0, 1] * 4, "validation": [1, 0, 1], "test": [0, 1, -1]}
    splits = load(write(tmp_path / "set", labels, label, weight=datasets.Value("int64")), tmp_path)
    assert splits.classes == ("ant", "bee")
    assert [part.labels.tolist() for part in splits.parts().values()] == [[0, 1] * 4, [1, 0, 1], [0, 1]]
    assert list(splits.test.names) == ["test/0.png", "test/1.png"]
    assert splits.test.load(1).tobytes() == Image.open(io.BytesIO(picture(401))).tobytes()
    assert [name for name, _ in splits.unused] == ["test/2.png"]
    for note in ("image column: photo (data.image_column)", "label column: species (data.label_column)"):
        assert note in splits.notes
    data = ImageDataModule(splits, Preprocessing(8, 8), Augment(), batch_size=4, num_workers=2, resident_gb=0)
    assert sorted(label for batch in data.train_dataloader() for label in batch.labels.tolist()) == [0] * 4 + [1] * 4


def test_texts_are_classes_and_missing_splits_are_drawn(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"train": ["wasp", "fly"] * 10}, datasets.Value("string"))
    splits = load(root, tmp_path, test_fraction=0.3)
    assert splits.classes == ("fly", "wasp")
    assert [len(part) for part in splits.parts().values()] == [12, 2, 6]
    other = load(root, tmp_path, test_fraction=0.3)
    assert splits.fingerprint() == other.fingerprint()
    datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache")).save_to_disk(str(tmp_path / "saved"))
    saved = load(tmp_path / "saved", tmp_path, test_fraction=0.3)
    assert (saved.source, list(saved.test.names)) == (splits.source, list(splits.test.names))


def test_class_folders_are_read_as_files(tmp_path: Path) -> None:
    for split, name in ((split, name) for split in ("train", "test") for name in CLASSES):
        for number in range(4):
            file = tmp_path / "photos" / split / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(number))
    splits = load(tmp_path / "photos", tmp_path)
    assert splits.classes == ("ant", "bee")
    assert sorted(splits.test.names) == [f"test/{name}/{number}.png" for name in CLASSES for number in range(4)]


def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = datasets.Sequence(datasets.ClassLabel(names=CLASSES))
    root = write(tmp_path / "several", {"train": [[0, 1], [1]] * 3}, several)
    with pytest.raises(DataError, match="column species has values of type list; an image has one class"):
        load(root, tmp_path)
    two = {"fine": datasets.ClassLabel(names=CLASSES), "coarse": datasets.ClassLabel(names=CLASSES)}
    root = write(tmp_path / "two", {"train": [0.5, 1.5] * 3}, datasets.Value("float64"), **two)
    with pytest.raises(ConfigError, match=r"several columns may be the label: fine, coarse"):
        load(root, tmp_path)
    with pytest.raises(ConfigError, match=r"data\.label_column=corse: there is no such column\. Did you mean coarse"):
        load(root, tmp_path, label_column="corse")
    with pytest.raises(ConfigError, match=r"data\.image_column=fine: its values are ClassLabel"):
        load(root, tmp_path, label_column="coarse", image_column="fine")
    with pytest.raises(ConfigError, match=r"data\.revision=main: data\.root=.* is a folder"):
        load(root, tmp_path, revision="main")
    error = locate("hf", None)
    assert "data.name is not set, and data=hf needs a data set" in str(error)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.dataset_info", _unreachable)
    with pytest.raises(NotAvailable, match=r"datasets/org/insects cannot be downloaded \(no route\)"):
        load_splits("hf", root=None, seed=0, arguments={"repository": "org/insects"})


def _unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no route")


def test_packing_keeps_a_data_set_of_the_hub(tmp_path: Path) -> None:
    from graft.data.loading import load_published
    from graft.data.shards.packing import Options, Packing, pack

    label = datasets.ClassLabel(names=CLASSES)
    root = write(tmp_path / "set", {"train": [0, 1] * 4, "test": [0, 1]}, label)
    published, _ = load_published("hf", root=root, seed=0, arguments={"cache": str(tmp_path / "cache")})
    pack(Packing.of(published, Options(), (), {}), tmp_path / "shards")
    mine, other = load(root, tmp_path), load_splits("shards", root=tmp_path / "shards", seed=0)
    assert mine.fingerprint() == other.fingerprint()
    options = {"data_files": str(tmp_path / "shards" / "train-*.tar"), "cache_dir": str(tmp_path / "cache")}
    theirs = datasets.load_dataset("webdataset", split="train", **options)
    assert sorted(row["json"]["name"] for row in theirs) == sorted(published.train.names)
    assert all(row["cls"] == row["json"]["label"] for row in theirs)
