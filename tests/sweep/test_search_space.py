"""Sweeps of the command line as Optuna's distributions."""

from typing import Any

import pytest

pytest.importorskip("optuna")

from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from graft.errors import ConfigError
from graft.sweep.search_space import SearchSpace


def space(*words: str) -> SearchSpace:
    return SearchSpace.of(OverridesParser.create().parse_overrides([*words]))


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("int(interval(1,10))", IntDistribution(1, 10)),
        ("interval(0.0,1)", FloatDistribution(0.0, 1.0)),
        ("int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("range(8,65,8)", IntDistribution(8, 64, step=8)),
        ("range(10,0,-3)", IntDistribution(1, 10, step=3)),
        ("range(0.0,0.5,0.1)", FloatDistribution(0.0, 0.4, step=0.1)),
        ("shuffle(range(1,4))", None),
        ("choice(a,2,0.5,true)", CategoricalDistribution(["a", 2, 0.5, True])),
        ("a,b", CategoricalDistribution(["a", "b"])),
    ],
)
def test_each_kind_of_sweep_becomes_a_distribution(sweep: str, expected: Any) -> None:
    found = space(f"x={sweep}").distributions["x"]
    if expected is None:
        assert isinstance(found, CategoricalDistribution)
        assert sorted(found.choices) == [1, 2, 3]  # type: ignore[type-var]
    else:
        assert found == expected


def test_the_last_override_of_a_key_wins() -> None:
    found = space("x=interval(0,1)", "y=3", "x=2", "y=choice(1,2)", "~z")
    assert found.fixed == {"x": "2"}
    assert list(found.distributions) == ["y"]
    assert found.overrides({"y": 1}) == ("y=1", "x=2", "~z")


@pytest.mark.parametrize("sweep", ["interval(2,1)", "range(3,1)", "tag(log,interval(0.0,1.0))", "range(1,3,0)"])
def test_a_sweep_without_values_is_refused_by_name(sweep: str) -> None:
    with pytest.raises(ConfigError, match="x="):
        space(f"x={sweep}")


def test_a_grid_of_an_interval_is_refused_with_the_way_out() -> None:
    assert space("x=range(0.0,0.3,0.1)", "y=choice(a,b)", "z=range(3)").grid() == {
        "x": [0.0, 0.1, 0.2], "y": ["a", "b"], "z": [0, 1, 2],
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"x=choice"):
        space("x=interval(0,1)").grid()
