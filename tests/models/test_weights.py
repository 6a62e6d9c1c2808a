"""Weight files: which load, which are refused, and why."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms._presets import ImageClassification

from graft.data.preprocessing import IMAGENET_MEAN, Preprocessing
from graft.errors import WeightsError
from graft.models import Recipe, build_network
from graft.models.configurations import BUNDLED
from graft.models.families import ours
from graft.models.families import torchvision as torchvision_family
from graft.models.registry import default_normalisation, torchvision_name
from graft.models.weights import default_classes, default_preprocessing, load_weights, locate_weights

SMALL = Recipe("small", table=(8, "M", 16, "M"), batch_norm=True, classifier="pooled", input_size=32)
SQUEEZE = Recipe("squeezenet1_1")


def _trained(recipe: Recipe, classes: int, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(recipe, classes)


def _equal(network: nn.Module, other: nn.Module, names) -> bool:
    ours, theirs = network.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in names)


# Files that fit


@pytest.mark.parametrize("name", ["state.pth", "wrapped.pth", "model.pt", "compiled.ckpt", "plain.safetensors"])
def test_every_kind_of_file_is_read(name, tmp_path):
    trained = _trained(SMALL, 3)
    state = trained.state_dict()
    contents = {
        "state.pth": state,
        "wrapped.pth": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        "model.pt": {"model": state},
        "compiled.ckpt": {
            "state_dict": {f"network._orig_mod.{key}": value for key, value in state.items()}
            | {"loss.weight": torch.ones(3)},
            "graft": {
                "classes": ["a", "b", "c"],
                "preprocessing": Preprocessing(32, 40).to_dict(),
                "recipe": SMALL.to_dict(),
            },
        },
    }
    file = tmp_path / name
    save_file(state, file) if name not in contents else torch.save(contents[name], file)
    network = _trained(SMALL, 3, seed=2)
    report = load_weights(network, SMALL, str(file), keep_head=True)
    assert _equal(network, trained, state)
    assert report.random == ()
    assert report.loaded == tuple(name for name, _ in network.named_parameters())
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    if name == "compiled.ckpt":
        assert report.classes == ("a", "b", "c")
        assert report.preprocessing == Preprocessing(32, 40)


def test_half_precision_weights_are_converted_to_the_networks_precision(tmp_path):
    trained = _trained(SMALL, 3).half()
    save_file(trained.state_dict(), tmp_path / "half.safetensors")
    network = _trained(SMALL, 3, seed=2)
    load_weights(network, SMALL, str(tmp_path / "half.safetensors"))
    assert network.features[0].weight.dtype == torch.float32
    assert torch.equal(network.features[0].weight, trained.features[0].weight.float())


@pytest.mark.parametrize(("classes", "keep_head", "kept"), [(3, True, True), (3, False, False), (5, True, False)])
def test_the_head_is_kept_only_on_request_and_with_the_same_number_of_classes(classes, keep_head, kept, tmp_path):
    save_file(_trained(SMALL, 3).state_dict(), tmp_path / "three.safetensors")
    network = _trained(SMALL, classes, seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items() if key.startswith("classifier")}
    report = load_weights(network, SMALL, str(tmp_path / "three.safetensors"), keep_head=keep_head)
    head = {f"classifier.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(report.random) == (set() if kept else head)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items()) is not kept
    assert ("has 3 classes" in " ".join(report.notes)) is (classes == 5)


def test_convolutions_alone_are_a_trunk_and_the_rest_is_reported_as_random(tmp_path):
    recipe = Recipe("tiny", table=(8, "M", 16), classifier="vgg", average_pool=1, hidden=64)
    state = {key: value for key, value in _trained(recipe, 9).state_dict().items() if key.startswith("features")}
    save_file(state, tmp_path / "features.safetensors")
    network = _trained(recipe, 2, seed=2)
    report = load_weights(network, recipe, str(tmp_path / "features.safetensors"))
    assert report.random == tuple(f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias"))
    assert "classifier.0, classifier.3 stay random" in " ".join(report.notes)


def test_a_classifier_of_nothing_but_nan_counts_as_absent(tmp_path):
    """torchvision's VGG16 IMAGENET1K_FEATURES holds such a one."""
    recipe = Recipe("tiny", table=(8, "M", 16), classifier="vgg", average_pool=1, hidden=64)
    state = _trained(recipe, 9).state_dict()
    hollow = {key: value * (float("nan") if key.startswith("classifier") else 1) for key, value in state.items()}
    torch.save(hollow, tmp_path / "hollow.pth")
    network = _trained(recipe, 2, seed=2)
    report = load_weights(network, recipe, str(tmp_path / "hollow.pth"))
    assert len(report.random) == 6
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


def test_nan_in_the_trunk_is_refused_by_name(tmp_path):
    state = _trained(SMALL, 3).state_dict()
    state["features.0.bias"][0] = float("inf")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match=r"broken\.pth: NaN or infinity in features\.0\.bias"):
        load_weights(_trained(SMALL, 3), SMALL, str(tmp_path / "broken.pth"))


def test_another_classifier_loads_the_trunk_only_with_a_note(tmp_path):
    own = Recipe("vgg_mini", classifier="vgg")
    torch.save(_trained(own, 4).state_dict(), tmp_path / "own.pth")
    for classifier in ("linear", "pooled"):
        recipe = Recipe("vgg_mini", classifier=classifier)
        report = load_weights(_trained(recipe, 2), recipe, str(tmp_path / "own.pth"), keep_head=True)
        assert all(name.startswith("classifier") for name in report.random)
        assert any("only its trunk is loaded" in note for note in report.notes)


def test_without_weights_everything_is_random():
    network = _trained(SMALL, 3)
    report = load_weights(network, SMALL, None)
    assert report.random == tuple(name for name, _ in network.named_parameters())
    assert (report.source, report.sha256, report.loaded, report.preprocessing) == ("random", None, (), None)


def test_older_files_of_densenet_and_files_without_batch_counters_load(tmp_path):
    recipe = Recipe("densenet121")
    trained = _trained(recipe, 1000)
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in trained.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth")
    network = _trained(recipe, 1000, seed=2)
    report = load_weights(network, recipe, str(tmp_path / "old.pth"), keep_head=True)
    assert report.random == ()
    assert len(report.classes) == 1000
    assert _equal(network, trained, report.loaded)


def test_inception_without_its_auxiliary_head_loads(tmp_path):
    recipe = Recipe("inception_v3")
    network = _trained(recipe, 2)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("AuxLogits")}
    torch.save(state, tmp_path / "inception.pth")
    report = load_weights(network, recipe, str(tmp_path / "inception.pth"))
    assert {name.split(".")[0] for name in report.random} == {"AuxLogits", "fc"}


# Files that do not fit


def test_a_wrong_file_names_the_keys_and_does_not_change_the_network(tmp_path):
    state = _trained(SMALL, 3).state_dict()
    state["features.0.wieght"] = state.pop("features.0.weight")
    state["features.4.weight"] = torch.zeros(16, 4, 3, 3)
    torch.save(state, tmp_path / "vgg13-mine.pth")
    network = _trained(SMALL, 3, seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(network, SMALL, str(tmp_path / "vgg13-mine.pth"))
    for word in [
        "missing: features.0.weight",
        "features.0.wieght (is it features.0.weight?)",
        "features.4.weight [16, 4, 3, 3], not [16, 8, 3, 3]",
        "model=small",
        "by its name, vgg13",
    ]:
        assert word in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_file_with_half_a_classifier_is_refused(tmp_path):
    recipe = Recipe("tiny", table=(8, "M", 16), classifier=None, average_pool=None)
    with torch.device("meta"):
        network = build_network(recipe, 2)
    state = {
        key: torch.zeros(1) for key in network.state_dict() if key not in ("classifier.3.weight", "classifier.3.bias")
    }
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(WeightsError, match=r"missing: classifier\.3\.weight, classifier\.3\.bias"):
        load_weights(network, recipe, str(tmp_path / "half.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(suffix, damage, tmp_path):
    file = tmp_path / f"file{suffix}"
    state = _trained(SMALL, 3).state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "noise": bytes(range(256)) * 40, "empty": b""}[damage])
    with pytest.raises(WeightsError, match=rf"file\{suffix}: cannot be read"):
        load_weights(_trained(SMALL, 3), SMALL, str(file))


class _Trap:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: Path(file).write_bytes(pickle.dumps(content, 2))])
def test_a_pickle_that_would_run_code_is_refused(save, tmp_path):
    file, mark = tmp_path / "trap.pth", tmp_path / "sprung"
    save({"features.0.weight": torch.zeros(1), "trap": _Trap(str(mark))}, file)
    with pytest.raises(WeightsError, match=r"trap\.pth"):
        load_weights(_trained(SMALL, 3), SMALL, str(file))
    assert not mark.exists()


def test_a_pickled_network_is_refused_with_advice_on_what_to_save(tmp_path):
    torch.save(_trained(SMALL, 3), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"whole\.pth: refused.*state_dict\(\)"):
        load_weights(_trained(SMALL, 3), SMALL, str(tmp_path / "whole.pth"))


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"lr": 0.1}, tmp_path / "no.pth")
    with pytest.raises(WeightsError, match=r"no\.pth: contains no state dict"):
        load_weights(_trained(SMALL, 3), SMALL, str(tmp_path / "no.pth"))


@pytest.mark.parametrize(
    ("recipe", "weights", "words"),
    [
        (Recipe("vgg16"), "bundled", ["model.weights=bundled", "vgg16"]),
        (Recipe("vgg16"), "defualt", ["no such file", "default"]),
        (Recipe("vgg_custom"), "default", ["no weights for vgg_custom", "strategy=scratch"]),
        (Recipe("vgg16"), "/nowhere/vgg16.pth", ["/nowhere/vgg16.pth: no such file"]),
    ],
)
def test_impossible_weights_are_refused_at_once(recipe, weights, words):
    with pytest.raises(WeightsError) as error:
        locate_weights(recipe, weights)
    assert all(word in str(error.value) for word in words)


def test_a_mistyped_file_name_suggests_the_nearest(tmp_path):
    (tmp_path / "vgg16-features.safetensors").touch()
    with pytest.raises(WeightsError, match=r"Did you mean vgg16-features\.safetensors"):
        locate_weights(Recipe("vgg16"), str(tmp_path / "vgg16-featurs.safetensors"))


# What weights bring along


@pytest.mark.parametrize(
    ("recipe", "weights", "size", "resize"),
    [
        (Recipe("vgg16"), "default", 224, 256),
        (Recipe("inception_v3"), "default", 299, 342),
        (Recipe("inception_v3"), None, 299, 342),
        (Recipe("vgg16", input_size=112), "default", 112, 128),
        (Recipe("vgg16"), None, 224, 256),
        (Recipe("vgg_mini"), None, 32, 32),
        (Recipe("vgg16_cifar"), None, 32, 32),
        (Recipe("efficientnet_b3"), "default", 300, 320),
    ],
)
def test_preprocessing_is_that_of_the_weights_or_the_default(recipe, weights, size, resize):
    preprocessing = default_preprocessing(recipe, weights)
    assert (preprocessing.input_size, preprocessing.resize_size, preprocessing.fit) == (size, resize, "crop")
    assert (preprocessing.mean == IMAGENET_MEAN) is (size > 32)


@pytest.mark.parametrize("name", sorted({*ours.NETWORKS, *torchvision_family.NETWORKS}))
def test_torchvisions_preprocessing_of_the_known_networks_is_the_default(name):
    """`graft inspect` relies on it, in order to answer without torch."""
    recipe = Recipe(name)
    if torchvision_name(recipe) is not None:
        assert default_preprocessing(recipe, "default") == default_normalisation(recipe)


def test_other_weights_of_torchvision_are_loaded_by_name_or_as_a_file(tmp_path):
    recipe = Recipe("vgg16")
    named = default_preprocessing(recipe, "IMAGENET1K_FEATURES")
    assert named.std == (1 / 255,) * 3
    assert default_classes(recipe, "IMAGENET1K_FEATURES") is None
    assert default_classes(recipe, "default")[:2] == ("tench", "goldfish")
    file = tmp_path / "vgg16_features-amdegroot-88682ab5.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    assert default_preprocessing(recipe, str(file)) == named


def test_bundled_weights_contain_classes_and_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "BUNDLED", tmp_path)
    recipe = Recipe("vgg_mini")
    preprocessing = Preprocessing(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    metadata = {"classes": json.dumps(["cat", "dog"]), "preprocessing": json.dumps(preprocessing.to_dict())}
    save_file(_trained(recipe, 2).half().state_dict(), tmp_path / "vgg_mini.safetensors", metadata=metadata)
    assert locate_weights(recipe, "bundled") is None
    assert default_preprocessing(recipe, "bundled") == preprocessing
    assert default_classes(recipe, "bundled") == ("cat", "dog")
    report = load_weights(_trained(recipe, 2), recipe, "bundled", keep_head=True)
    assert (report.classes, report.random) == (("cat", "dog"), ())


def test_bundled_weights_load_completely():
    for file in BUNDLED.glob("*.safetensors"):
        recipe = Recipe(file.stem)
        classes = default_classes(recipe, "bundled")
        assert load_weights(build_network(recipe, len(classes)), recipe, "bundled", keep_head=True).random == ()


# Real files


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_squeezenet_names_real_ants_and_bees(name, shared_weights, shared_data):
    recipe = Recipe(name)
    network = build_network(recipe, 1000)
    report = load_weights(network, recipe, str(shared_weights / f"{name}-imagenet.safetensors"), keep_head=True)
    assert report.random == ()
    look = ImageClassification(crop_size=report.preprocessing.input_size, resize_size=report.preprocessing.resize_size)
    right = 0
    for folder, word in [("ants", "ant"), ("bees", "bee")]:
        for file in sorted((shared_data / "hymenoptera_data" / "val" / folder).iterdir())[:5]:
            with Image.open(file) as image, torch.inference_mode():
                best = network.eval()(look(image.convert("RGB"))[None]).topk(5).indices[0]
            right += word in [report.classes[i] for i in best]
    assert right >= 6


def test_the_vgg16_trunk_loads_and_its_classifier_is_random(shared_weights):
    recipe = Recipe("vgg16")
    network = build_network(recipe, 2)
    report = load_weights(network, recipe, str(shared_weights / "vgg16-features.safetensors"))
    assert len(report.loaded) == 26
    assert {name.split(".")[0] for name in report.random} == {"classifier"}
    assert network.features[0].weight.dtype == torch.float32


def test_a_file_of_another_network_is_identified_by_name(shared_weights):
    recipe = Recipe("vgg11")
    with torch.device("meta"):
        network = build_network(recipe, 2)
    with pytest.raises(WeightsError, match=r"(?s)missing: features\.3\.weight.*by its name, vgg16"):
        load_weights(network, recipe, str(shared_weights / "vgg16-features.safetensors"))


PREFIXES = ["module.", "model.", "net.", "backbone.", "model.module.", "net.backbone.", "module._orig_mod.model."]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_removed_and_other_entries_are_named(prefix: str, ending: str, tmp_path: Path) -> None:
    recipe = Recipe("vgg_mini")
    torch.manual_seed(1)
    trained = build_network(recipe, 3).state_dict()
    file = tmp_path / f"wrapped.{ending}"
    content = {f"{prefix}{key}": value for key, value in trained.items()} | {"criterion.weight": torch.ones(3)}
    save_file(content, file) if ending == "safetensors" else torch.save({"state_dict": content}, file)
    network = build_network(recipe, 3)
    report = load_weights(network, recipe, str(file), keep_head=True)
    assert all(torch.equal(value, trained[key]) for key, value in network.state_dict().items())
    assert report.random == ()
    assert report.notes == ("Ignored, because they are not in the network: criterion.weight.",)
