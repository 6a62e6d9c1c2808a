"""Learning rates per parameter group: one structure from step 0 for every network."""

import pytest
import torch

from graft.config.schema import FreezeConfig, OptimizerConfig, StrategyConfig
from graft.errors import ConfigError
from graft.models import Recipe, build_network
from graft.models.families import ours, torchvision
from graft.transfer import plan_transfer, stages_of
from graft.transfer.groups import parameter_groups

DEFAULT = {"features": 0.1, "classifier": 0.5, "head": 1.0}


def _groups(name, base_lr=1.0, **options):
    with torch.device("meta"):
        network = build_network(Recipe(name), 5)
    return network, parameter_groups(network, stages_of(network), base_lr, **options)


def _rates(groups) -> dict[str, float]:
    return {group["name"]: pytest.approx(group["lr"]) for group in groups}


@pytest.mark.parametrize("name", [*ours.NETWORKS, *torchvision.NETWORKS, "efficientnet_b0"])
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_every_parameter_is_in_one_group_and_the_default_multipliers_serve_all(name, decay_norm_and_bias):
    network, groups = _groups(name, weight_decay=0.5, multipliers=DEFAULT, decay_norm_and_bias=decay_norm_and_bias)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        stem = group["name"].removesuffix("/no_decay")
        assert group["lr"] == DEFAULT.get(stem, 0.1)
        flat = {parameter.ndim <= 1 for parameter in group["params"]}
        if decay_norm_and_bias:
            assert group["weight_decay"] == 0.5
        else:
            assert flat == {group["name"].endswith("/no_decay")}
            assert group["weight_decay"] == (0.0 if True in flat else 0.5)


def test_an_optimizer_accepts_the_groups_unchanged():
    _, groups = _groups("vgg_mini", multipliers=DEFAULT, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("features", 0.1, 0.1),
        ("head", 1.0, 0.1),
    ]


def test_the_three_learning_rates_of_the_notebook_are_the_defaults():
    _, groups = _groups("vgg16", base_lr=1e-3, multipliers=DEFAULT)
    assert _rates(groups) == {"features": 1e-4, "classifier": 5e-4, "head": 1e-3}


def test_the_multiplier_of_a_group_overrides_that_of_features():
    _, groups = _groups("resnet18", multipliers={"features": 0.1, "layer4": 0.3})
    assert _rates(groups) == {
        "stem": 0.1, "layer1": 0.1, "layer2": 0.1, "layer3": 0.1, "layer4": 0.3, "head": 1.0,
    }  # fmt: skip


def test_a_stage_with_a_multiplier_is_a_separate_group():
    _, groups = _groups("vgg11", multipliers={"features": 0.1, "block5": 0.2})
    assert _rates(groups) == {"features": 0.1, "block5": 0.2, "classifier": 1.0, "head": 1.0}


def test_layer_decay_lowers_the_rate_block_by_block():
    _, groups = _groups("vgg11", base_lr=2.0, multipliers=DEFAULT, layer_decay=0.5)
    names = ["block1", "block2", "block3", "block4", "block5", "classifier.0", "classifier.3", "head"]
    assert _rates(groups) == {name: 2.0 * 0.5 ** (7 - i) for i, name in enumerate(names)}


def test_an_auxiliary_branch_does_not_count_as_a_layer():
    _, groups = _groups("inception_v3", layer_decay=0.5)
    assert _rates(groups) == {
        "stem": 0.5**4, "Mixed_5": 0.5**3, "Mixed_6": 0.5**2, "aux": 0.5**2, "Mixed_7": 0.5, "head": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "vgg11",
            {"multipliers": {"feature": 0.1}},
            r'"feature".*Did you mean features.*features, classifier, head',
        ),
        ("vgg11", {"multipliers": {"layer1": 0.1}}, r'"layer1" is no group of this network'),
        ("resnet18", {"multipliers": {"layer5": 0.1}}, r"layer4.*stem, layer1"),
        ("vgg11", {"multipliers": {"head": -1}}, r"lr_multipliers\.head=-1"),
        ("vgg11", {"layer_decay": 1.5}, r"layer_decay=1\.5"),
        ("vgg11", {"layer_decay": 0.0}, r"layer_decay=0"),
    ],
)
def test_a_multiplier_of_an_unknown_stage_names_the_stages(name, options, words):
    with pytest.raises(ConfigError, match=words):
        _groups(name, **options)


def test_a_plan_comes_from_the_configuration():
    strategy = StrategyConfig(lr_multipliers=DEFAULT, decay_norm_and_bias=False)
    freeze = FreezeConfig(_target_="graft.transfer.freeze.features")
    network = build_network(Recipe("vgg_mini"), 2)
    plan = plan_transfer(network, strategy, freeze, OptimizerConfig(lr=0.1, weight_decay=0.01))
    assert {group["name"] for group in plan.groups} == {
        "features",
        "features/no_decay",
        "head",
        "head/no_decay",
    }
    assert plan.static
    assert all(name.startswith("classifier") for name in plan.trainable(0))
