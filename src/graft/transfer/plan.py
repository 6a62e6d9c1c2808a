"""What of a network trains in which epoch, and how fast: decided once, the same after every resume."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from graft.config.schema import FreezeConfig, OptimizerConfig, StrategyConfig
from graft.errors import ConfigError
from graft.transfer.freeze import FreezeOptions, find_policy
from graft.transfer.groups import parameter_groups
from graft.transfer.stages import Stage, stages_of

if TYPE_CHECKING:
    from graft.models.weights import WeightsReport


@dataclass(frozen=True)
class GroupRow:
    """A line of the table shown at the start.

    Attributes:
        name: of the parameter group.
        tensors: how many it has.
        parameters: how many numbers they hold.
        trainable: how many of those numbers train in the epoch asked for.
        lr: learning rate at the start.
    """

    name: str
    tensors: int
    parameters: int
    trainable: int
    lr: float


class TransferPlan:
    """A network, its stages, a freeze policy and its parameter groups.

    What is trainable is a function of the epoch alone, and all parameters are in `groups` from the start, so
    an optimizer, a scheduler, DDP and a resumed run see one constant structure.

    Args:
        network: is changed by `apply` and `set_modes` only.
        stages: `stages_of(network)`.
        policy: name of a freeze policy.
        options: what the policy is told.
        groups: `parameter_groups(network, ...)`.

    Attributes:
        static: whether the same parameters train in every epoch.

    Raises:
        ConfigError: an unknown policy, options that do not fit the network, or nothing left to train in epoch
            0.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[Stage],
        policy: str = "none",
        options: FreezeOptions | None = None,
        groups: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.network = network
        self.stages = tuple(stages)
        self.policy = find_policy(policy)
        self.options = options or FreezeOptions()
        self.groups = list(groups)
        self._names = tuple(name for name, _ in network.named_parameters())
        self._frozen: dict[int, frozenset[str]] = {}
        self._still: dict[int, tuple[str, ...]] = {}
        if not self.trainable(0):
            raise ConfigError(f"freeze={policy}: freezes every parameter in epoch 0; nothing is left to train.")

    @property
    def static(self) -> bool:
        return self.policy.static

    def trainable(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that train in `epoch` (counted from 0)."""
        return frozenset(self._names) - self.frozen(epoch)

    def frozen(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that stand still in `epoch`."""
        epoch = 0 if self.static else epoch
        if epoch not in self._frozen:
            self._frozen[epoch] = self.policy.rule(self.stages, self._names, epoch, self.options)
        return self._frozen[epoch]

    def untouched(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that have not trained up to and with `epoch`: they are as they were loaded."""
        return frozenset.intersection(*map(self.frozen, range(1 if self.static else epoch + 1)))

    def frozen_modules(self, epoch: int) -> tuple[str, ...]:
        """Names of the modules that are in evaluation mode in `epoch` whatever the rest of the network does.

        A module with parameters of its own stands still when all of those do, a container when all inside it
        does, one without any parameters (Dropout, ReLU) when its whole stage does."""
        epoch = 0 if self.static else epoch
        if epoch not in self._still:
            self._still[epoch] = self._still_in(epoch)
        return self._still[epoch]

    def apply(self, epoch: int) -> None:
        """Let exactly the parameters of `trainable(epoch)` take a gradient; the others lose theirs."""
        frozen = self.frozen(epoch)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.grad = None

    def set_modes(self, epoch: int) -> None:
        """Put what is frozen in evaluation mode: BatchNorm keeps its statistics, Dropout does not fire.

        To be called after every switch of the network to training mode, which turns all of it on.
        """
        for name in self.frozen_modules(epoch):
            self.network.get_submodule(name).training = False

    def frozen_but_random(self, report: "WeightsReport", epoch: int = 0) -> tuple[str, ...]:
        """Names of the parameters left random that yet do not train in `epoch`: most likely a mistake."""
        frozen = self.frozen(epoch)
        return tuple(name for name in report.random if name in frozen)

    def table(self, epoch: int = 0) -> tuple[GroupRow, ...]:
        """One row for each parameter group, from input to output."""
        learns = self.trainable(epoch)
        name_of = {id(parameter): name for name, parameter in self.network.named_parameters()}
        return tuple(
            GroupRow(
                name=group["name"],
                tensors=len(group["params"]),
                parameters=sum(parameter.numel() for parameter in group["params"]),
                trainable=sum(parameter.numel() for parameter in group["params"] if name_of[id(parameter)] in learns),
                lr=group["lr"],
            )
            for group in self.groups
        )

    def _still_in(self, epoch: int) -> tuple[str, ...]:
        frozen = self.frozen(epoch)
        still_stages = [
            stage for stage in self.stages if frozen.issuperset(name for name in self._names if stage.holds(name))
        ]
        return tuple(
            name
            for name, module in self.network.named_modules()
            if name and _stands(name, module, frozen, still_stages)
        )


def _stands(name: str, module: nn.Module, frozen: Collection[str], still_stages: Sequence[Stage]) -> bool:
    own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
    inside = own or [f"{name}.{key}" for key, _ in module.named_parameters()]
    if inside:
        return all(key in frozen for key in inside)
    return any(stage.holds(name) for stage in still_stages)


def plan_transfer(
    network: nn.Module, strategy: StrategyConfig, freeze: FreezeConfig, optimizer: OptimizerConfig
) -> TransferPlan:
    """The plan for `network`: its stages found, its parameters grouped, its policy in place.

    Args:
        network: any network of `build_network`.
        strategy: learning rates per group, see `parameter_groups`.
        freeze: policy and what it is told, see `FreezeOptions`.
        optimizer: learning rate of a multiplier 1, and weight decay.

    Raises:
        ConfigError: as `parameter_groups` and `TransferPlan`.
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
    )
    options = FreezeOptions(tuple(freeze.patterns), dict(freeze.schedule or {}) or None, freeze.every)
    return TransferPlan(network, stages, freeze.policy, options, groups)
