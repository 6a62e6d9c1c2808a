"""Optimizers by name: every name trains with the parameter groups and resumes; messages of those that do not exist."""

import copy

import pytest
import torch
from hydra.errors import MissingConfigException
from one_training_step import composed
from torch import nn

from graft.cli import explain
from graft.config import optimizers
from graft.config.registration import typed
from graft.config.schema import OptimizerConfig, TrainConfig
from graft.errors import ConfigError
from graft.learning.optimizers import build_optimizer
from graft.tasks.part_checks import check_parts
from graft.transfer.groups import parameter_groups
from graft.transfer.stages import stages_of


class Network(nn.Module):
    """A convolution, a hidden layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.classifier(self.features(images)))


def groups_of(network: nn.Module) -> list[dict]:
    """Groups with rates of their own, one of them 0, and without decay of biases and normalisation."""
    rates = {"features": 0.5, "features.0": 0.0, "head": 1.0}
    return parameter_groups(network, stages_of(network), 1e-3, 0.01, rates, decay_norm_and_bias=False)


RATES = {"features.0": 0.0, "features.1": 5e-4, "trunk.classifier": 5e-4, "head": 1e-3}


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(4, 3, 8, 8, generator=draw), torch.randint(0, 3, (4,), generator=draw)
    nn.functional.cross_entropy(network.eval()(images), labels).backward()
    torch.manual_seed(seed)  # kron draws
    optimizer.step()
    optimizer.zero_grad()


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


def test_every_named_optimizer_trains_by_group_and_resumes() -> None:
    distinct = {str(node): name for name, node in optimizers.known_optimizers().items()}
    for name in distinct.values():
        if not name.startswith("kron"):  # compiles for minutes
            cfg = OptimizerConfig(lr=1e-3)
            vars(cfg).update(optimizers.option(name), lr=1e-3)
            trains_and_resumes(name, cfg)


def trains_and_resumes(name: str, cfg: OptimizerConfig) -> None:
    torch.manual_seed(0)
    network = Network()
    optimizer = build_optimizer(groups_of(network), cfg)
    assert {group["name"].partition("/")[0]: group["lr"] for group in optimizer.param_groups} == RATES, name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}, name
    start = weights(network)
    for number in (1, 2):  # adopt only measures in the first
        step(network, optimizer, number)
    moved = {key: float((value - start[key]).abs().max()) for key, value in weights(network).items()}
    assert moved["features.0.weight"] < 1e-5, name  # rprop and madgrad have smallest steps of their own
    assert moved["head.weight"] > 0, name

    other = copy.deepcopy(network)
    resumed = build_optimizer(groups_of(other), cfg)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for continued, by in ((network, optimizer), (other, resumed)):
        step(continued, by, 3)
    assert all(torch.equal(value, weights(other)[key]) for key, value in weights(network).items()), name


def test_timms_own_list_is_known() -> None:
    timm = pytest.importorskip("timm.optim")
    other_packages = ("bnb", "fused")
    names = {name for name in timm.list_optimizers() if not name.startswith(other_packages)} - {"adahessian"}
    assert names <= set(optimizers.known_optimizers())


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_head_to_adamw() -> None:
    network = Network()
    optimizer = build_optimizer(groups_of(network), typed(composed("optimizer=muon"), TrainConfig).optimizer)
    start = weights(network)
    step(network, optimizer, 1)
    update = start["classifier.1.weight"] * (1 - 5e-4 * 0.01) - weights(network)["classifier.1.weight"]
    singular = torch.linalg.svdvals(update)
    singular = singular[singular > 1e-6]  # a unit without a gradient has 0
    assert len(singular) > 1
    assert singular[0] < 3 * singular[-1]  # Newton and Schulz's five iterations: between 0.7 and 1.2 of the same value
    head = start["head.bias"] - weights(network)["head.bias"]
    torch.testing.assert_close(head.abs(), torch.full_like(head, 1e-3), rtol=1e-3, atol=0)  # Adam's first step


def test_experiments_and_sweeps_find_optimizers_by_name(tmp_path) -> None:
    from graft.api import compose

    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [{override /optimizer: lion}]\noptimizer: {lr: 2e-4}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config = compose("experiment=mine", config_dir=tmp_path).config
    assert config.optimizer._target_ == "timm.optim.Lion"
    assert config.optimizer.lr == 2e-4


def test_a_wrong_name_is_answered_with_the_nearest_and_with_what_is_not_installed(monkeypatch) -> None:
    with pytest.raises(MissingConfigException) as raised:
        composed("optimizer=lionn")
    assert "Did you mean lion" in str(explain(raised.value))
    optimizers.known_optimizers.cache_clear()
    with monkeypatch.context() as changed:
        found = optimizers.find_package
        changed.setattr(optimizers, "find_package", lambda name: None if name == "timm" else found(name))
        changed.setattr("graft.config.targets.find_package", lambda name: None if name == "timm" else found(name))
        with pytest.raises(MissingConfigException) as raised:
            composed("optimizer=lion")
        assert "pip install 'graft-vision[timm]'" in str(explain(raised.value))
        assert composed("optimizer=radam").optimizer._target_ == "torch.optim.RAdam"
    optimizers.known_optimizers.cache_clear()


def test_nesterov_without_momentum_is_refused_where_the_class_has_none() -> None:
    for words, refused in ((["optimizer=lars"], False), (["optimizer=sgdw", "optimizer.momentum=0"], True)):
        cfg = typed(composed(*words, "optimizer.nesterov=true"), TrainConfig)
        if refused:
            with pytest.raises(ConfigError, match="Nesterov"):
                check_parts(cfg)
        else:
            check_parts(cfg)
