"""Every number of the schema has bounds, and each command refuses values outside of them by name."""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf

import graft
from graft.config.commands import EvaluateConfig, ExportConfig, SoupConfig
from graft.config.fields import BOUNDS, Bounds, check_ranges, keys_of
from graft.config.registration import SCHEMAS, typed
from graft.config.schema import CropConfig
from graft.errors import ConfigError
from graft.tasks import advise, inspect, lr_find, pack
from graft.tasks.checks import check_class_weights, settle
from graft.tasks.command_checks import check_evaluate, check_export, check_predict, check_soup

CHECKS: dict[str, Callable[[Any], Any]] = {
    "train": settle,
    "evaluate": lambda config: check_evaluate(typed(config, EvaluateConfig), ()),
    "predict": check_predict,
    "export": lambda config: check_export(typed(config, ExportConfig)),
    "inspect": inspect.check,
    "lr_find": lambda config: lr_find.checked(config, []),
    "advise": lambda config: advise.checked(config, []),
    "soup": lambda config: check_soup(typed(config, SoupConfig)),
    "pack": pack.check,
}


LIKE_TRAIN = ("train", "lr_find", "advise")
"""Commands whose defaults are those of the option files, not of the schema alone."""


@functools.cache
def composed_once(task: str) -> Any:
    return graft.compose(task=task).config


def defaults(task: str = "train") -> Any:
    return copy.deepcopy(composed_once(task))


def kinds(hint: Any) -> set[type]:
    """int and float where a key may have them, itself or in a list or mapping."""
    return {kind for part in (hint, *get_args(hint)) for kind in (part, *get_args(part)) if kind in (int, float)}


def numeric_keys() -> Iterator[tuple[str, str]]:
    for task, schema in SCHEMAS.items():
        yield from ((task, key) for key, hint, _ in keys_of(schema) if kinds(hint))


@pytest.mark.parametrize(("task", "key"), list(numeric_keys()))
def test_a_number_outside_of_its_bounds_is_refused_by_name(task: str, key: str) -> None:
    hint, metadata = next((hint, metadata) for name, hint, metadata in keys_of(SCHEMAS[task]) if name == key)
    assert BOUNDS in metadata, "every number of the schema needs bounds"
    bounds = metadata[BOUNDS]
    config = defaults(task) if task in LIKE_TRAIN else OmegaConf.structured(SCHEMAS[task])
    if key.startswith("augment.random_resized_crop"):
        config.augment.random_resized_crop = CropConfig()
    refused = []
    for value in outside(bounds, kinds(hint)):
        if "list" in str(hint):
            value = [value] * (bounds.length or 1)
        if "dict" in str(hint):
            value = {"some": value}
        OmegaConf.update(config, key, value)
        with pytest.raises(ConfigError, match="must be") as raised:
            check_ranges(config, SCHEMAS[task])
        refused.append(str(raised.value))
    assert all(message.startswith(f"{key}=") for message in refused)
    with pytest.raises(ConfigError) as raised:
        CHECKS[task](config)
    assert str(raised.value) == refused[-1], "the command checks it"


def outside(bounds: Bounds, allowed: set[type]) -> Iterator[float]:
    if int in allowed:
        yield from _beyond(bounds, 1)
    if float in allowed:
        yield from _beyond(bounds.fraction or bounds, 1e-3)
        yield from (math.nan, -math.inf, *([] if bounds.infinite else [math.inf]))


def _beyond(bounds: Bounds, step: float) -> Iterator[float]:
    """The first numbers outside, and ones far away, of the type of `step`."""
    kind = type(step)
    if bounds.least is not None:
        yield from (kind(bounds.least) - step, kind(-1_000_000))
    if bounds.above is not None:
        yield from (kind(bounds.above), kind(-1_000_000))
    if bounds.most is not None:
        yield from (kind(bounds.most) + step, kind(1_000_000))
    if bounds.below is not None:
        yield from (kind(bounds.below), kind(2**40))


@pytest.mark.parametrize("task", CHECKS)
def test_the_defaults_lie_within_the_bounds(task: str) -> None:
    """Composed, with the options of every group."""
    needed = {
        "train": (),
        "lr_find": (),
        "advise": (),
        "inspect": (),
        "predict": ("model=vgg16", "source=x"),
        "soup": ("runs=x",),
        "pack": ("output=nowhere",),
    }.get(task, ("checkpoint=x",))
    CHECKS[task](graft.compose(*needed, task=task).config)


NONSENSE = {
    "trainer.precision=17": "trainer.precision=17: unknown",
    "trainer.accelerator=cpuu": "Did you mean cpu",
    "trainer.devices=none": "trainer.devices=none: unknown",
    "scheduler.monitor=val_loss": "Did you mean val/loss",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: must be a list of 2 numbers",
    "optimizer.betas=[0.9,1]": "each number must be at least 0 and less than 1",
    "augment.random_resized_crop.scale=[1,0.5]": "must be in ascending order",
    "optimizer.nesterov=true optimizer.momentum=0": "optimizer.nesterov=true and optimizer.momentum=0 disagree",
    "trainer.limit_train_batches=1.5": "trainer.limit_train_batches=1.5: must be more than 0 and at most 1 if",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0: must be at least 1 if it is an integer",
    "trainer.gradient_clip_val=0": "trainer.gradient_clip_val=0.0: must be more than 0",
    "model.gradient_clip_val=-1": "model.gradient_clip_val=-1.0: must be more than 0",
    "trainer.max_epochs=0": "trainer.max_epochs=0: nothing to train",
    "trainer.max_epochs=-1": "trainer.max_epochs=-1 and trainer.max_steps=-1",
    "strategy.lr_multipliers.head=-1": "strategy.lr_multipliers={",
    "loss.class_weights=[1,-1]": "loss.class_weights=[1,-1]: each number must be more than 0",
    "loss.class_weights={ants: 0}": "loss.class_weights={ants: 0}: each number must be more than 0",
    "loss.class_weights=[many,few]": "must be balanced or effective_number, a number for each class",
    "loss.class_weights=balance": "Did you mean balanced",
    "freeze.schedule={classifier: -1}": "freeze.schedule={classifier: -1}: each number must be at least 0",
}


@pytest.mark.parametrize("words", NONSENSE)
def test_invalid_values_are_refused_with_the_way_out(words: str) -> None:
    overrides = [words] if "{" in words else words.split()
    config = graft.compose(*overrides).config
    with pytest.raises(ConfigError) as raised:
        settle(config)
    assert NONSENSE[words] in str(raised.value)


def test_class_weights_by_name_apply_to_their_classes() -> None:
    for words, weights in (
        ("{bees: 3}", (1.0, 3.0, 1.0)),
        ("{2: 0.5, ants: 2}", (2.0, 1.0, 0.5)),
        ("[1,2,3]", (1, 2, 3)),
    ):
        settled = settle(graft.compose(f"loss.class_weights={words}").config).loss.class_weights
        assert check_class_weights(settled, ("ants", "bees", "2")) == weights


def test_class_weights_of_other_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss\.class_weights\.ant: .* Did you mean ants"):
        check_class_weights({"ant": 2}, ("ants", "bees"))
    with pytest.raises(ConfigError, match="has 1 values, but there are 2 classes: ants, bees"):
        check_class_weights([2], ("ants", "bees"))
