"""`graft predict`: class names of the run or of ImageNet, output formats, and refused requests."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import SqueezeNet1_0_Weights, get_model

from graft.config import conf_dir
from graft.config.registration import register
from graft.data.loading import load_splits
from graft.errors import ConfigError, DataError, GraftError, WeightsError
from graft.learning.restore import from_pretrained
from graft.models import Recipe
from graft.tasks import predict
from graft.tasks.predict import restore


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("predict", list(overrides))


def predicted(output: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows that `graft predict OVERRIDES output=…` writes."""
    predict.main(composed(f"output={output}", *overrides))
    if output.suffix == ".csv":
        with output.open() as file:
            return list(csv.DictReader(file))
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits as files, some in folders below."""
    folder = tmp_path_factory.mktemp("scans")
    images = load_splits("digits", root=None, seed=0).test
    for index in range(60):
        file = folder / f"{index % 3}" / f"{images.names[index].replace('/', '_')}.png"
        file.parent.mkdir(exist_ok=True)
        images.load(index).save(file)
    return folder


def test_csv_json_and_json_lines_agree_for_any_batch_size(digits_run: Path, scans: Path, tmp_path: Path) -> None:
    words = (f"checkpoint={digits_run}", f"source={scans}", "topk=3", "trainer.precision=32")
    table = predicted(tmp_path / "out.csv", *words)
    array = predicted(tmp_path / "out.json", *words, "batch_size=7", "num_workers=1")
    predict.main(composed(*words, f"output={tmp_path}/out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["image"] for row in table] == sorted(str(file) for file in scans.rglob("*.png"))
    assert lines == json.loads(json.dumps(lines))
    for row, item, line in zip(table, array, lines, strict=True):
        assert row["image"] == item["image"] == line["image"]
        names = [row["predicted"], row["class_2"], row["class_3"]]
        assert (
            names == [each["class"] for each in item["predictions"]] == [each["class"] for each in line["predictions"]]
        )
        figures = [float(row[key]) for key in ("probability", "probability_2", "probability_3")]
        assert figures == pytest.approx([each["probability"] for each in item["predictions"]], abs=1e-5)
        assert figures == sorted(figures, reverse=True)


def test_the_table_shows_the_first_images_and_counts_the_others(
    digits_run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(tmp_path / "out.csv", f"checkpoint={digits_run}", f"source={scans}", "rows=2", "topk=1")
    out = capsys.readouterr().out
    assert sum(".png" in line for line in out.splitlines()) == 2
    assert "and 58 more" in out
    assert str(tmp_path / "out.csv") in out


def test_an_unreadable_image_is_skipped_and_ends_in_an_error(
    digits_run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next(iter(sorted(scans.rglob("*.png"))))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "in" / "b.png").write_bytes(good.read_bytes())
    with pytest.raises(DataError, match="1 of 2 images could not be read"):
        predicted(tmp_path / "out.csv", f"checkpoint={digits_run}", f"source={tmp_path}/in")
    assert "a.png: cannot be read as an image" in capsys.readouterr().err
    with (tmp_path / "out.csv").open() as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["b.png"]


def test_annotated_copies_change_and_overwrite_nothing(digits_run: Path, scans: Path, tmp_path: Path) -> None:
    before = sorted((str(file), file.stat().st_mtime_ns) for file in scans.rglob("*"))
    words = (f"checkpoint={digits_run}", "show=true", f"folder={tmp_path}", "topk=3")
    for _ in range(2):
        predict.main(composed(f"source={scans}/1", *words))
    assert sorted((str(file), file.stat().st_mtime_ns) for file in scans.rglob("*")) == before
    copies = list(tmp_path.iterdir())
    assert len(copies) == 40
    with Image.open(copies[0]) as copy:
        assert (copy.format, copy.width) == ("JPEG", 320)


def test_ants_and_bees_are_named_by_imagenets_classes(shared_data: Path, shared_weights: Path, tmp_path: Path) -> None:
    photographs = {
        "ants/1073564163_225a64f170": "ant",
        "ants/1119630822_cd325ea21a": "ant",
        "bees/1032546534_06907fe3b3": "bee",
        "bees/10870992_eebeeb3a12": "bee",
        "bees/1355974687_1341c1face": "bee",
    }
    files = ",".join(f"{shared_data}/hymenoptera_data/val/{name}.jpg" for name in photographs)
    weights = shared_weights / "squeezenet1_0-imagenet.safetensors"
    words = ("model=squeezenet1_0", f"model.weights={weights}", f"source=[{files}]", "trainer.precision=32")
    found = predicted(tmp_path / "out.json", *words)
    for item, name in zip(found, photographs.values(), strict=True):
        assert name in [each["class"] for each in item["predictions"]]
    assert [item["predictions"][0]["class"] for item in found[:4]] == ["ant", "ant", "bee", "bee"]

    entry, plain = SqueezeNet1_0_Weights.DEFAULT, get_model("squeezenet1_0").eval()
    plain.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    prepare = entry.transforms()
    with torch.inference_mode():
        batch = torch.stack([prepare(Image.open(item["image"]).convert("RGB")) for item in found])
        theirs = plain(batch).softmax(1).max(1)
    assert [item["predictions"][0]["probability"] for item in found] == pytest.approx(theirs.values.tolist(), abs=1e-4)
    named = [entry.meta["categories"][label] for label in theirs.indices.tolist()]
    assert [item["predictions"][0]["class"] for item in found] == named


def test_the_preset_resizes_to_224_unless_overridden(shared_weights: Path) -> None:
    words = ("experiment=imagenet_predict", "source=x.jpg")
    assert composed(*words).model.name == "vgg16"
    words += ("model=squeezenet1_0", f"model.weights={shared_weights}/squeezenet1_0-imagenet.safetensors")
    of_preset = restore(composed(*words)).preprocessing
    assert (of_preset.resize_size, of_preset.input_size) == (224, 224)
    of_torchvision = restore(composed(*words, "preprocess.resize_size=256")).preprocessing
    assert (of_torchvision.resize_size, of_torchvision.input_size) == (256, 224)


def test_the_bundled_network_has_its_own_classes() -> None:
    restored = from_pretrained(Recipe("vgg_mini"), "bundled")
    assert len(restored.classes) == 10
    assert "airplane" in restored.classes
    assert not restored.network.training


def test_weights_without_a_head_or_names_are_refused(shared_weights: Path) -> None:
    for weights in (None, str(shared_weights / "vgg16-features.safetensors")):
        with pytest.raises(WeightsError, match="no head with named classes"):
            from_pretrained(Recipe("vgg16"), weights)


@pytest.mark.parametrize(
    ("overrides", "words"),
    {
        "source=x.jpg": ["checkpoint", "model=vgg16"],
        "source=ONE checkpoint=y.pth model=vgg16": ["checkpoint=y.pth", "no checkpoint at", ".safetensors"],
        "model=vgg16": ["source is not set"],
        "model=vgg16 source=nowhere": ["source=nowhere", "no such file"],
        "model=vgg16 source=EMPTY": ["EMPTY", "no picture", ".jpg"],
        "model=vgg16 source=ONE output=x.txt": ["x.txt", ".csv"],
        "model=vgg16 source=ONE topk=0": ["topk=0"],
        "model=vgg16 source=ONE preprocess.fit=crp": ["preprocess.fit=crp", "Did you mean crop"],
        "checkpoint=nowhere source=ONE": ["checkpoint=nowhere"],
        "model=vgg16 model.weights=nowhere.pth source=ONE": ["nowhere.pth", "no such file"],
    }.items(),
)
def test_a_mistake_names_the_way_out(
    overrides: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ONE").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "ONE" / "a.png")
    with pytest.raises(GraftError) as caught:
        predict.main(composed(*overrides.split()))
    assert isinstance(caught.value, ConfigError | GraftError)
    for word in words:
        assert word in str(caught.value)


def test_a_fifo_among_the_sources_is_skipped_and_named(
    digits_run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    words = (f"checkpoint={digits_run}", f"source=[{tmp_path}/pipe.png,{scans}/0]", f"output={tmp_path}/out.csv")
    with pytest.raises(DataError, match="1 of 21 images could not be read"):
        predict.main(composed(*words))
    output = capsys.readouterr()
    assert "pipe.png: cannot be read as an image (a FIFO)" in output.out + output.err


@pytest.mark.parametrize("words", ["checkpoint={}", "model=vgg16 model.weights={}"])
def test_a_fifo_as_checkpoint_or_weights_is_refused(words: str, scans: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(GraftError, match=r"pipe\.ckpt.*not a regular file but a FIFO"):
        predict.main(composed(f"source={scans}", *words.format(tmp_path / "pipe.ckpt").split()))
