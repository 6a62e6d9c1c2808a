"""Optuna's search space, read from Hydra's override grammar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, Transformer

from graft.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, CategoricalChoiceType


@dataclass(frozen=True)
class SearchSpace:
    """What a search varies and what it keeps fixed.

    Attributes:
        distributions: for each key that is searched, the distribution of its values.
        fixed: for each key that is the same in all trials, its value as written.
        deletions: overrides that delete a key ("~key"), the same in all trials.
    """

    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    deletions: list[str]

    @classmethod
    def of(cls, overrides: Iterable[Override]) -> SearchSpace:
        """Read parsed overrides; of several for one key the last one counts.

        Raises:
            ConfigError: a range or an interval that contains no value; names the override.
        """
        distributions: dict[str, BaseDistribution] = {}
        fixed: dict[str, Any] = {}
        deletions = []
        for override in overrides:
            if override.is_delete():
                deletions.append(str(override.input_line))
                continue
            key = override.get_key_element()
            distributions.pop(key, None)
            fixed.pop(key, None)
            if override.is_sweep_override():
                distributions[key] = distribution_of(override)
            else:
                fixed[key] = override.get_value_element_as_str()
        return cls(distributions, fixed, deletions)

    def grid(self) -> dict[str, list[CategoricalChoiceType]]:
        """Every value of each searched key, for a sampler that tries all combinations.

        Raises:
            ConfigError: a key has an interval, which has no list of values.
        """
        return {key: _values_of(key, distribution) for key, distribution in self.distributions.items()}

    def overrides(self, chosen: dict[str, Any]) -> tuple[str, ...]:
        """The overrides of a job whose searched keys have the values `chosen`."""
        return (*(f"{key}={value}" for key, value in {**chosen, **self.fixed}.items()), *self.deletions)


def distribution_of(override: Override) -> BaseDistribution:
    """The Optuna distribution of a sweep: choices, a range or an interval, logarithmic with tag(log, …).

    Raises:
        ConfigError: it contains no value; names the override.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start or 0, value.end or 0, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(low, high, log=log)
        choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
        plain_range = override.is_range_sweep() and not getattr(value, "shuffle", False) and len(choices) > 1
        if plain_range and all(type(choice) is int for choice in choices):
            return IntDistribution(min(choices), max(choices), step=abs(choices[1] - choices[0]))
        if plain_range and all(type(choice) is float for choice in choices):
            step = float(abs(value.step))
            distribution = FloatDistribution(min(choices), max(choices), step=step)
            if distribution.high == max(choices):  # else the values lie closer than floats are exact
                return distribution
        return CategoricalDistribution(choices)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{override.input_line}: nothing to search ({error}).") from error


def _values_of(key: str, distribution: BaseDistribution) -> list[CategoricalChoiceType]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [round(distribution.low + index * distribution.step, 12) for index in range(count)]
    raise ConfigError(
        f"{key}: a grid of all combinations needs a list of values, and this is an interval.\n"
        f"Use a range or a choice, for example {key}=choice(0.1,0.01), or another hydra/sweeper/sampler."
    )
