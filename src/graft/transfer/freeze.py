"""Freeze policies: which parameters are frozen in which epoch.

A policy is a pure function, named by `freeze._target_`:

    def every_other(stages: Sequence[Stage], names: Sequence[str], epoch: int, period: int = 2) -> frozenset[str]:
        ...

It gets the stages of the network from input to output (`graft.transfer.Stage`), the names of all its parameters, the
epoch (counted from 0) and its own arguments, which are the other keys of `freeze`. It returns the names of the
parameters that are frozen in that epoch. A policy that freezes the same parameters in every epoch leaves the argument
`epoch` out. The result may depend on nothing else, so that a resumed run freezes what an uninterrupted one would.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from graft.errors import ConfigError, GraftError, nearest
from graft.transfer.stages import CLASSIFIER, HEAD, Stage

NEVER = float("inf")


def none(stages: Sequence[Stage], names: Sequence[str]) -> frozenset[str]:
    """Freeze nothing."""
    return frozenset()


def features(stages: Sequence[Stage], names: Sequence[str]) -> frozenset[str]:
    """Freeze every stage before the classifier and the head: all convolutions."""
    return in_stages(names, [stage for stage in stages if stage.group not in (CLASSIFIER, HEAD)])


def backbone(stages: Sequence[Stage], names: Sequence[str]) -> frozenset[str]:
    """Freeze everything except the head."""
    return in_stages(names, [stage for stage in stages if stage.group != HEAD])


def custom(stages: Sequence[Stage], names: Sequence[str], patterns: Sequence[str] = ()) -> frozenset[str]:
    """Freeze the parameters that the patterns match, see `matching`.

    Raises:
        ConfigError: no pattern at all, or one that matches nothing; names the nearest names.
    """
    if not patterns:
        raise ConfigError("freeze=custom: no patterns to freeze by. Set freeze.patterns=[...], e.g. [block1,'*.bias'].")
    return matching(names, patterns, stages)


def gradual(
    stages: Sequence[Stage],
    names: Sequence[str],
    epoch: int,
    schedule: Mapping[str, int] | None = None,
    every: int = 1,
) -> frozenset[str]:
    """Freeze each stage until its start epoch (Howard & Ruder 2018, "gradual unfreezing").

    Args:
        stages, names, epoch: as for every policy.
        schedule: group or stage -> the epoch from which it trains, counted from 0; the entry of a stage takes
            precedence over that of its group. The head trains from epoch 0 unless the schedule names it; what is not
            named never trains. None: the head trains from epoch 0, and every `every` epochs the next group, from
            output to input.
        every: epochs between one group and the next; not used with a schedule.

    Raises:
        ConfigError: a name that is no group or stage of this network, a negative epoch, or `every` below 1.
    """
    starts = _scheduled_starts(stages, schedule) if schedule else _regular_starts(stages, every)
    return in_stages(names, [stage for stage in stages if epoch < starts[stage.name]])


def _scheduled_starts(stages: Sequence[Stage], schedule: Mapping[str, int]) -> dict[str, float]:
    known = dict.fromkeys(name for stage in stages for name in (stage.group, stage.name))
    for name, epoch in schedule.items():
        if name not in known:
            raise ConfigError(
                f'freeze.schedule: "{name}" is no group or stage of this network.{nearest(name, known)} '
                f"There are {', '.join(known)}."
            )
        if epoch < 0:
            raise ConfigError(f"freeze.schedule.{name}={epoch}: must be an epoch, counted from 0.")
    starts = {HEAD: 0, **schedule}
    return {stage.name: starts.get(stage.name, starts.get(stage.group, NEVER)) for stage in stages}


def _regular_starts(stages: Sequence[Stage], every: int) -> dict[str, float]:
    if every < 1:
        raise ConfigError(f"freeze.every={every}: must be at least 1 epoch between one group and the next.")
    groups = list(dict.fromkeys(stage.group for stage in reversed(stages)))
    return {stage.name: groups.index(stage.group) * every for stage in stages}


# For custom policies


def in_stages(names: Sequence[str], stages: Sequence[Stage]) -> frozenset[str]:
    """Those of the parameters `names` that belong to one of `stages`."""
    return frozenset(name for name in names if any(stage.holds(name) for stage in stages))


def matching(names: Sequence[str], patterns: Sequence[str], stages: Sequence[Stage]) -> frozenset[str]:
    """Those of the parameters `names` that at least one pattern matches.

    Args:
        names: parameter names.
        patterns: globs (`*`, `?`, `[...]`; `*` also spans dots) on the name of a parameter (`*bias`), of a module with
            all inside it (`features.0`), of a stage (`block[12]`) or of a group (`classifier`).
        stages: of the network.

    Raises:
        ConfigError: a pattern that matches nothing; names the nearest names.
    """
    aliases = {name: _aliases(name, stages) for name in names}
    for pattern in patterns:
        if not any(fnmatchcase(alias, pattern) for each in aliases.values() for alias in each):
            known = dict.fromkeys(alias for each in aliases.values() for alias in each)
            raise ConfigError(
                f'freeze.patterns: "{pattern}" matches no parameter, module, stage or group.'
                f"{nearest(pattern, known)} The stages are {', '.join(dict.fromkeys(stage.name for stage in stages))}."
            )
    return frozenset(
        name
        for name, each in aliases.items()
        if any(fnmatchcase(alias, pattern) for alias in each for pattern in patterns)
    )


def _aliases(parameter: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The names that a pattern may match for a parameter: its own, its modules', its stage's and its group's."""
    parts = parameter.split(".")
    modules = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return *modules, *(name for stage in stages if stage.holds(parameter) for name in (stage.name, stage.group))


# Calling a policy


@dataclass(frozen=True)
class Policy:
    """A policy with its own arguments bound; calling it checks the result.

    Attributes:
        target: its dotted name, for messages.
        function: (stages, names) or (stages, names, epoch=...) -> names of the frozen parameters.
        uses_epoch: whether the function takes the epoch.
    """

    target: str
    function: Callable[..., AbstractSet[str]]
    uses_epoch: bool

    @classmethod
    def of(cls, function: Callable[..., AbstractSet[str]], **arguments: Any) -> "Policy":
        """The policy `function`, which may be a `functools.partial`, with `arguments` bound."""
        named = function
        while isinstance(named, partial):
            named = named.func
        target = f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"
        parameters = inspect.signature(function).parameters.values()
        uses_epoch = any(each.name == "epoch" or each.kind is each.VAR_KEYWORD for each in parameters)
        return cls(target, partial(function, **arguments), uses_epoch)

    def __call__(self, stages: Sequence[Stage], names: Sequence[str], epoch: int) -> frozenset[str]:
        """Names of the parameters that are frozen in `epoch`.

        Raises:
            ConfigError: the function fails, or returns something else than a set of parameter names.
        """
        where = f"freeze._target_={self.target}: in epoch {epoch} the policy"
        try:
            frozen = self.function(stages, names, **({"epoch": epoch} if self.uses_epoch else {}))
        except GraftError:
            raise
        except Exception as error:
            raise ConfigError(f"{where} fails ({type(error).__name__}: {error}).") from error
        if not isinstance(frozen, AbstractSet) or not all(isinstance(name, str) for name in frozen):
            raise ConfigError(
                f"{where} returns {type(frozen).__name__} {str(frozen)[:80]}, not a set of parameter names.\n"
                "Return frozenset(...) of some of the names that it is given."
            )
        unknown = sorted(set(frozen).difference(names))
        if unknown:
            raise ConfigError(
                f'{where} returns "{unknown[0]}", which is no parameter of this network.{nearest(unknown[0], names)}\n'
                "Return some of the names that it is given."
            )
        return frozenset(frozen)
