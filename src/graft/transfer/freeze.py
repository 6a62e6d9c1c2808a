"""Freeze policies: which parameters stand still in which epoch.

A policy is a pure function of (stages, parameter names, epoch, options), registered where it is written; a
new one is such a function and one file in `conf/freeze/`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graft.errors import ConfigError, nearest
from graft.transfer.stages import CLASSIFIER, HEAD, Stage


@dataclass(frozen=True)
class FreezeOptions:
    """What a policy is told.

    Attributes:
        patterns: for "custom": globs on names of parameters, modules, stages or groups.
        schedule: for "gradual": group or stage -> the epoch from which on it trains, counted from 0.
        every: for "gradual" without a schedule: epochs between one group and the next.
    """

    patterns: tuple[str, ...] = ()
    schedule: Mapping[str, int] | None = None
    every: int = 1


NEVER = float("inf")

Rule = Callable[[Sequence[Stage], Sequence[str], int, FreezeOptions], frozenset[str]]


@dataclass(frozen=True)
class FreezePolicy:
    """A registered rule.

    Attributes:
        name: as in `freeze.policy`.
        static: whether the rule ignores the epoch.
        rule: (stages, parameter names, epoch, options) -> names of the frozen parameters.
    """

    name: str
    static: bool
    rule: Rule


POLICIES: dict[str, FreezePolicy] = {}


def freeze_policy(name: str, *, static: bool = True) -> Callable[[Rule], Rule]:
    """Register the decorated rule as `freeze.policy=name`."""

    def register(rule: Rule) -> Rule:
        POLICIES[name] = FreezePolicy(name, static, rule)
        return rule

    return register


def find_policy(name: str) -> FreezePolicy:
    """The policy called `name`.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"freeze.policy={name}: no such policy.{nearest(name, POLICIES)} There are {', '.join(POLICIES)}."
        )
    return POLICIES[name]


@freeze_policy("none")
def freeze_nothing(stages: Sequence[Stage], names: Sequence[str], epoch: int, options: FreezeOptions) -> frozenset[str]:
    """Everything trains."""
    return frozenset()


@freeze_policy("features")
def freeze_features(
    stages: Sequence[Stage], names: Sequence[str], epoch: int, options: FreezeOptions
) -> frozenset[str]:
    """All convolutions stand still: every stage below the classifier and the head."""
    return _in_stages(names, [stage for stage in stages if stage.group not in (CLASSIFIER, HEAD)])


@freeze_policy("backbone")
def freeze_backbone(
    stages: Sequence[Stage], names: Sequence[str], epoch: int, options: FreezeOptions
) -> frozenset[str]:
    """All but the head stands still."""
    return _in_stages(names, [stage for stage in stages if stage.group != HEAD])


@freeze_policy("custom")
def freeze_patterns(
    stages: Sequence[Stage], names: Sequence[str], epoch: int, options: FreezeOptions
) -> frozenset[str]:
    """What the patterns name stands still.

    A pattern is a glob (`*`, `?`, `[...]`; `*` also spans dots) on the name of a parameter (`*bias`), a
    module (`features.0`, with all inside), a stage (`block[12]`) or a group (`classifier`).

    Raises:
        ConfigError: no pattern at all, or one that matches nothing; names the nearest names.
    """
    if not options.patterns:
        raise ConfigError("freeze=custom: says nothing to freeze. Set freeze.patterns=[...], e.g. [block1,'*.bias'].")
    called = {name: _names_of(name, stages) for name in names}
    for pattern in options.patterns:
        if not any(fnmatchcase(alias, pattern) for aliases in called.values() for alias in aliases):
            everything = dict.fromkeys(alias for aliases in called.values() for alias in aliases)
            groups = ", ".join(dict.fromkeys(stage.name for stage in stages))
            raise ConfigError(
                f'freeze.patterns: "{pattern}" matches no parameter, module, stage or group.'
                f"{nearest(pattern, everything)} The stages are {groups}."
            )
    return frozenset(
        name
        for name, aliases in called.items()
        if any(fnmatchcase(alias, pattern) for alias in aliases for pattern in options.patterns)
    )


@freeze_policy("gradual", static=False)
def freeze_gradually(
    stages: Sequence[Stage], names: Sequence[str], epoch: int, options: FreezeOptions
) -> frozenset[str]:
    """What has not had its turn stands still (Howard & Ruder 2018, "gradual unfreezing").

    With a schedule each group or stage trains from its epoch on, a stage's own entry going before its
    group's; the head trains from epoch 0 unless the schedule says otherwise, and what it does not name never
    trains. Without one the head trains at once and `every` epochs later the next group, from output to input.

    Raises:
        ConfigError: a name that is no group or stage of this network, a negative epoch, or `every` below 1.
    """
    begins = _scheduled(stages, options.schedule) if options.schedule else _one_by_one(stages, options.every)
    return _in_stages(names, [stage for stage in stages if epoch < begins[stage.name]])


def _scheduled(stages: Sequence[Stage], schedule: Mapping[str, int]) -> dict[str, float]:
    known = dict.fromkeys(word for stage in stages for word in (stage.group, stage.name))
    for name, epoch in schedule.items():
        if name not in known:
            raise ConfigError(
                f'freeze.schedule: "{name}" is no group or stage of this network.{nearest(name, known)} '
                f"There are {', '.join(known)}."
            )
        if epoch < 0:
            raise ConfigError(f"freeze.schedule.{name}={epoch}: an epoch is counted from 0.")
    whole = {HEAD: 0, **schedule}
    return {stage.name: whole.get(stage.name, whole.get(stage.group, NEVER)) for stage in stages}


def _one_by_one(stages: Sequence[Stage], every: int) -> dict[str, float]:
    if every < 1:
        raise ConfigError(f"freeze.every={every}: at least 1 epoch is wanted between one group and the next.")
    groups = list(dict.fromkeys(stage.group for stage in reversed(stages)))
    return {stage.name: groups.index(stage.group) * every for stage in stages}


def _in_stages(names: Sequence[str], stages: Sequence[Stage]) -> frozenset[str]:
    return frozenset(name for name in names if any(stage.holds(name) for stage in stages))


def _names_of(parameter: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """What a pattern may call a parameter: itself, the modules around it, its stage and group."""
    parts = parameter.split(".")
    around = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return *around, *(word for stage in stages if stage.holds(parameter) for word in (stage.name, stage.group))
