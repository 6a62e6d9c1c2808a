"""Which parameters of a network train in which epoch, and at which learning rate."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from graft.config.schema import FreezeConfig, OptimizerConfig, StrategyConfig
from graft.config.targets import bind
from graft.errors import ConfigError
from graft.transfer.freeze import Policy, none
from graft.transfer.groups import parameter_groups
from graft.transfer.stages import Stage, stages_of

if TYPE_CHECKING:
    from graft.models.weights import WeightsReport


@dataclass(frozen=True)
class GroupRow:
    """A row of the table of parameter groups.

    Attributes:
        name: of the parameter group.
        tensors: number of parameter tensors.
        parameters: number of scalars in them.
        trainable: number of those scalars that train in the given epoch.
        lr: learning rate at the start.
    """

    name: str
    tensors: int
    parameters: int
    trainable: int
    lr: float


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

MOST_EVALUATED = 1000
"""Largest number of epochs for which a policy is evaluated before training; a longer run is treated as not static."""


class TransferPlan:
    """A network, its stages, a freeze policy and its parameter groups.

    What is trainable is a function of the epoch alone, and all parameters are in `groups` from the start, so
    an optimizer, a scheduler, DDP and a resumed run see one constant structure.

    Args:
        network: is changed by `apply` and `set_modes` only.
        stages: `stages_of(network)`.
        policy: the freeze policy.
        groups: `parameter_groups(network, ...)`.
        epochs: of the run; None for an unlimited number.
        evaluated: names of modules that are in evaluation mode in every epoch, trainable or not.

    Attributes:
        static: whether the same parameters are known to train in every epoch of the run.

    Raises:
        ConfigError: the policy fails, its arguments do not fit the network, or it leaves nothing to train in an epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[Stage],
        policy: Policy | None = None,
        groups: Sequence[dict[str, Any]] = (),
        epochs: int | None = None,
        evaluated: Collection[str] = (),
    ) -> None:
        self.network = network
        self.stages = tuple(stages)
        self.policy = policy or Policy.of(none)
        self.groups = list(groups)
        self._names = tuple(name for name, _ in network.named_parameters())
        self._frozen: dict[int, frozenset[str]] = {}
        self._distinct: dict[frozenset[str], frozenset[str]] = {}
        self._evaluated = frozenset(evaluated)
        self._frozen_modules: dict[int, tuple[str, ...]] = {}
        self.static = not self.policy.uses_epoch
        known = 1 if self.static or epochs is None else max(1, min(epochs, MOST_EVALUATED))
        distinct = {self.frozen(epoch) for epoch in range(known)}
        self.static = self.static or (known == epochs and len(distinct) == 1)

    def trainable(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that train in `epoch` (counted from 0)."""
        return frozenset(self._names) - self.frozen(epoch)

    def frozen(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that are frozen in `epoch`."""
        epoch = 0 if self.static else epoch
        if epoch not in self._frozen:
            frozen = self.policy(self.stages, self._names, epoch)
            if frozen.issuperset(self._names):
                raise ConfigError(
                    f"freeze._target_={self.policy.target}: freezes every parameter in epoch {epoch}; nothing is left "
                    "to train."
                )
            self._frozen[epoch] = self._distinct.setdefault(frozen, frozen)  # one set, however many epochs share it
        return self._frozen[epoch]

    def untouched(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that are frozen from epoch 0 to `epoch`, and so still have their initial values."""
        return frozenset.intersection(*map(self.frozen, range(1 if self.static else epoch + 1)))

    def frozen_modules(self, epoch: int) -> tuple[str, ...]:
        """Names of the modules that stay in evaluation mode in `epoch` while the network is in training mode.

        A module with parameters of its own is frozen when all of those are, a container when all parameters inside it
        are, a module without parameters (Dropout, ReLU) when its whole stage is. BatchNorm layers that keep their
        statistics are always among them."""
        epoch = 0 if self.static else epoch
        if epoch not in self._frozen_modules:
            self._frozen_modules[epoch] = self._find_frozen_modules(self.frozen(epoch))
        return self._frozen_modules[epoch]

    def apply(self, epoch: int) -> None:
        """Require gradients of exactly the parameters in `trainable(epoch)`, and drop the gradients of the others."""
        frozen = self.frozen(epoch)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.grad = None

    def set_modes(self, epoch: int) -> None:
        """Put frozen modules in evaluation mode: BatchNorm keeps its statistics, Dropout is off.

        Call it after every `network.train()`, which puts all modules in training mode.
        """
        for name in self.frozen_modules(epoch):
            self.network.get_submodule(name).training = False

    def frozen_but_random(self, report: "WeightsReport", epoch: int = 0) -> tuple[str, ...]:
        """Names of the parameters that no weights were loaded for and that are frozen in `epoch`: likely a mistake."""
        frozen = self.frozen(epoch)
        return tuple(name for name in report.random if name in frozen)

    def table(self, epoch: int = 0) -> tuple[GroupRow, ...]:
        """One row for each parameter group, from input to output."""
        trainable = self.trainable(epoch)
        training = {id(parameter) for name, parameter in self.network.named_parameters() if name in trainable}
        return tuple(
            GroupRow(
                name=group["name"],
                tensors=len(group["params"]),
                parameters=sum(parameter.numel() for parameter in group["params"]),
                trainable=sum(parameter.numel() for parameter in group["params"] if id(parameter) in training),
                lr=group["lr"],
            )
            for group in self.groups
        )

    def _find_frozen_modules(self, frozen: frozenset[str]) -> tuple[str, ...]:
        frozen_stages = [
            stage for stage in self.stages if frozen.issuperset(name for name in self._names if stage.holds(name))
        ]
        return tuple(
            name
            for name, module in self.network.named_modules()
            if name and (name in self._evaluated or _is_frozen(name, module, frozen, frozen_stages))
        )


def _is_frozen(name: str, module: nn.Module, frozen: Collection[str], frozen_stages: Sequence[Stage]) -> bool:
    own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
    inside = own or [f"{name}.{key}" for key, _ in module.named_parameters()]
    if inside:
        return all(key in frozen for key in inside)
    return any(stage.holds(name) for stage in frozen_stages)


def plan_transfer(
    network: nn.Module,
    strategy: StrategyConfig,
    freeze: FreezeConfig,
    optimizer: OptimizerConfig,
    epochs: int | None = None,
    loaded: Collection[str] = (),
) -> TransferPlan:
    """The transfer plan of a run: find the network's stages, group its parameters, bind its freeze policy.

    Args:
        network: any network of `build_network`.
        strategy: learning rates per group, see `parameter_groups`, and whether BatchNorm keeps its statistics.
        freeze: `_target_`, a freeze policy, and its arguments.
        optimizer: learning rate for a multiplier of 1, and weight decay.
        epochs: of the run; None for an unlimited number.
        loaded: names of the parameters that weights were loaded for.

    Raises:
        ConfigError: as `parameter_groups`, `TransferPlan` and `graft.config.targets.build`.
    """
    stages = stages_of(network)
    groups = parameter_groups(
        network,
        stages,
        optimizer.lr,
        optimizer.weight_decay,
        strategy.lr_multipliers,
        strategy.layer_decay,
        strategy.decay_norm_and_bias,
        () if strategy.l2_sp is None else loaded,
    )
    kept = pretrained_batch_norms(network, loaded) if strategy.batch_norm_statistics == "keep" else ()
    return TransferPlan(network, stages, build_policy(freeze), groups, epochs, kept)


def pretrained_batch_norms(network: nn.Module, loaded: Collection[str]) -> tuple[str, ...]:
    """Names of the BatchNorm layers with running statistics whose parameters are all among `loaded`."""
    return tuple(
        name
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.running_mean is not None
        and all(f"{name}.{own}" in loaded for own in ("weight", "bias"))
    )


def build_policy(freeze: FreezeConfig) -> Policy:
    """The policy that `freeze._target_` names, with its arguments bound.

    Raises:
        ConfigError: the target cannot be imported.
    """
    return Policy.of(bind("freeze", freeze.arguments()))
