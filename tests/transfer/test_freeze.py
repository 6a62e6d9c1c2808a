"""Frozen is frozen: no gradient, no optimizer state, no decay, no statistics, no dropout."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from graft.config.schema import FreezeConfig, OptimizerConfig, StrategyConfig
from graft.errors import ConfigError
from graft.models import Recipe, build_network
from graft.models.weights import WeightsReport
from graft.transfer import Policy, TransferPlan, freeze, plan_transfer, stages_of
from graft.transfer.groups import parameter_groups

VGG = Recipe("small", table=(8, "M", 16, "M", 16), batch_norm=True, average_pool=1, hidden=64, input_size=32)


def _plan(network, policy, **options) -> TransferPlan:
    stages = stages_of(network)
    groups = parameter_groups(network, stages, 0.1, weight_decay=0.1)
    return TransferPlan(network, stages, Policy.of(getattr(freeze, policy), **options), groups)


def _train(plan: TransferPlan, epochs: int, optimizer=None) -> torch.optim.Optimizer:
    """A loop that switches modes as training and validation do."""
    network = plan.network
    optimizer = optimizer or torch.optim.SGD(plan.groups, lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        network.eval()
        network(torch.randn(2, 3, 32, 32))
        network.train()
        plan.apply(epoch)
        plan.set_modes(epoch)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4) % 2).backward()
            optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "recipe", [VGG, Recipe("resnet18"), Recipe("densenet121"), Recipe("test_resnet", family="timm")]
)
@pytest.mark.parametrize("policy", ["backbone", "features"])
def test_frozen_tensors_and_statistics_are_bit_identical_after_training(recipe, policy):
    torch.manual_seed(0)
    network = build_network(recipe, 2)
    plan = _plan(network, policy)
    before = copy.deepcopy(network.state_dict())
    optimizer = _train(plan, 2)
    frozen = plan.frozen(0)
    assert frozen
    stages = [stage for stage in plan.stages if stage.group != "head"]
    if policy == "features":
        stages = [stage for stage in stages if stage.group != "classifier"]
    for name, tensor in network.state_dict().items():
        if any(stage.holds(name) for stage in stages):
            assert torch.equal(tensor, before[name]), name
    parameters = dict(network.named_parameters())
    assert all(parameters[name].grad is None and parameters[name] not in optimizer.state for name in frozen)
    assert not any(torch.equal(parameters[name], before[name]) for name in plan.trainable(0))


@pytest.mark.parametrize("recipe", [VGG, Recipe("resnet18"), Recipe("test_resnet", family="timm")])
def test_kept_statistics_of_loaded_layers_are_bit_identical_while_their_weights_train(recipe):
    torch.manual_seed(0)
    network = build_network(recipe, 2)
    norms = {name: each for name, each in network.named_modules() if isinstance(each, nn.BatchNorm2d)}
    random = list(norms)[-1]
    loaded = [name for name, _ in network.named_parameters() if not name.startswith(f"{random}.")]
    strategy, optimizer = StrategyConfig(batch_norm_statistics="keep"), OptimizerConfig(lr=0.1)
    plan = plan_transfer(network, strategy, FreezeConfig(_target_="graft.transfer.freeze.none"), optimizer, 2, loaded)
    before = copy.deepcopy(network.state_dict())
    _train(plan, 2)
    after = network.state_dict()
    for name in norms:
        assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"]), name
        assert torch.equal(after[f"{name}.running_var"], before[f"{name}.running_var"]) == (name != random), name
        assert torch.equal(after[f"{name}.running_mean"], before[f"{name}.running_mean"]) == (name != random), name


@pytest.mark.parametrize("recipe", [VGG, Recipe("alexnet"), Recipe("squeezenet1_1")])
def test_dropout_is_inactive_in_frozen_modules_and_active_in_the_others(recipe):
    network = build_network(recipe, 2)
    for policy in ("backbone", "none"):
        plan = _plan(network, policy)
        for _ in range(3):
            network.eval()
            network.train()
            plan.set_modes(0)
        stages = {stage.name: stage for stage in plan.stages}
        for name, module in network.named_modules():
            if isinstance(module, nn.Dropout):
                assert module.training is (policy == "none" or stages["head"].holds(name))


def test_a_frozen_trunk_gives_the_same_features_in_training_mode():
    network = build_network(Recipe("resnet18"), 2)
    plan = _plan(network, "backbone")
    trunk = nn.Sequential(*list(network.children())[:-1])
    images = torch.randn(4, 3, 32, 32)
    expected = network.eval() and trunk(images)
    network.train()
    plan.set_modes(0)
    assert torch.equal(trunk(images), expected)


def test_setting_modes_does_not_change_a_network_in_evaluation_mode():
    network = build_network(VGG, 2).eval()
    _plan(network, "backbone").set_modes(0)
    assert not any(module.training for module in network.modules())


def test_patterns_freeze_matching_parameters_only():
    torch.manual_seed(0)
    network = build_network(VGG, 2)
    plan = _plan(network, "custom", patterns=("features.0.*", "features.1", "*bias", "classifier.3"))
    before = copy.deepcopy(network.state_dict())
    _train(plan, 2)
    names = [name for name, _ in network.named_parameters()]
    expected = {n for n in names if n.endswith("bias") or n.startswith(("features.0.", "features.1.", "classifier.3."))}
    assert plan.frozen(0) == expected
    after = network.state_dict()
    assert {name for name in names if torch.equal(after[name], before[name])} == expected
    assert torch.equal(after["features.1.running_mean"], before["features.1.running_mean"])
    assert not torch.equal(after["features.5.running_mean"], before["features.5.running_mean"])
    assert not network.features[1].training
    assert network.features[5].training
    assert "classifier.5" in plan.frozen_modules(0)
    assert "classifier.2" not in plan.frozen_modules(0)


@pytest.mark.parametrize("pattern", ["block2", "block[2]", "bloc?2", "features.3", "*.3.*", "features.[3-9].*"])
def test_stage_names_and_globs_are_patterns(pattern):
    recipe = Recipe("small", table=(8, "M", 16, "M"), batch_norm=False, classifier="linear", average_pool=1)
    frozen = _plan(build_network(recipe, 2), "custom", patterns=(pattern,)).frozen(0)
    assert frozen >= {"features.3.bias"}
    assert frozen <= {"features.3.weight", "features.3.bias"}


def test_a_pattern_that_matches_nothing_names_the_nearest():
    network = build_network(VGG, 2)
    with pytest.raises(ConfigError, match=r'"blok1" matches no.*Did you mean block1'):
        _plan(network, "custom", patterns=("features.0", "blok1"))
    with pytest.raises(ConfigError, match=r"freeze\.patterns"):
        _plan(network, "custom")


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        _plan(build_network(VGG, 2), "custom", patterns=("*",))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        _plan(build_network(VGG, 2), "gradual", schedule={"head": 2})


def _groups_in_training(plan: TransferPlan, epoch: int) -> list[str]:
    learns = plan.trainable(epoch)
    return [stage.name for stage in plan.stages if any(stage.holds(name) for name in learns)]


def test_gradual_unfreezes_group_by_group_from_the_head_down():
    plan = _plan(build_network(Recipe("resnet18"), 2), "gradual", every=2)
    assert not plan.static
    down = ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert [_groups_in_training(plan, epoch)[0] for epoch in range(12)] == [name for name in down for _ in range(2)]
    assert plan.frozen(100) == frozenset()


def test_a_schedule_names_groups_and_stages_and_what_it_omits_never_trains():
    plan = _plan(
        build_network(VGG, 2),
        "gradual",
        schedule={"classifier": 1, "classifier.0": 3, "features": 5, "block1": 9},
    )
    assert _groups_in_training(plan, 0) == ["head"]
    assert _groups_in_training(plan, 1) == ["classifier.3", "head"]
    assert _groups_in_training(plan, 3) == ["classifier.0", "classifier.3", "head"]
    assert _groups_in_training(plan, 8) == ["block2", "block3", "classifier.0", "classifier.3", "head"]
    assert plan.frozen(9) == frozenset()
    plan = _plan(build_network(VGG, 2), "gradual", schedule={"classifier": 1})
    assert _groups_in_training(plan, 1000) == ["classifier.0", "classifier.3", "head"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": {"features": -1}}, "features=-1"),
        ({"schedule": {"feature": 1}}, '"feature".*Did you mean features'),
        ({"every": 0}, r"freeze\.every=0"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_reason(options, words):
    with pytest.raises(ConfigError, match=words):
        _plan(build_network(VGG, 2), "gradual", **options)


def test_trainable_parameters_depend_on_the_epoch_alone():
    """As after a resume: a fresh plan asked for epoch 2 at once, and one that walked there."""
    walked = _plan(build_network(VGG, 2), "gradual")
    for epoch in (0, 1, 2, 1, 0, 2):
        walked.apply(epoch)
        fresh = _plan(build_network(VGG, 2), "gradual")
        fresh.apply(epoch)
        fresh.network.train(), walked.network.train()
        fresh.set_modes(epoch), walked.set_modes(epoch)
        pairs = zip(walked.network.named_parameters(), fresh.network.named_parameters(), strict=True)
        assert all(a.requires_grad == b.requires_grad for (_, a), (_, b) in pairs)
        assert [m.training for m in walked.network.modules()] == [m.training for m in fresh.network.modules()]


def test_gradual_trains_the_same_optimizer_over_all_parameters():
    torch.manual_seed(0)
    network = build_network(VGG, 2)
    plan = _plan(network, "gradual")
    before = copy.deepcopy(network.state_dict())
    optimizer = _train(plan, 1)
    assert torch.equal(network.classifier[3].weight, before["classifier.3.weight"])
    _train(plan, 3, optimizer=optimizer)
    assert not any(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


def test_inceptions_auxiliary_branch_is_frozen_except_for_its_head():
    with torch.device("meta"):
        network = build_network(Recipe("inception_v3"), 2)
    plan = _plan(network, "backbone")
    assert plan.trainable(0) == {f"{head}.{kind}" for head in ("fc", "AuxLogits.fc") for kind in ("weight", "bias")}
    network.train()
    plan.set_modes(0)
    assert not network.AuxLogits.conv0.bn.training
    assert network.AuxLogits.fc.training
    assert network.dropout.training


def test_frozen_layers_with_random_weights_are_named():
    network = build_network(VGG, 2)
    random = tuple(name for name, _ in network.named_parameters() if name.startswith("classifier"))
    report = WeightsReport("file", None, (), random, None, None)
    assert _plan(network, "features").frozen_but_random(report) == ()
    assert _plan(network, "backbone").frozen_but_random(report) == tuple(
        f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")
    )


def test_the_table_counts_trainable_parameters():
    network = build_network(VGG, 2)
    rows = {row.name: row for row in _plan(network, "features").table()}
    assert list(rows) == ["features", "classifier", "head"]
    assert rows["features"].trainable == 0
    assert rows["features"].parameters == sum(p.numel() for p in network.features.parameters())
    assert rows["head"].trainable == rows["head"].parameters == 64 * 2 + 2
    assert (rows["head"].tensors, rows["head"].lr) == (2, 0.1)


def test_a_plan_survives_copy_and_pickle():
    plan = _plan(build_network(Recipe("vgg_mini"), 2), "gradual")
    plan.apply(0)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert other.trainable(1) == plan.trainable(1)


# A policy of one's own

MINE = '''
def every_other(stages, names, epoch, period=2):
    """Freeze the trunk in every epoch that `period` divides."""
    frozen = [stage for stage in stages if stage.name != "head"] if epoch % period == 0 else []
    return {name for name in names if any(stage.holds(name) for stage in frozen)}

def constant(stages, names, epoch):
    return {names[0]}

def misspelt(stages, names, epoch):
    return {"features.0.wieght"}

def text(stages, names, epoch):
    return "features.0.weight"

def all_of_it(stages, names):
    return set(names)

def all_at_the_end(stages, names, epoch):
    return set(names) if epoch == 2 else set()

def broken(stages, names, epoch):
    return stages[99]
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TransferPlan]:
    """Plans of policies in a module outside of Graft, as `freeze._target_` and its keys name them."""
    (tmp_path / "my_policies.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)

    def planned(name: str, epochs: int | None = None, **arguments: object) -> TransferPlan:
        config = FreezeConfig(_target_=f"my_policies.{name}")
        vars(config).update(arguments)  # as the keys of an open group are
        return plan_transfer(build_network(VGG, 2), StrategyConfig(), config, OptimizerConfig(lr=0.1), epochs)

    return planned


def test_a_custom_policy_freezes_the_names_that_it_returns(mine):
    torch.manual_seed(0)
    plan = mine("every_other", period=3)
    before = copy.deepcopy(plan.network.state_dict())
    optimizer = _train(plan, 1)
    after = copy.deepcopy(plan.network.state_dict())
    trunk = [name for name in before if not name.startswith("classifier.6")]
    assert any(name.endswith("running_mean") for name in trunk)
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    assert not torch.equal(before["classifier.6.weight"], after["classifier.6.weight"])
    _train(plan, 2, optimizer=optimizer)
    assert not any(torch.equal(tensor, after[name]) for name, tensor in plan.network.state_dict().items())


def test_a_policy_is_static_if_it_freezes_the_same_in_every_epoch_of_the_run(mine):
    assert mine("constant", epochs=5).static
    assert not mine("constant").static, "any epoch may come"
    assert mine("every_other", epochs=1).static
    assert not mine("every_other", epochs=2).static
    assert not mine("every_other", epochs=10**9).static, "known without counting to a billion"
    assert mine("every_other", epochs=3, period=4).frozen(2) == frozenset()


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "misspelt": r"my_policies\.misspelt: in epoch 0 .*wieght.* no parameter.* Did you mean features\.0\.weight",
        "text": r"my_policies\.text: .*not a set of parameter names",
        "all_of_it": r"my_policies\.all_of_it: .*nothing is left to train",
        "all_at_the_end": r"my_policies\.all_at_the_end: .*in epoch 2; nothing is left to train",
        "broken": r"my_policies\.broken: in epoch 0 .*IndexError",
        "evry_other": r"my_policies\.evry_other: .*Did you mean every_other",
    }.items(),
)
def test_a_policy_that_breaks_the_contract_is_refused_by_name(name, words, mine):
    with pytest.raises(ConfigError, match=rf"freeze\._target_={words}"):
        mine(name, epochs=3)
