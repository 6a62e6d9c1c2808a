"""`graft advise`: its candidates train by their commands, on the features that it has computed."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Finished, command, succeeded
from PIL import Image

import graft
from graft.config.commands import AdviseConfig
from graft.config.registration import typed
from graft.errors import ConfigError, DataError
from graft.tasks import advising
from graft.tasks.advise import checked
from graft.tasks.data import open_data

QUICK = ("data=faces", "models=[vgg_mini]", "augment=none", "trainer.max_epochs=2", "trainer.accelerator=cpu",
         "trainer.precision=32-true", "data.num_workers=0")  # fmt: skip


@pytest.fixture(scope="module")
def advised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished, dict[str, Any]]:
    """Advice on the embedded photographs: its folder, the command, and advise.json."""
    folder = tmp_path_factory.mktemp("advice") / "advice"
    done = succeeded(command(folder, "-m", "graft.cli", "advise", f"folder={folder}", *QUICK, "paths.cache=cache"))
    return folder, done, json.loads((folder / "advise.json").read_text())


def test_candidates_are_ranked_with_what_they_cost(advised: tuple[Path, Finished, dict[str, Any]]) -> None:
    _, done, advice = advised
    candidates = advice["candidates"]
    assert {(each["strategy"], each["cut"]) for each in candidates} == {
        ("feature_extract", "block4"), ("finetune", "block3"), ("finetune", "block2"), ("finetune", "none"),
    }  # fmt: skip
    accuracies = [each["predicted_accuracy"] for each in candidates]
    assert accuracies == sorted(accuracies, reverse=True)
    for each in candidates:
        low, high = each["interval"]
        assert 0.5 < low <= each["predicted_accuracy"] <= high <= 1
        assert each["minutes"] > 0
        assert each["command"].startswith("graft train data=faces")
    memory = {each["cut"]: each["memory_bytes"] for each in candidates}
    assert memory["none"] > memory["block2"] > memory["block3"] > memory["block4"] > candidates[0]["size_bytes"]
    assert candidates[0]["command"] in done.out
    assert advice["second"] is None or advice["second"] in done.out


def test_the_page_is_one_file_that_fetches_nothing(advised: tuple[Path, Finished, dict[str, Any]]) -> None:
    folder, _, advice = advised
    page = (folder / "advise.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    for each in advice["candidates"]:
        assert f"{each['predicted_accuracy']:.3f}" in page
        assert shlex.split(each["command"])[-1] in page


def test_the_advice_trains_as_it_is_printed_and_computes_nothing_again(
    advised: tuple[Path, Finished, dict[str, Any]],
) -> None:
    folder, _, advice = advised
    frozen = next(each["command"] for each in advice["candidates"] if each["strategy"] == "feature_extract")
    words = shlex.split(advice["advice"])
    assert words[:2] == ["graft", "train"]
    succeeded(command(folder.parent / "run", "-m", "graft.cli", *words[1:]))
    cache = f"paths.cache={folder.parent / 'cache'}"
    run = graft.train(*shlex.split(frozen)[2:], cache, folder=folder.parent / "frozen", echo=False)
    computed = {each["part"]: each["computed"] for each in run.summary["cache"]["features"]}
    assert computed == {"train": 0, "val": 0, "test": 100}, "advice has seen no test image"


def advise(*overrides: str) -> tuple[AdviseConfig, list[Any], list[str]]:
    return checked(graft.compose(*overrides, task="advise").config, overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("models=[vgg16]",), r"weights of vgg16 are not on this machine.*weights=\{vgg16: FILE\}"),
        (("models=[vgg61]",), r"no network vgg61\. Did you mean vgg16"),
        (("weights={vgg16: /nowhere.pth}",), r"/nowhere\.pth"),
        (("model=vgg16",), r"model: this is what graft advise compares"),
        (("strategy=finetune",), r"models=\[squeezenet1_1,vgg16\]"),
        (("advise.minutes=0",), r"advise\.minutes=0"),
        (("advise.download=true",), r"which networks"),
        (("data=target", "data._target_=examples.Module"), r"examples"),
        (("resume=auto",), r"starts no run"),
        (("models=7",), r"must be a list"),
    ],
)
def test_mistakes_are_refused_with_the_way_out(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises((ConfigError, DataError), match=re.compile(message, re.DOTALL)):
        advise(*words)


def test_a_data_module_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"data\._target_=.*needs single images"):
        advise("data=target", "data._target_=lightning.pytorch.LightningDataModule")


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    draw = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def run(folder: Path, *words: str) -> Any:
    config, found, missing = advise(*QUICK, f"paths.cache={folder}/cache", *words)
    overrides = (*QUICK, f"paths.cache={folder}/cache", *words)
    return advising.run(config, open_data(config), found, missing, advising.Command(overrides), folder)


def test_heads_are_trained_on_the_augmentation_of_the_runs(tmp_path: Path) -> None:
    black = "augment.transforms=[{_target_: torchvision.transforms.v2.ColorJitter, brightness: [0, 0]}]"
    words = (*QUICK, black, "trainer.max_epochs=10", f"paths.cache={tmp_path}/cache")
    [network] = graft.advise(*words, folder=tmp_path / "advice")["networks"]
    assert max(network["stages"].values()) > 0.9
    assert network["trained"] < 0.7, "a head learns nothing from black images"
    [network] = graft.advise(*words, "cache.views=1", folder=tmp_path / "plain")["networks"]
    assert network["trained"] > 0.9, "with one cached view, runs do not augment"


def test_without_stored_features_a_note_says_which_heads_were_not_trained(tmp_path: Path) -> None:
    advice = graft.advise(*QUICK, "cache=none", folder=tmp_path / "advice")
    assert any("cache=none" in note and "vgg_mini" in note for note in advice["notes"])


def test_a_class_with_too_few_images_and_a_time_that_is_too_short_are_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "images", {"oaks": 20, "elms": 3})
    with pytest.raises(DataError, match=r"too few .* of elms; advice needs at least 4"):
        run(tmp_path, "data=folder", f"data.root={root}")
    with pytest.raises(DataError, match=r"vgg_mini is left out: \d+ images .* \(advise\.minutes\)"):
        run(tmp_path, "advise.minutes=1e-5")


def test_a_short_time_is_spent_on_a_stratified_sample(tmp_path: Path) -> None:
    words = (*QUICK, f"paths.cache={tmp_path}/cache")
    config = typed(graft.compose(*words, task="advise").config, AdviseConfig)
    examined = advising.Examined.of(config, open_data(config))
    _, [source], _ = advise(*words)
    slow = replace(advising.prepare(source, examined, advising.Command(words)), forward=1.0, load=0.0)
    probed = advising.probe(slow, config, examined, 51 / advising.SHARE)
    assert len(probed.labels) == 51
    assert [examined.sample(images) for images in (None, 1000, 60, 40)] == [100, 100, 60, 40]
    assert replace(examined, classes=("a", "b", "c", "d")).sample(60) == 80, "20 of each class"
    assert abs(int((probed.labels == 0).sum()) - 25) <= 1


def test_groups_of_the_data_set_are_those_of_the_folds(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "images", {"oaks": 30, "elms": 30})
    words = ("data=folder", f"data.root={root}", "data.group_pattern='/([0-9])'")
    config, _, _ = advise(*QUICK[1:], *words)
    examined = advising.Examined.of(config, open_data(config))
    assert examined.groups == [Path(name).stem[0] for name in examined.images.names]
    rows = np.arange(len(examined.images))
    for fit, rest in advising.Heads(examined, config).folds(rows):
        assert not {examined.groups[row] for row in fit} & {examined.groups[row] for row in rest}
