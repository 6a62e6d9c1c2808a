"""Sharpness-aware minimisation equals its definition, in each precision and with accumulation."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graft
from graft.config.schema import OptimizerConfig, SchedulerConfig
from graft.data.datasets import Batch
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, TrainingError
from graft.learning.module import Objective, TransferModule
from graft.learning.sharpness import ETA
from graft.transfer.plan import TransferPlan
from graft.transfer.stages import stages_of

RHO = 0.2


class Network(nn.Sequential):
    """A convolution that BatchNorm follows, and a head."""

    def __init__(self) -> None:
        features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        super().__init__(features, nn.Flatten(), nn.Linear(4, 3))


def module_of(network: nn.Module, **options: Any) -> TransferModule:
    module = TransferModule(
        network, TransferPlan(network, stages_of(network)), classes=("a", "b", "c"), preprocessing=Preprocessing(),
        objective=Objective(**options), optimizer=OptimizerConfig(lr=0.1), scheduler=SchedulerConfig(), seed=0,
        provenance={},
    )  # fmt: skip
    return module.train()


def batch_of(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return Batch(images, torch.randint(0, 3, (6,), generator=draw), torch.arange(6))


def gradients_by_definition(module: TransferModule, batch: Batch, adaptive: bool, low: bool) -> dict[str, Tensor]:
    """The gradient at w + rho g / |g|, or with T = |w| + eta at w + rho T² g / |T g|, on a copy of the network."""
    network = copy.deepcopy(module.network).train()
    images = module.normalise(batch.images)

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = F.cross_entropy(network(images).float(), batch.labels)
        return list(torch.autograd.grad(loss, list(network.parameters())))

    weights = list(network.parameters())
    sizes = [w.detach().abs() + ETA if adaptive else torch.ones_like(w) for w in weights]
    scaled = [g * size for g, size in zip(gradients(), sizes, strict=True)]
    norm = torch.cat([each.flatten() for each in scaled]).norm()
    with torch.no_grad():
        for weight, each, size in zip(weights, scaled, sizes, strict=True):
            weight.add_(RHO * size * each / norm)
    return dict(zip((name for name, _ in network.named_parameters()), gradients(), strict=True))


@pytest.mark.parametrize(("adaptive", "low"), [(False, False), (True, False), (False, True)])
def test_the_gradient_is_that_at_the_highest_point_of_each_batch(adaptive: bool, low: bool) -> None:
    torch.manual_seed(0)
    network = Network()
    module = module_of(network, sam_rho=RHO, sam_adaptive=adaptive)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    plain = copy.deepcopy(network).train()
    sums: dict[str, Tensor] = {}
    for number in (1, 2):  # an accumulation window
        expected = gradients_by_definition(module, batch_of(number), adaptive, low)
        sums = {name: sums.get(name, 0) + gradient for name, gradient in expected.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = module.training_step(batch_of(number), 0)
            plain(module.normalise(batch_of(number).images))
        assert loss is not None
        loss.backward()
        module.on_after_backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), "restored to the bit"
        torch.testing.assert_close(parameter.grad, sums[name], rtol=1e-2 if low else 1e-5, atol=1e-3 if low else 1e-6)
    statistics = dict(plain.named_buffers())
    assert all(torch.equal(value, statistics[name]) for name, value in network.named_buffers()), "one update a batch"


def test_frozen_layers_do_not_move_and_a_loop_without_the_restoring_hook_is_an_error() -> None:
    module = module_of(Network(), sam_rho=RHO)
    network: Any = module.network
    network[0].requires_grad_(False)
    frozen = network[0][0].weight.clone()
    module.training_step(batch_of(1), 0)
    assert torch.equal(network[0][0].weight, frozen)
    with pytest.raises(TrainingError, match="on_after_backward"):
        module.training_step(batch_of(2), 0)


def test_a_run_with_dropout_sees_the_same_masks_twice_and_its_figures_are_those_before_the_ascent(
    tmp_path: Path,
) -> None:
    common = ("data=digits", "model=vgg_mini", "model.weights=bundled", "model.dropout=0.5", "augment=none",
              "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
              "trainer.test=false", "trainer.baseline=false", "review=none", "logger=none", "data.num_workers=0",
              "callbacks.progress=none", "callbacks.checkpoint=last", "trainer.precision=32")  # fmt: skip
    runs = {
        name: graft.train(*common, *words, folder=tmp_path / name, echo=False)
        for name, words in {"plain": (), "tiny": ("optimizer.sam_rho=1e-7",)}.items()
    }
    assert runs["plain"].metrics["train/loss"] == runs["tiny"].metrics["train/loss"]
    weights = {name: torch.load(run.checkpoint, weights_only=True)["state_dict"] for name, run in runs.items()}
    for name, expected in weights["plain"].items():
        torch.testing.assert_close(weights["tiny"][name], expected, rtol=1e-4, atol=2e-5)


def test_a_neighbourhood_without_a_radius_is_refused() -> None:
    with pytest.raises(ConfigError, match="sam_rho"):
        graft.train("optimizer.sam_adaptive=true", "experiment=quickstart", echo=False)
