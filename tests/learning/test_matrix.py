"""Six networks × every strategy × every freeze policy: gradients reach exactly the trainable parameters."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from graft.config import conf_dir
from graft.config.registration import register
from graft.data.datasets import Batch
from graft.data.preprocessing import Preprocessing
from graft.learning.module import Objective, TransferModule
from graft.learning.optimizers import build_optimizer
from graft.models import Recipe, build_network
from graft.models.heads import head_modules
from graft.models.layouts import belongs
from graft.tasks.checks import settle
from graft.transfer import TransferPlan, plan_transfer

SIDES = {"resnet18": 32, "alexnet": 63, "vgg11_bn": 32, "squeezenet1_0": 32, "densenet121": 32, "inception_v3": 299}
"""Network -> the smallest side it trains on; Inception's auxiliary head needs a larger one."""

CUSTOM = {  # what a user might name: the first stage of each
    "resnet18": "stem", "alexnet": "block1", "vgg11_bn": "block1", "squeezenet1_0": "block1",
    "densenet121": "stem", "inception_v3": "stem",
}  # fmt: skip

TRAINED_BY = {"auto": None, "none": "all", "features": "above", "backbone": "head", "gradual": "head", "custom": "rest"}
"""freeze=… -> which part trains in epoch 0; auto is the strategy's."""

AUTO = {"scratch": "all", "feature_extract": "head", "finetune": "all", "gradual": "head"}

PAIRS = [
    (strategy, freeze)
    for strategy in AUTO
    for freeze in TRAINED_BY
    if strategy != "scratch" or freeze in ("auto", "none")  # frozen layers would stay random: refused
]


@dataclass(frozen=True)
class Subject:
    """A network under test and its name."""

    name: str
    network: nn.Module


@pytest.fixture(scope="module", params=SIDES)
def subject(request: pytest.FixtureRequest) -> Subject:
    torch.manual_seed(0)
    small = {"average_pool": 1, "hidden": 64} if request.param == "vgg11_bn" else {}  # a hundred million weights less
    return Subject(request.param, build_network(Recipe(request.param, **small), 3))


@cache
def composed(strategy: str, freeze: str) -> Any:
    """The configuration of a command line, for a network of any name."""
    register()
    with initialize_config_dir(str(conf_dir())):
        return settle(compose("train", [f"strategy={strategy}", f"freeze={freeze}"]))


def planned(subject: Subject, strategy: str, freeze: str) -> tuple[TransferPlan, Any]:
    config = copy.deepcopy(composed(strategy, freeze))
    if freeze == "custom":
        config.freeze.patterns = [CUSTOM[subject.name]]
    return plan_transfer(subject.network, config.strategy, config.freeze, config.optimizer), config


def expected(plan: TransferPlan, subject: Subject, part: str) -> set[str]:
    names = {name for name, _ in subject.network.named_parameters()}
    head = {name for name in names if belongs(name, head_modules(subject.network))}
    below = {name for name in names for stage in plan.stages if stage.group == "classifier" and stage.holds(name)}
    first = {name for name in names if plan.stages[0].holds(name)}
    return {"all": names, "head": head, "above": head | below, "rest": names - first}[part]


def transfer_module(subject: Subject, config: Any, plan: TransferPlan) -> TransferModule:
    return TransferModule(
        subject.network, plan, classes=("a", "b", "c"), preprocessing=Preprocessing(), objective=Objective(),
        optimizer=config.optimizer, scheduler=config.scheduler, seed=0, provenance={},
    )  # fmt: skip


@pytest.mark.parametrize(("strategy", "freeze"), PAIRS)
def test_each_strategy_and_policy_trains_the_documented_parameters_at_their_rates(
    subject: Subject, strategy: str, freeze: str
) -> None:
    plan, config = planned(subject, strategy, freeze)
    assert plan.trainable(0) == expected(plan, subject, TRAINED_BY[freeze] or AUTO[strategy])
    rates = {"features": 0.1, "classifier": 0.5, "head": 1.0} if strategy in ("finetune", "gradual") else {}
    for group in plan.groups:
        assert group["lr"] == pytest.approx(config.optimizer.lr * rates.get(group["name"], rates.get("features", 1.0)))


@pytest.mark.parametrize("freeze", ["none", "features", "backbone", "gradual", "custom"])
def test_a_training_step_gives_gradients_to_trainable_parameters_only(subject: Subject, freeze: str) -> None:
    plan, config = planned(subject, "finetune", freeze)
    module = transfer_module(subject, config, plan)
    module.zero_grad()
    plan.apply(0)
    module.train()
    before = {name: tensor.clone() for name, tensor in subject.network.state_dict().items()}
    side = SIDES[subject.name]
    batch = Batch(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), torch.tensor([0, 2]), torch.arange(2))
    loss = module.training_step(batch, 0)
    loss.backward()
    trainable = plan.trainable(0)
    reached = {name for name, parameter in subject.network.named_parameters() if parameter.grad is not None}
    assert reached == trainable
    optimizer = build_optimizer(plan.groups, config.optimizer, fused=True)
    optimizer.step()
    moved = {name for name, tensor in subject.network.state_dict().items() if not torch.equal(tensor, before[name])}
    owners = {name.rpartition(".")[0] for name in trainable}
    assert {name.rpartition(".")[0] for name in moved} <= owners, "parameters and BatchNorm's buffers"
