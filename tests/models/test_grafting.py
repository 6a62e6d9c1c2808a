"""Initialising a new head from rows of the pretrained head."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import graft
from graft.config.registration import plain
from graft.data.reading import read_image
from graft.data.transforms import eval_transform
from graft.errors import ConfigError
from graft.models import Recipe, build_network
from graft.models.heads import head_modules
from graft.models.weights import load_weights
from graft.tasks.checks import settle

CLASSES = ("ants", "bees")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """An AlexNet of 1,000 classes, which counts as ImageNet's."""
    torch.manual_seed(1)
    network = build_network(Recipe("alexnet"), 1000)
    save_file(network.state_dict(), tmp_path / "alexnet.safetensors")
    return tmp_path / "alexnet.safetensors"


def test_each_row_of_the_head_is_that_of_its_class_or_the_mean_of_several(imagenet: Path) -> None:
    torch.manual_seed(0)
    network = build_network(Recipe("alexnet"), 2)
    origins = {"ants": "ant", "bees": ["bee", "fly"]}
    report = load_weights(network, Recipe("alexnet"), str(imagenet), classes=CLASSES, head_from=origins)
    old, new = load_file(imagenet), network.state_dict()
    for key in ("classifier.6.weight", "classifier.6.bias"):
        assert torch.equal(new[key][0], old[key][310])  # ImageNet's ant, bee and fly are classes 310, 309 and 308
        assert torch.equal(new[key][1], (old[key][309] + old[key][308]) / 2)
    assert not report.random
    assert report.notes == ("The head is initialised from the weights: ants from ant, bees from bee and fly.",)


def test_an_unmatched_class_stays_randomly_initialised(imagenet: Path) -> None:
    torch.manual_seed(0)
    network = build_network(Recipe("alexnet"), 2)
    drawn = network.state_dict()["classifier.6.weight"][0].clone()
    report = load_weights(network, Recipe("alexnet"), str(imagenet), classes=CLASSES, head_from={"bees": "bee"})
    head = network.state_dict()["classifier.6.weight"]
    assert torch.equal(head[0], drawn)
    assert torch.equal(head[1], load_file(imagenet)["classifier.6.weight"][309])
    assert report.random == ("classifier.6.weight", "classifier.6.bias")
    assert report.notes[0].endswith("bees from bee; 1 of 2 classes start randomly initialised.")


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({"ant": "ant"}, r"head_from\.ant: the data set has no class of this name. Did you mean ants"),
        ({"bees": "honey bee"}, r"head_from\.bees=honey bee: the weights have no class of this name\."),
        ({"bees": ["bee", "hornbil"]}, r"head_from\.bees=hornbil: .* Did you mean hornbill"),
    ],
)
def test_missing_class_names_are_refused(imagenet: Path, origins: dict[str, str], message: str) -> None:
    network = build_network(Recipe("alexnet"), 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_weights(network, Recipe("alexnet"), str(imagenet), classes=CLASSES, head_from=origins)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_weights_without_class_names_are_refused(tmp_path: Path) -> None:
    network = build_network(Recipe("alexnet"), 7)
    save_file(network.state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(ConfigError, match="have no head with class names"):
        load_weights(
            build_network(Recipe("alexnet"), 2),
            Recipe("alexnet"),
            str(tmp_path / "seven.safetensors"),
            classes=CLASSES,
            head_from={"ants": "ant"},
        )


def test_ants_and_bees_are_classified_before_any_training(shared_data: Path, shared_weights: Path) -> None:
    recipe = Recipe("squeezenet1_1")
    network = build_network(recipe, 2)
    weights = str(shared_weights / "squeezenet1_1-imagenet.safetensors")
    report = load_weights(network, recipe, weights, classes=CLASSES, head_from={"ants": "ant", "bees": "bee"})
    assert head_modules(network) == ("classifier.1",)
    preprocessing = report.preprocessing
    assert preprocessing is not None
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (preprocessing.mean, preprocessing.std))
    right = 0
    for label, name in enumerate(CLASSES):
        for path in sorted((shared_data / "hymenoptera_data" / "val" / name).glob("*.jpg"))[:20]:
            image = (eval_transform(preprocessing)(read_image(path)) / 255 - mean) / std
            with torch.no_grad():
                right += int(network.eval()(image[None]).argmax()) == label
    assert right >= 36  # of 40


@pytest.mark.parametrize("words", ["{1: 7, 2: [3, daisy]}", "{1: '7', 2: ['3', daisy]}"])
def test_numeric_class_names_are_matched(words: str, tmp_path: Path) -> None:
    file = tmp_path / "numbers.safetensors"
    names = ["3", "7", "daisy"]
    torch.manual_seed(1)
    save_file(build_network(Recipe("alexnet"), 3).state_dict(), file, metadata={"classes": json.dumps(names)})
    overrides = ("model=alexnet", f"model.weights={file}", f"model.head_from={words}")
    model = plain(settle(graft.compose(*overrides).config).model)
    network = build_network(Recipe("alexnet"), 2)
    report = load_weights(network, Recipe("alexnet"), str(file), classes=("1", "2"), head_from=model["head_from"])
    (head,) = head_modules(network)
    old, new = load_file(file)[f"{head}.weight"], network.state_dict()[f"{head}.weight"]
    assert torch.equal(new[0], old[1])
    assert torch.equal(new[1], (old[0] + old[2]) / 2)
    assert report.notes[-1] == "The head is initialised from the weights: 1 from 7, 2 from 3 and daisy."
