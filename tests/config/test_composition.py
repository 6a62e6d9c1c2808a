"""Every option of every group composes, fits the schema and documents its use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from graft.config import conf_dir
from graft.config.choices import choices
from graft.config.registration import plain, register
from graft.tasks.checks import settle

GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir())
OPTIONS = sorted(str(file.relative_to(conf_dir()).with_suffix("")) for file in conf_dir().glob("*/*.yaml"))


TASKS = {"format": "export"}
"""The task of a group, if it is not `train`."""


def composed(*overrides: str, task: str = "train"):
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose(task, list(overrides))


def together() -> Iterator[dict[str, str]]:
    """Every option of the groups of `graft train` that can be combined, as many at once as there are groups."""
    by_group: dict[str, list[str]] = {}
    for option in OPTIONS:
        group, name = option.split("/")
        if group not in (*TASKS, "experiment", "hydra"):  # presets: tests/end_to_end/test_experiments.py
            by_group.setdefault(group, []).append(name)
    for number in range(max(map(len, by_group.values()))):
        yield {group: names[number % len(names)] for group, names in by_group.items()}


@pytest.mark.parametrize("options", list(together()), ids=lambda options: options["model"])
def test_every_option_composes_and_fits_the_schema(options: dict[str, str]) -> None:
    config = composed(*(f"{group}={name}" for group, name in options.items()))
    for group, name in options.items():
        if group in config:
            incomplete = group in ("data", "model") or name == "target"
            OmegaConf.to_container(config[group], resolve=True, throw_on_missing=not incomplete)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_file_shows_a_command_that_uses_it(option: str) -> None:
    text = (conf_dir() / f"{option}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    assert len(comments) >= 2
    if not option.startswith("paths/"):
        group = option.split("/")[0]
        assert f"{group}=" in "".join(comments) or f"{group}." in "".join(comments), "no example of its use"


def test_the_default_is_vgg16_finetuned_on_ants_and_bees() -> None:
    config = composed()
    assert (config.model.name, config.strategy.name, config.data._target_) == (
        "vgg16",
        "finetune",
        "graft.data.sources.hymenoptera.load",
    )
    assert config.model.weights == "default"


def test_a_strategy_sets_its_freeze_policy_and_an_override_wins() -> None:
    assert composed("strategy=feature_extract").freeze._target_ == "graft.transfer.freeze.backbone"
    assert composed("strategy=feature_extract", "freeze=features").freeze._target_ == "graft.transfer.freeze.features"
    assert composed("strategy=finetune").freeze._target_ == "graft.transfer.freeze.none"
    assert composed("strategy=gradual").freeze._target_ == "graft.transfer.freeze.gradual"


def test_scratch_ignores_pretrained_weights() -> None:
    assert settle(composed("strategy=scratch")).model.weights is None


def test_runs_that_differ_only_in_seed_and_paths_share_their_choices() -> None:
    def of(*overrides: str) -> dict:
        return choices(plain(settle(composed("strategy=scratch", *overrides))), {})

    assert of("seed=1", "paths.outputs=elsewhere", "data.num_workers=2") == of("seed=2")
    assert of("optimizer.lr=0.5") != of()
    assert of("model.dropout=0.3") != of()


def test_conf_is_found_in_the_checkout() -> None:
    assert conf_dir() == Path(__file__).resolve().parents[2] / "conf"


def test_a_schedule_is_given_on_the_command_line() -> None:
    config = settle(composed("strategy=gradual", "freeze.schedule={classifier: 1, block5: 3}"))
    assert dict(config.freeze.schedule) == {"classifier": 1, "block5": 3}
