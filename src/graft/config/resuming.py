"""What may change in the configuration of a run that is resumed: one table, and what is not in it may not."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from graft.config.config_hash import WITHOUT_EFFECT, flat, matches
from graft.errors import ConfigError

Plain = Mapping[str, Any]
Effect = Callable[["Change"], str]

ABSENT = "(not set)"
COSINE = "graft.learning.schedulers.cosine"


@dataclass(frozen=True)
class Change:
    """A key whose value is not that of the checkpoint.

    Attributes:
        key: e.g. "optimizer.lr".
        before, after: its value in the checkpoint, and now.
        config: the whole configuration now, as plain containers.
        epochs: how many epochs the checkpoint has completed.
    """

    key: str
    before: Any
    after: Any
    config: Plain
    epochs: int

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} in the checkpoint, {_shown(self.after)} now"


@dataclass(frozen=True)
class Rule:
    """How a change is treated.

    Attributes:
        effect: what the change does from here on, for the log; or a function that says it.
        explicit: it must be asked for on the command line, so that a forgotten override changes nothing.
        between_epochs: it cannot be made within an epoch.
        length: it changes how many optimizer steps the run has; what plans its course over all of them cannot follow.
        allowed: which changes the rule is for; None: all.
    """

    effect: str | Effect
    explicit: bool = False
    between_epochs: bool = False
    length: bool = False
    allowed: Callable[[Change], bool] | None = None

    def description(self, change: Change) -> str:
        return self.effect if isinstance(self.effect, str) else self.effect(change)


def _longer(change: Change) -> str:
    end = {"trainer.max_epochs": "epoch", "trainer.max_steps": "step"}[change.key]
    effect = "training has no such limit" if change.after == -1 else f"training ends after {end} {change.after}"
    if change.config["scheduler"].get("_target_") == COSINE:
        effect += ", and the cosine schedule, which ends there, is that of the new length from the next step on"
    if change.key == "trainer.max_steps":
        effect += "; an epoch that the old limit cut is not completed"
    return effect


OTHER_BATCHES = "from the next epoch on, the same images come in other batches, so the result is that of neither value"
ROUNDING = "figures may differ by rounding from here on"

# key → how a change of it on resume is treated. What is not here is refused, and so is every key that is added to the
# schema until it is decided here; what changes no figure (WITHOUT_EFFECT) is free.
RULES: Mapping[str, Rule] = {
    "trainer.max_epochs": Rule(_longer, length=True),
    "trainer.max_steps": Rule(_longer, length=True),
    "data.root": Rule("the images are read from there; they must be the same ones"),
    "data.on_error": Rule("images that cannot be read are treated so from here on"),
    "trainer.accelerator": Rule(ROUNDING),
    "trainer.precision": Rule(ROUNDING),
    "trainer.deterministic": Rule(ROUNDING),
    "trainer.benchmark": Rule(ROUNDING),
    "trainer.channels_last": Rule(ROUNDING),
    "trainer.compile": Rule(ROUNDING),
    "trainer.keep_memory": Rule("changes no figure"),
    "trainer.strategy": Rule(ROUNDING, between_epochs=True),
    "trainer.devices": Rule(OTHER_BATCHES, between_epochs=True, length=True),
    "trainer.num_nodes": Rule(OTHER_BATCHES, between_epochs=True, length=True),
    "trainer.val_check_interval": Rule("the best checkpoint is chosen among other validations from here on"),
    "trainer.limit_test_batches": Rule("the test has other images"),
    "trainer.baseline": Rule("a resumed run has no baseline of its own"),
    "trainer.test": Rule("the test is made, or left out, at the end"),
    "tta": Rule("the test's figures only"),
    "views.": Rule("the test's figures only"),
    "callbacks.early_stopping": Rule("validations without improvement are counted on, against the new number"),
    "loss.on_nan": Rule("steps whose loss is not finite are treated so from here on"),
    "loss.nan_limit": Rule("counted from the beginning of the run"),
    "cache.mode": Rule(
        "changes no figure", allowed=lambda change: {change.before, change.after} == {"auto", "none"}
    ),
    "optimizer.lr": Rule("every learning rate, and its schedule, is scaled from the next step on", explicit=True),
    "optimizer.weight_decay": Rule("from the next step on", explicit=True),
    "trainer.gradient_clip_val": Rule("from the next step on", explicit=True),
    "data.batch_size": Rule(OTHER_BATCHES, explicit=True, between_epochs=True, length=True),
    "trainer.accumulate_grad_batches": Rule(OTHER_BATCHES, explicit=True, between_epochs=True, length=True),
}  # fmt: skip

# Why a change is refused, by the key's prefix; the first that fits.
REASONS: Mapping[str, str] = {
    "seed": "images would move between training, validation and test, and the order of the batches change",
    "data.preprocess.": "the network would see other pixels",
    "data.draft": "the network would see other pixels",
    "data.": "images would move between training, validation and test",
    "model.": "the weights are those of another network, or of another start",
    "freeze.": "the optimizer's state belongs to other parameters",
    "strategy.": "the optimizer's state belongs to other parameter groups",
    "optimizer.": "the optimizer's state is not that of this optimizer",
    "scheduler.": "the schedule's state is not that of this schedule",
    "augment.": "the result would be that of neither augmentation",
    "loss.": "losses before and after could not be compared, and the best checkpoint may be chosen by them",
    "optimized_metric": "the best checkpoint so far was chosen by the other metric",
    "callbacks.checkpoint": "the best checkpoint so far was chosen otherwise",
    "callbacks.ema": "the checkpoint has no such average",
    "trainer.limit_val_batches": "validations before and after could not be compared",
}
DEFAULT_REASON = "not known to be safe"

COMMAND_KEYS = ("resume", "sweep_name", "search.")
"""Keys that differ whenever a run is resumed or belongs to another sweep."""


def compare(
    before: Plain,
    after: Plain,
    overrides: Collection[str],
    *,
    epochs: int,
    within_epoch: bool,
    wanted: str,
    way_out: str,
) -> tuple[list[str], list[str]]:
    """What changes when a run is resumed with another configuration.

    Args:
        before: the checkpoint's configuration, as plain containers.
        after: the configuration now.
        overrides: the keys that the command line sets.
        epochs: how many epochs the checkpoint has completed.
        within_epoch: it was written within the next one.
        wanted, way_out: `resume`, and what else can be done, for the error message.

    Returns:
        (changes that have an effect, changes that change no figure), one sentence each.

    Raises:
        ConfigError: names every key that cannot change, both values, the reason and the way out.
    """
    effects, free, refused = [], [], []
    for change in _changes(before, after, epochs):
        if matches(change.key, COMMAND_KEYS):
            continue
        if matches(change.key, WITHOUT_EFFECT):
            free.append(f"resume: {change} (changes no figure)")
            continue
        rule = next((rule for key, rule in RULES.items() if matches(change.key, (key,))), None)
        fault = _fault(change, rule, overrides, within_epoch)
        if fault is not None:
            refused.append(f"  {change}\n    {fault}")
        elif rule is not None:
            effects.append(f"resume: {change}: {rule.description(change)}")
    if refused:
        raise ConfigError(
            f"resume={wanted}: the configuration is not that of the checkpoint, and these keys cannot change:\n"
            + "\n".join([*refused, way_out])
        )
    return effects, free


def _changes(before: Plain, after: Plain, epochs: int) -> list[Change]:
    old, new = dict(flat(before)), dict(flat(after))
    keys = [key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)]
    changes = [Change(key, old.get(key, ABSENT), new.get(key, ABSENT), after, epochs) for key in keys]
    return [change for change in changes if not _same_batch_size(change)]


def _same_batch_size(change: Change) -> bool:
    """data.batch_size=auto is that of the checkpoint on resume."""
    return change.key == "data.batch_size" and change.after == "auto"


def _fault(change: Change, rule: Rule | None, overrides: Collection[str], within_epoch: bool) -> str | None:
    """Why the change cannot be made; None where it can."""
    if rule is None or (rule.allowed is not None and not rule.allowed(change)):
        return next((reason for part, reason in REASONS.items() if matches(change.key, (part,))), DEFAULT_REASON)
    schedule = str(change.config["scheduler"].get("_target_"))
    if rule.length and schedule.lower().endswith(("onecycle", "onecyclelr")):
        return f"{schedule} plans its whole course from the length of the run"
    if rule.between_epochs and within_epoch:
        return f"it can change between epochs only, and the checkpoint is from within epoch {change.epochs + 1}"
    if rule.explicit and change.key not in overrides:
        return (
            f"say which one is meant: {change.key}={_shown(change.before)} continues as before, "
            f"{change.key}={_shown(change.after)} changes it"
        )
    return None


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else f"{text[:77]}..."
