"""Custom networks named by model._target_ are trained, restored, cut and loaded like Graft's own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_training_step import ONE_STEP, composed, run_one_step
from safetensors.torch import save_file
from torch import nn

from graft.data.preprocessing import IMAGENET_MEAN, Preprocessing
from graft.errors import ConfigError, RecordError, WeightsError
from graft.features.cut import find_cut
from graft.learning.restore import Restored, from_checkpoint
from graft.models import Recipe, build_network, suggest_model
from graft.models.configured import preprocessing_of, recipe_of
from graft.models.heads import head_modules
from graft.models.registry import family_of
from graft.models.weights import default_preprocessing, load_weights
from graft.tasks.checks import settle
from graft.transfer.stages import stages_of

PACKAGE = '''
import torch
from torch import nn


class SmallNet(nn.Module):
    """Convolution, ReLU, convolution, average, linear layer."""

    preprocessing = {"input_size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}

    def __init__(self, num_classes: int, width: int = 4, scales: list[float] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3), nn.ReLU())
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean_image", torch.zeros(3))

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))

    def fit_to(self, images):
        self.mean_image.copy_(images.mean((0, 2, 3)))


class Declared(nn.Module):
    """Its first child is the head, and its parts are called otherwise than the stages."""

    head = "to_logits"
    stages = {"early": ["first"], "late": ["second", "scale"]}

    def __init__(self, num_classes, input_size=32):
        super().__init__()
        self.to_logits = nn.Linear(4, num_classes)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.side = input_size

    def forward(self, images):
        return self.to_logits(self.scale * self.second(self.first(images)).mean((2, 3)))


class Unfinished(nn.Module):
    stages = {"early": ["first"]}
    head = ("second",)
    preprocessing = {"mena": (0.5, 0.5, 0.5)}

    def __init__(self, num_classes):
        super().__init__()
        self.first, self.middle, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, num_classes)


def made_by_a_function(num_classes, *, width=2):
    return SmallNet(num_classes, width)


def without_classes(width=2):
    return SmallNet(3, width)


def no_network(num_classes):
    return num_classes
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a package of networks that can be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "own_networks"
    sys.modules.pop("own_networks", None)


def small(package: str, **arguments: Any) -> Recipe:
    return Recipe("SmallNet", target=f"{package}.SmallNet", arguments=arguments)


def words(package: str, *others: str) -> tuple[str, ...]:
    name = f"model._target_={package}.SmallNet"
    return ("model=target", name, "data=digits", "strategy=scratch", *ONE_STEP, "trainer.accelerator=cpu", *others)


# Building


def test_the_target_is_called_with_its_arguments_and_the_number_of_classes(package: str) -> None:
    network = build_network(small(package, width=8), 5)
    assert type(network).__module__ == package
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert network.stem[0].out_channels == 8
    assert build_network(Recipe("f", target=f"{package}.made_by_a_function"), 2).stem[0].out_channels == 2


def test_the_input_size_is_passed_if_the_target_has_that_argument(package: str) -> None:
    recipe = Recipe("Declared", target=f"{package}.Declared", input_size=48)
    assert build_network(recipe, 2).side == 48
    assert default_preprocessing(recipe, None).input_size == 48
    build_network(Recipe("SmallNet", target=f"{package}.SmallNet", input_size=48), 2)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("{}.SmallNet", {"widht": 8}, r"model\.widht=8.*Did you mean width"),
        ("{}.SmalNet", {}, r"model\._target_=.*SmalNet.*SmallNet"),
        ("no_such_package.Net", {}, "no module 'no_such_package'"),
        ("{}.without_classes", {}, "does not take num_classes"),
        ("{}.no_network", {}, "makes a int, not a torch.nn.Module"),
        ("{}.SmallNet", {"width": "x"}, r"model\._target_=.*cannot be built"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_its_key(
    package: str, target: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(Recipe("x", target=target.format(package), arguments=arguments), 2).to("cpu")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"width": object()}, r"model\.width"),
        ({"layers": {"a": [1, torch.nn.ReLU]}}, r"model\.layers"),
        ({"backbone": {"_target_": "os.system"}}, r"model\.backbone"),
        ({"_args_": [1]}, r"model\._args_"),
    ],
)
def test_arguments_are_plain_values(package: str, arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        small(package, **arguments)


def test_an_unknown_argument_on_the_command_line_is_refused_before_torch_is_imported(package: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.widht=8.*Did you mean width"):
        settle(composed(*words(package, "+model.widht=8")))


def test_a_key_that_a_graft_network_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.batchnorm=True.*Did you mean batch_norm"):
        settle(composed("+model.batchnorm=true"))


def test_registered_networks_are_suggested_with_their_library() -> None:
    assert suggest_model("resnet50") == " Did you mean model=torchvision model.name=resnet50?"
    assert suggest_model("resnet50.a1_in1k") == " Did you mean model=timm model.name=resnet50.a1_in1k?"
    assert suggest_model("vgg61").startswith(" Did you mean vgg16 ")
    assert suggest_model("smalnet", ["smallnet"]) == " Did you mean smallnet?"
    assert suggest_model("qqqq") == ""


# Parts


def test_the_default_head_is_the_last_layer_even_where_a_module_is_called_head(package: str) -> None:
    network = build_network(small(package), 3)
    assert head_modules(network) == ("head",)
    stages = stages_of(network)
    assert (stages[0].name, stages[-1].name) == ("stem", "head")
    assert all(sum(stage.holds(name) for stage in stages) == 1 for name, _ in network.named_parameters())


def test_declared_stages_and_head_are_used(package: str) -> None:
    network = build_network(Recipe("Declared", target=f"{package}.Declared"), 3)
    assert head_modules(network) == ("to_logits",)
    stages = stages_of(network)
    assert [(stage.name, stage.modules) for stage in stages] == [
        ("early", ("first",)),
        ("late", ("second", "scale")),
        ("head", ("to_logits",)),
    ]


def test_stages_that_omit_a_parameter_are_refused(package: str) -> None:
    network = build_network(Recipe("x", target=f"{package}.Unfinished"), 3)
    with pytest.raises(ConfigError, match=r"Unfinished\.stages: the parameter middle\.weight is in no stage"):
        stages_of(network)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"early": ["frist"], "late": ["second", "scale"]}, r"early=frist.*Did you mean first"),
        ({"early": ["first", "second"], "late": ["second", "scale"]}, r"second\.weight is in early and late"),
        ({"early": "first", "late": ["second", "scale"], "head": ["to_logits"], "more": ["to_logits.weight"]}, "in"),
        ({"head": ["to_logits"], "rest": ["first", "second", "scale"]}, "the last stage must be head"),
        ([], "must map"),
    ],
)
def test_stages_that_do_not_partition_the_network_are_refused(package: str, declared: Any, message: str) -> None:
    network = build_network(Recipe("x", target=f"{package}.Declared"), 3)
    network.stages = declared
    with pytest.raises(ConfigError, match=message):
        stages_of(network)


def test_a_frozen_custom_network_is_cut_exactly(package: str) -> None:
    torch.manual_seed(0)
    network = build_network(small(package), 3).train()
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("head")}
    images = torch.randn(2, 3, 16, 16)
    cut = find_cut(network, frozen, images)
    assert torch.equal(cut.suffix(network, *cut.prefix(network, images)), network(images))
    assert not any("head" in str(node.target) for node in cut.graph.nodes)


# Preprocessing


def test_declared_preprocessing_is_used_and_follows_the_input_size(package: str) -> None:
    expected = Preprocessing(16, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert default_preprocessing(small(package), None) == expected
    resized = Recipe("SmallNet", target=f"{package}.SmallNet", input_size=20)
    assert default_preprocessing(resized, None).input_size == 20
    config = composed(*words(package, "data.preprocess.input_size=24"))
    assert preprocessing_of(config).input_size == 24


def test_without_a_declaration_images_are_normalised_for_imagenet_at_224(package: str) -> None:
    found = default_preprocessing(Recipe("x", target=f"{package}.Declared"), None)
    assert (found.input_size, found.resize_size, found.mean) == (224, 256, IMAGENET_MEAN)


def test_a_misspelt_declaration_names_the_nearest(package: str) -> None:
    with pytest.raises(ConfigError, match=r"Unfinished\.preprocessing\.mena.*Did you mean mean"):
        default_preprocessing(Recipe("x", target=f"{package}.Unfinished"), None)


# Weights


def test_a_weight_file_is_loaded_and_the_head_stays_random(package: str, tmp_path: Path) -> None:
    recipe, file = small(package), tmp_path / "weights.safetensors"
    trained = build_network(recipe, 7)
    save_file(trained.state_dict(), file)
    network = build_network(recipe, 2)
    report = load_weights(network, recipe, str(file))
    assert report.random == ("head.weight", "head.bias")
    assert torch.equal(network.body[0].weight, trained.body[0].weight)
    assert report.preprocessing.mean == (0.5, 0.4, 0.3)
    kept = build_network(recipe, 7)
    assert load_weights(kept, recipe, str(file), keep_head=True).random == ()
    assert torch.equal(kept.head.weight, trained.head.weight)


def test_published_and_bundled_weights_are_refused(package: str) -> None:
    recipe = small(package)
    for weights in ("default", "bundled", "IMAGENET1K_V1"):
        with pytest.raises(WeightsError, match=f"model.weights={weights}"):
            load_weights(build_network(recipe, 2), recipe, weights)


# Checkpoints


@pytest.fixture(scope="module")
def trained(package: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        config = composed(*words(package, "+model.width=6", "+model.scales=[0.5,1.0]"))
        run_one_step(config, folder, patch)
    return folder / "checkpoints" / "best.ckpt"


def restored_logits(restored: Restored) -> torch.Tensor:
    return restored.network(torch.ones(2, 3, 16, 16))


def test_a_trained_custom_network_is_restored_where_its_package_is_trusted(trained: Path, package: str) -> None:
    restored = from_checkpoint(trained, [package])
    assert type(restored.network).__name__ == restored.recipe.name == "SmallNet"
    assert restored.recipe.arguments == {"width": 6, "scales": [0.5, 1.0]}
    assert restored.preprocessing.mean == (0.5, 0.4, 0.3)
    saved = torch.load(trained, weights_only=True)["state_dict"]
    assert torch.equal(restored.network.stem[0].weight, saved["network.stem.0.weight"])
    assert restored_logits(restored).shape == (2, 10)
    assert restored.network.mean_image.abs().sum() > 0, "fit_to was called"


def test_a_custom_network_is_not_imported_unless_it_is_trusted(
    trained: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, package, raising=False)
    for trust in ([], ["another"]):
        with pytest.raises(ConfigError, match=rf"model\._target_='{package}\.SmallNet'.*\n.*trust=\[{package}\]"):
            from_checkpoint(trained, trust)
        assert package not in sys.modules


def with_recipe(trained: Path, folder: Path, **recipe: Any) -> Path:
    content = torch.load(trained, weights_only=True)
    content["graft"]["recipe"] |= recipe
    torch.save(content, folder / "best.ckpt")
    return folder / "best.ckpt"


def test_where_the_package_is_missing_the_way_out_is_named(trained: Path, tmp_path: Path) -> None:
    file = with_recipe(trained, tmp_path, target="missing_package.Net")
    with pytest.raises(ConfigError, match=r"best\.ckpt: .*missing_package.*\n?.*Install it, or start the command in"):
        from_checkpoint(file, ["missing_package"])


def test_trusting_a_package_does_not_trust_its_imports(trained: Path, package: str, tmp_path: Path) -> None:
    file = with_recipe(trained, tmp_path, target=f"{package}.torch.hub.load", arguments={"repo_or_dir": "a/b"})
    with pytest.raises(ConfigError, match=r"torch\.hub"):
        from_checkpoint(file, [package])


def test_a_registered_network_needs_no_trust_unless_it_would_read_files() -> None:
    def foreign(target: str, **arguments: Any) -> list[str]:
        recipe = Recipe("x", target=target, arguments=arguments)
        return [next(family_of(recipe).foreign_code(recipe), "")]

    assert foreign("torchvision.models.resnet18") == [""]
    assert foreign("timm.models.resnet18", drop_rate=0.1) == [""]
    assert foreign("torchvision.models.resnet18", weights="DEFAULT") == ["torchvision.models.resnet18"]
    assert foreign("timm.models.resnet18", pretrained_cfg={"file": "x"}) == ["timm.models.resnet18"]
    assert foreign("torchvision.models.alexnet.torch.hub.load") == ["torchvision.models.alexnet.torch.hub.load"]


@pytest.mark.parametrize(
    "recipe",
    [
        {"target": "os"},
        {"target": "os.system; import x"},
        {"arguments": {"width": "${oc.env:HOME}"}},
        {"arguments": {"part": {"_target_": "os.system"}}},
        {"arguments": {"_args_": ["x"]}},
        {"arguments": {"a": [[[[[[[[[[1]]]]]]]]]]}},
        {"arguments": [1]},
    ],
)
def test_a_recorded_target_and_its_arguments_have_limits(
    trained: Path, package: str, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    with pytest.raises(RecordError, match=rf"best\.ckpt: recipe\.{next(iter(recipe))}.*Expected: "):
        from_checkpoint(with_recipe(trained, tmp_path, **recipe), [package])


def test_checkpoints_of_older_versions_have_no_target(tmp_path: Path) -> None:
    old = {"name": "vgg_mini", "table": None, "batch_norm": None, "classifier": None, "dropout": None,
           "input_size": None, "average_pool": None, "hidden": None, "family": None}  # fmt: skip
    assert Recipe.from_dict(old) == Recipe("vgg_mini")
    assert Recipe.from_dict(old | {"name": "resnet18", "family": "timm"}) == Recipe("resnet18", family="timm")


def test_a_recipe_survives_json(package: str) -> None:
    recipe = small(package, width=3, layers={"a": [1, None, "x"]})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe_of(composed(*words(package, "+model.width=3"))) == small(package, width=3)


def test_an_export_is_loaded_by_calling_the_target(package: str) -> None:
    recipe = small(package, width=3)
    made = family_of(recipe).constructor(recipe, build_network(recipe, 4), 4)
    assert (made.library, made.line) == (package, f"{package}.SmallNet(width=3, num_classes=4)")
    assert isinstance(made.make(), nn.Module)
