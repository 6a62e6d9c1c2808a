"""A network cut in two is the same network, to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graft.config.schema import FreezeConfig, OptimizerConfig, StrategyConfig
from graft.features.cut import Cut, NoCut, find_cut
from graft.models import Recipe, build_network
from graft.transfer.plan import TransferPlan, plan_transfer


def planned(name: str, policy: str, **options: Any) -> TransferPlan:
    torch.manual_seed(0)
    network = build_network(Recipe(name), 3)
    freeze = FreezeConfig(_target_=f"graft.transfer.freeze.{policy}", **options)
    return plan_transfer(network, StrategyConfig(), freeze, OptimizerConfig(lr=0.1))


def cut_in(plan: TransferPlan, epoch: int, images: Tensor, *, training: bool) -> Cut:
    plan.network.train(training)
    if training:
        plan.set_modes(epoch)
    plan.apply(epoch)
    return find_cut(plan.network, plan.untouched(epoch), images)


CUTS = {  # network, side of its images, policy, epoch: where training and evaluation are cut
    ("vgg_mini", 32, "backbone", 0): ("avgpool/flatten", "avgpool/flatten"),
    ("vgg11_bn", 64, "features", 0): ("avgpool/flatten", "avgpool/flatten"),
    ("vgg11_bn", 64, "backbone", 0): (
        "classifier.4",
        "classifier.4",
    ),  # before its Dropout, which is frozen and inactive
    ("alexnet", 64, "gradual", 1): ("avgpool/flatten", "avgpool/flatten"),  # before a Dropout, active only in training
    ("resnet18", 64, "gradual", 1): ("layer3.1.relu", "layer3.1.relu"),
    ("squeezenet1_1", 64, "backbone", 0): ("features.12", "features.12"),
    ("densenet121", 64, "gradual", 1): ("features.transition3.pool", "features.transition3.pool"),
    ("inception_v3", 299, "gradual", 1): ("Mixed_6e + AuxLogits", "Mixed_6e"),
}


@pytest.mark.parametrize(("name", "side", "policy", "epoch"), CUTS, ids=lambda value: str(value))
def test_prefix_and_suffix_equal_the_network_in_outputs_gradients_and_dropout(
    name: str, side: int, policy: str, epoch: int
) -> None:
    plan = planned(name, policy)
    network = plan.network
    images = torch.randn(2, 3, side, side)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for training, expected in zip((True, False), CUTS[name, side, policy, epoch], strict=True):
        chance = torch.get_rng_state()
        cut = cut_in(plan, epoch, images, training=training)
        assert cut.name == expected
        assert torch.equal(torch.get_rng_state(), chance)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

        def result(features: tuple[Tensor, ...] | None, cut: Cut = cut) -> tuple[list[Tensor], list[Tensor]]:
            torch.manual_seed(1)
            output = network(images) if features is None else cut.suffix(network, *features)
            outputs = pytree.tree_leaves(output)
            trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
            total = sum(leaf.square().sum() for leaf in outputs)
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
            return outputs, [gradient for gradient in gradients if gradient is not None]

        with torch.no_grad():
            features = cut.prefix(network, images)
        network.load_state_dict(before)
        whole = result(None)
        moved = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(before)
        assert [tuple(tensor.shape) for tensor in features] == [tuple(example.shape) for example in cut.examples]
        for one, other in zip(result(features), whole, strict=True):
            assert len(one) == len(other) > 0
            assert all(map(torch.equal, one, other))
        assert all(torch.equal(value, moved[key]) for key, value in network.state_dict().items()), "BatchNorm moved"
        network.load_state_dict(before)


def small(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(2))


def cut_of(network: nn.Module, *trained: str, training: bool = False) -> Cut:
    images = torch.randn(2, 3, 8, 8)
    network.eval()(images)  # draws lazy layers
    network.train(training)
    return find_cut(network, {name for name, _ in network.named_parameters()} - set(trained), images)


def test_active_dropout_is_above_the_cut_and_inactive_dropout_below() -> None:
    head = ("3.weight", "3.bias")
    assert cut_of(small(nn.Dropout(0.5)), *head, training=True).name == "0"
    assert cut_of(small(nn.Dropout(0.5)), *head).name == "2"
    assert cut_of(small(nn.Dropout(0.0)), *head, training=True).name == "2"


def test_batchnorm_that_keeps_statistics_is_above_the_cut() -> None:
    network = small(nn.BatchNorm2d(4))
    assert cut_of(network, "3.weight", "3.bias", training=True).name == "0"
    assert cut_of(network, "3.weight", "3.bias").name == "2"
    assert network[1].num_batches_tracked == 0


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.trunk(images)
        return self.head(maps if maps.sum() > 0 else -maps)


class InPlace(Branching):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.trunk(images)
        early = self.head(maps)
        return early.mean((2, 3)) + maps.relu_().mean()


@pytest.mark.parametrize(
    ("network", "trained", "reason"),
    [
        (Branching(), ["head.weight"], "cannot be traced"),
        (InPlace(), ["head.weight"], "cut exactly"),
        (small(nn.BatchNorm2d(4, track_running_stats=False)), ["3.weight"], "mix the images of a batch"),
        (small(), ["0.bias"], "no frozen layer"),
    ],
)
def test_a_network_that_cannot_be_cut_says_why(network: nn.Module, trained: list[str], reason: str) -> None:
    with pytest.raises(NoCut, match=reason):
        cut_of(network, *trained)


def test_the_fingerprint_is_that_of_the_frozen_part_alone() -> None:
    network = small(nn.BatchNorm2d(4))
    head = ("3.weight", "3.bias")
    first = cut_of(network, *head).fingerprint(network)
    network.get_parameter("3.weight").data.add_(1)
    assert cut_of(network, *head).fingerprint(network) == first
    for tensor in (network.get_parameter("0.weight"), network.get_buffer("1.running_mean")):
        tensor.data.view(-1)[-1] += 1e-3
        assert cut_of(network, *head).fingerprint(network) != first
        tensor.data.view(-1)[-1] -= 1e-3
    network[0].stride = (2, 2)
    network[3] = nn.LazyLinear(2)
    assert cut_of(network, *head).fingerprint(network) != first


def test_a_layer_that_has_been_trained_is_not_cached() -> None:
    plan = planned("vgg_mini", "gradual")
    assert "features.0.weight" in plan.untouched(0)
    assert "features.0.weight" not in plan.untouched(1)
    assert plan.untouched(1) == plan.untouched(5)
