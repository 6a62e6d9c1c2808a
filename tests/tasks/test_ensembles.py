"""Ensembles in `graft evaluate` and `graft predict`: the mean of the probabilities of several checkpoints."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command, succeeded
from PIL import Image

import graft
from graft.config.overrides import quote_literals
from graft.data.loading import load_splits
from graft.errors import ConfigError
from graft.learning.checkpoints import checkpoint_file
from graft.learning.ensemble import Ensemble
from graft.learning.inference import Inference
from graft.learning.restore import from_checkpoint
from graft.learning.views import hflip, identity
from graft.system.device import Device

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


def changed(run: Path, file: Path, *, shift: float = 0.0, order: list[int] | None = None, **preprocessing: Any) -> Path:
    """A copy of a run's checkpoint with other weights in its last layer, in another order of classes, ….

    Args:
        run: its folder.
        file: of the copy.
        shift: what is added to the last layer's first bias, so that another network answers.
        order: of the classes.
        preprocessing: other values.
    """
    content = torch.load(checkpoint_file(str(run)), weights_only=True)
    head = [name for name in content["state_dict"] if name.endswith(".bias")][-1]
    for name in (head, head.replace("bias", "weight")):
        tensor = content["state_dict"][name].clone()
        if name == head:
            tensor[0] += shift
        content["state_dict"][name] = tensor[order] if order else tensor
    if order:
        content["graft"]["classes"] = [content["graft"]["classes"][index] for index in order]
    content["graft"]["preprocessing"] |= preprocessing
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def evaluated(folder: Path, *words: str) -> tuple[dict[str, Any], dict[str, list[float]], str]:
    """evaluation.json, image -> probability of each class by name, and the output of `graft evaluate WORDS`."""
    done = succeeded(command(folder, "-m", "graft.cli", "evaluate", *words, f"hydra.run.dir={folder}", "topk=10",
                             "trainer.precision=32"))  # fmt: skip
    rows = {}
    with (folder / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            pairs = {row["predicted"]: row["probability"]}
            pairs |= {row[f"class_{rank}"]: row[f"probability_{rank}"] for rank in range(2, 11)}
            rows[row["image"]] = [float(pairs[str(digit)]) for digit in range(10)]
    return json.loads((folder / "evaluation.json").read_text()), rows, done.out


def test_an_ensemble_has_the_mean_of_the_probabilities_each_with_its_own_preprocessing(
    digits_run: Path, tmp_path: Path
) -> None:
    """The second network has its classes in another order and sees larger, cropped images."""
    other = changed(digits_run, tmp_path / "other.ckpt", shift=0.2, order=ORDER, fit="crop", resize_size=40)
    first, p1, _ = evaluated(tmp_path / "1", f"checkpoint={digits_run}")
    second, p2, _ = evaluated(tmp_path / "2", f"checkpoint={other}")
    both, p, out = evaluated(tmp_path / "12", f"checkpoint=[{digits_run},{other}]")
    assert list(p) == list(p1)
    np.testing.assert_allclose(list(p.values()), np.mean([list(p1.values()), [p2[name] for name in p]], 0), atol=2e-6)
    for alone, member in zip((first, second), both["members"], strict=True):
        assert member["metrics"] == pytest.approx(alone["metrics"])
        assert member["preprocessing"] == alone["preprocessing"]
    assert both["members"][0]["run"] == first["run"], "the run's own record is compared with the network's own figures"
    assert both["metrics"]["test/loss"] < np.mean([first["metrics"]["test/loss"], second["metrics"]["test/loss"]])
    assert "ensemble of 2 networks" in out
    assert f"{first['metrics']['test/f1']:.4f}" in out, "each network's figures are next to the ensemble's"
    confusion = (tmp_path / "12" / "confusion_matrix.csv").read_text().splitlines()
    assert sum(int(each) for row in confusion[1:] for each in row.split(",")[1:]) == len(p)


def test_positional_checkpoints_and_predictions_agree_with_the_evaluation(digits_run: Path, tmp_path: Path) -> None:
    other = changed(digits_run, tmp_path / "2024_10" / "other.ckpt", shift=0.2, order=ORDER)
    images = load_splits("digits", root=None, seed=0, arguments={"split_seed": 3}).test
    files = {f"{index:03d}.png": images.names[index] for index in range(40)}
    for index, file in enumerate(files):
        images.load(index).save(tmp_path / file)
    _, expected, _ = evaluated(tmp_path / "out", str(digits_run), str(other))
    predictor = graft.load([digits_run, other], "trainer.precision=32", "topk=10")
    predicted = predictor.predict(str(tmp_path / "0*.png"))
    assert len(predicted) == 40
    for each in predicted:
        found = dict(zip(each.classes, each.probabilities, strict=True))
        name = files[Path(each.image).name]
        assert [found[str(digit)] for digit in range(10)] == pytest.approx(expected[name], abs=2e-6)
    done = succeeded(command(tmp_path / "p", "-m", "graft.cli", "predict", f"source={tmp_path}/000.png",
                             "checkpoint=[2024_10/other.ckpt]", "rows=1"))  # fmt: skip
    assert "by 2024_10/other.ckpt" in done.out, "Hydra would read the folder's name as a number"


def test_networks_with_other_classes_and_the_same_file_twice_are_refused_by_name(
    digits_run: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint_file(str(digits_run)), weights_only=True)
    content["graft"]["classes"][2] = "two"
    torch.save(content, tmp_path / "words.ckpt")
    for task, more in (("evaluate", f"hydra.run.dir={tmp_path}/run"), ("predict", f"source={tmp_path}/x.png")):
        Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
        refused = command(tmp_path / "x", "-m", "graft.cli", task, f"checkpoint=[{digits_run},words.ckpt]", more)
        assert refused.code == 1
        assert "only in words.ckpt: two" in refused.err
        assert "best.ckpt: 2\n" in refused.err
        best = digits_run / "checkpoints" / "best.ckpt"
        twice = command(tmp_path / "x", "-m", "graft.cli", task, f"checkpoint=[{digits_run},{best}]", more)
        assert "are the same file" in twice.err


def test_images_that_trained_a_member_are_counted(digits_run: Path, tmp_path: Path) -> None:
    """As with the folds of a cross-validation: what one run validates on has trained another."""
    content = torch.load(checkpoint_file(str(digits_run)), weights_only=True)
    content["graft"]["config"]["data"] |= {"split_seed": 4}
    torch.save(content, tmp_path / "other.ckpt")
    parts = [load_splits("digits", root=None, seed=0, arguments={"split_seed": seed}) for seed in (3, 4)]
    trained = len(set(parts[0].test.names) & set(parts[1].train.names))
    assert trained > 0
    result, rows, out = evaluated(tmp_path / "out", f"checkpoint=[{digits_run},{tmp_path}/other.ckpt]")
    note = f"{trained} of the {len(rows)} test images have trained {tmp_path}/other.ckpt"
    assert note in result["notes"]
    assert note in out


def test_each_network_has_its_own_views(digits_run: Path) -> None:
    restored, device = from_checkpoint(checkpoint_file(str(digits_run))), Device("cpu", 1, "32-true")
    single = Inference(restored, device, channels_last=False)
    flipped = Inference(restored, device, channels_last=False, views={"identity": identity, "hflip": hflip})
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    ensemble = Ensemble([single, flipped])
    assert len(ensemble.preparations) == 1, "images are prepared once for networks with the same preprocessing"
    own, mirrored = single(images).softmax(1), single(images.flip(3)).softmax(1)
    mean = 0.75 * own + 0.25 * mirrored
    torch.testing.assert_close(ensemble([images]).softmax(1), mean)
    assert torch.equal(Ensemble([single])([images]), single(images)), "one network's logits are unchanged"


def test_the_elements_of_a_list_of_checkpoints_are_text() -> None:
    (word,) = quote_literals(["checkpoint=[2024_10,'a, b',c d/é]"], "evaluate")
    assert graft.compose(word, task="evaluate").config.checkpoint == ["2024_10", "a, b", "c d/é"]
    with pytest.raises(ConfigError, match="takes one path"):
        quote_literals(["a.ckpt", "b.ckpt"], "export")
