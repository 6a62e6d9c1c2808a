"""Every torchvision classifier, and one of each of timm's families: its head, its stages, what its policies freeze,
what its weights want of an image.

Built on the meta device, where a network of 600 million parameters costs nothing. The fast suite takes a few families;
`-m slow` takes them all."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from graft.data.transforms import eval_transform
from graft.models import Recipe, build_network
from graft.models.families.torchvision import classifiers as torchvision_classifiers
from graft.models.heads import head_modules
from graft.models.weights import default_preprocessing
from graft.transfer import Policy, Stage, TransferPlan, freeze, stages_of
from graft.transfer.groups import parameter_groups

FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50",
    "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip
OF_TIMM = (
    "convnext_atto", "levit_128s", "mobilenetv3_small_050", "pit_ti_224", "resnet10t", "selecsls42",
    "swin_tiny_patch4_window7_224", "vgg11_bn", "vit_tiny_patch16_224",
)  # fmt: skip
FEEDS_OTHERWISE = ("deepseek_vit", "gemma4_vit", "naflexvit", "qwen3_vit")
"""timm's modules whose networks take images as lists of patches."""
INTERWOVEN = ("cait", "coat", "efficientvim")
"""timm's networks that use a part again, or several exits: no order of their stages is that of the forward pass."""


def _one_of_each_timm_module() -> Iterator[str]:
    """The first that calls itself small, or else the first."""
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        if names and module not in FEEDS_OTHERWISE:
            yield next(
                (name for name in names if re.search(r"tiny|nano|atto|xxs|18|_s\b|small|050|b0", name)), names[0]
            )


def _cases(names: Iterable[str], fast: tuple[str, ...], family: str | None = None) -> list[Any]:
    library, slow = family or "torchvision", pytest.mark.slow
    return [
        pytest.param(Recipe(name, family=family), id=f"{library}-{name}", marks=() if name in fast else slow)
        for name in sorted(names)
    ]


TORCHVISION = _cases(torchvision_classifiers(), FAMILIES)
EVERY = [*TORCHVISION, *_cases({*OF_TIMM, *_one_of_each_timm_module()}, OF_TIMM, "timm")]
FINETUNE = {"features": 0.1, "classifier": 0.5, "head": 1.0}


def on_meta(recipe: Recipe) -> nn.Module:
    """The network for 7 classes, without memory for its parameters."""
    if not recipe.name.startswith("regnet") or recipe.family == "timm":
        with torch.device("meta"):
            return build_network(recipe, 7)
    with pytest.MonkeyPatch.context() as patch:  # RegNet computes its widths with tensors: built on the CPU, not drawn
        for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
        return build_network(recipe, 7).to("meta")


@pytest.fixture(scope="module", params=EVERY)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


@pytest.fixture(scope="module")
def network(recipe: Recipe) -> nn.Module:
    return on_meta(recipe)


@pytest.fixture(scope="module")
def stages(network: nn.Module) -> tuple[Stage, ...]:
    return stages_of(network)


def parameters_in(network: nn.Module, stage: Stage) -> list[str]:
    return [key for key, _ in network.named_parameters() if stage.holds(key)]


def order_of_use(network: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the parameters as a forward pass in training mode comes by the modules that own them."""
    seen: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, own=own: seen.extend(own))
        for key, module in network.named_modules()
        if key and (own := [f"{key}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)])
    ]
    size = default_preprocessing(recipe, None).input_size
    network.train()(torch.empty(2, 3, size, size, device="meta"))
    network.eval()
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(seen))


def test_the_head_gives_logits_of_the_requested_classes(recipe: Recipe, network: nn.Module) -> None:
    size = default_preprocessing(recipe, None).input_size
    logits = network.eval()(torch.empty(1, 3, size, size, device="meta"))
    assert logits.shape == (1, 7)
    assert all(len(network.get_submodule(head).weight) == 7 for head in head_modules(network))


def test_the_stages_hold_each_parameter_once_in_the_order_of_the_forward_pass(
    recipe: Recipe, network: nn.Module, stages: tuple[Stage, ...]
) -> None:
    for key, _ in network.named_parameters():
        assert sum(stage.holds(key) for stage in stages) == 1, key
    used = [key for key in order_of_use(network, recipe) if not key.lower().startswith("aux")]
    order = [next(i for i, stage in enumerate(stages) if stage.holds(key)) for key in used]
    if recipe.family == "timm":  # side branches and several heads stand beside each other above the trunk
        trunk = sum(stage.group not in ("classifier", "head") for stage in stages)
        order = [min(place, trunk) for place in order]
    if not recipe.name.startswith(INTERWOVEN):
        assert order == sorted(order)
    assert set(order) >= {i for i, stage in enumerate(stages) if stage.group not in ("aux", "classifier", "head")}
    assert stages[-1].name == "head"
    assert 4 <= len({stage.name for stage in stages}) == len(stages)


def test_no_stage_is_the_whole_trunk(network: nn.Module, stages: tuple[Stage, ...]) -> None:
    trunk = [stage for stage in stages if stage.group not in ("head", "classifier")]
    sizes = {key: parameter.numel() for key, parameter in network.named_parameters()}
    shares = [sum(sizes[key] for key in parameters_in(network, stage)) for stage in trunk]
    assert max(shares) < 0.97 * sum(shares)


def plan(network: nn.Module, stages: tuple[Stage, ...], policy: str, **options: Any) -> TransferPlan:
    return TransferPlan(network, stages, Policy.of(getattr(freeze, policy), **options))


def test_the_policies_freeze_their_parameters_and_never_the_head(network: nn.Module, stages: tuple[Stage, ...]) -> None:
    names = {key for key, _ in network.named_parameters()}
    heads = re.compile("|".join(re.escape(head) for head in head_modules(network)))
    head = {key for key in names if heads.match(key)}
    above = head | {key for stage in stages if stage.group == "classifier" for key in parameters_in(network, stage)}
    assert plan(network, stages, "none").trainable(0) == names
    assert plan(network, stages, "backbone").trainable(0) == head
    assert plan(network, stages, "features").trainable(0) == above
    gradual = plan(network, stages, "gradual")
    assert gradual.trainable(0) == head
    groups = list(dict.fromkeys(stage.group for stage in stages))
    for epoch, group in enumerate(reversed(groups)):
        fresh = gradual.trainable(epoch) - (gradual.trainable(epoch - 1) if epoch else set())
        assert fresh == {key for stage in stages if stage.group == group for key in parameters_in(network, stage)}
    assert gradual.trainable(len(groups) - 1) == names


def test_frozen_modules_are_in_evaluation_mode(network: nn.Module, stages: tuple[Stage, ...]) -> None:
    backbone = plan(network, stages, "backbone")
    network.train()
    backbone.set_modes(0)
    norms = (nn.modules.batchnorm._BatchNorm, nn.Dropout, torchvision.ops.StochasticDepth)
    for key, module in network.named_modules():
        if isinstance(module, norms):
            assert module.training == stages[-1].holds(key), key
    network.eval()


def test_finetuning_has_learning_rates_for_features_classifier_and_head(
    network: nn.Module, stages: tuple[Stage, ...]
) -> None:
    groups = parameter_groups(network, stages, 1.0, multipliers=FINETUNE)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in network.parameters())
    assert {group["name"]: group["lr"] for group in groups} == {
        stage.group: FINETUNE.get(stage.group, 0.1) for stage in stages
    }


def test_layer_decay_falls_from_the_head_to_the_stem(network: nn.Module, stages: tuple[Stage, ...]) -> None:
    groups = parameter_groups(network, stages, 1.0, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups}
    way = [stage.name for stage in stages if stage.group != "aux"]
    assert [rates[name] for name in way] == [0.5 ** (len(way) - 1 - i) for i in range(len(way))]


@pytest.mark.parametrize("described", TORCHVISION)
def test_evaluation_pixels_equal_those_of_torchvisions_transforms(described: Recipe) -> None:
    values = np.random.RandomState(0).randint(0, 256, (30, 45, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    for entry in torchvision.models.get_model_weights(described.name):
        ours = default_preprocessing(described, entry.name)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.mean, ours.std))
        theirs = entry.transforms()(picture)
        torch.testing.assert_close((eval_transform(ours)(picture) / 255 - mean) / std, theirs, rtol=1e-5, atol=1e-4)
