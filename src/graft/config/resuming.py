"""Table of the configuration keys that may change when a run is resumed; any other change is refused."""

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
    """A key whose value differs from the checkpoint.

    Attributes:
        key: e.g. "optimizer.lr".
        before, after: value in the checkpoint and current value.
        config: current configuration as plain containers.
        epochs: number of completed epochs of the checkpoint.
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
    """How a change of a key is handled.

    Attributes:
        effect: description of the effect for the log, or a function that returns it.
        explicit: the key must be set on the command line, so that a forgotten override changes nothing.
        between_epochs: the change is only possible between epochs.
        length: the change affects the number of optimizer steps, so schedules planned over the whole run refuse it.
        allowed: predicate of the changes that the rule applies to; None: all.
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
        effect += ", and the cosine schedule follows the new length from the next step on"
    if change.key == "trainer.max_steps":
        effect += "; an epoch truncated by the old limit is not completed"
    return effect


OTHER_BATCHES = "from the next epoch on, the batches differ, so the result equals that of neither value"
ROUNDING = "results may differ by rounding from now on"

# Key -> how its change is handled on resume. Other keys, also new ones of the schema, must not change, except those
# without an effect on results (WITHOUT_EFFECT).
RULES: Mapping[str, Rule] = {
    "trainer.max_epochs": Rule(_longer, length=True),
    "trainer.max_steps": Rule(_longer, length=True),
    "trainer.max_time": Rule("the time used so far counts, and the schedule follows the new budget"),
    "data.root": Rule("the images are read from the new folder; they must be the same"),
    "data.table": Rule("the labels are read from the new table; images and labels must be the same"),
    "data.corrections": Rule(
        "the corrections are read from the new file; they must be the same",
        allowed=lambda change: None not in (change.before, change.after),
    ),
    "data.on_error": Rule("unreadable images are handled in the new way from now on"),
    "trainer.accelerator": Rule(ROUNDING),
    "trainer.precision": Rule(ROUNDING),
    "trainer.deterministic": Rule(ROUNDING),
    "trainer.benchmark": Rule(ROUNDING),
    "trainer.channels_last": Rule(ROUNDING),
    "trainer.compile": Rule(ROUNDING),
    "trainer.keep_memory": Rule("does not change results"),
    "trainer.strategy": Rule(ROUNDING, between_epochs=True),
    "trainer.devices": Rule(OTHER_BATCHES, between_epochs=True, length=True),
    "trainer.num_nodes": Rule(OTHER_BATCHES, between_epochs=True, length=True),
    "trainer.val_check_interval": Rule("the best checkpoint is chosen from the new validations from now on"),
    "trainer.limit_test_batches": Rule("the test uses another number of images"),
    "trainer.baseline": Rule("a resumed run has no baseline"),
    "trainer.test": Rule("the test at the end runs or is skipped"),
    "tta": Rule("affects the test metrics only"),
    "views.": Rule("affects the test metrics only"),
    "callbacks.early_stopping": Rule("validations without improvement continue to be counted, against the new number"),
    "loss.on_nan": Rule("steps with a non-finite loss are handled in the new way from now on"),
    "loss.teacher": Rule("the teacher is read from there; it must be the same"),
    "loss.nan_limit": Rule("counted from the start of the run"),
    "cache.mode": Rule(
        "does not change results", allowed=lambda change: {change.before, change.after} == {"auto", "none"}
    ),
    "optimizer.lr": Rule("every learning rate, and its schedule, is scaled from the next step on", explicit=True),
    "optimizer.weight_decay": Rule("from the next step on", explicit=True),
    "trainer.gradient_clip_val": Rule("from the next step on", explicit=True),
    "data.batch_size": Rule(OTHER_BATCHES, explicit=True, between_epochs=True, length=True),
    "trainer.accumulate_grad_batches": Rule(OTHER_BATCHES, explicit=True, between_epochs=True, length=True),
}  # fmt: skip

# Reason why a change is refused, by prefix of the key; the first match applies.
REASONS: Mapping[str, str] = {
    "seed": "images would move between training, validation and test, and the order of the batches would change",
    "data.preprocess.": "the network would see other pixels",
    "data.draft": "the network would see other pixels",
    "data.sampler": "the result would be that of neither sampler",
    "data.corrections": "images would have other labels, or be in the data set or not",
    "data.": "images would move between training, validation and test",
    "model.": "the weights belong to another network or another initialisation",
    "freeze.": "the optimizer's state belongs to other parameters",
    "strategy.": "the optimizer's state belongs to other parameter groups",
    "optimizer.sam_rho": "the steps before and after would aim at different minima",
    "optimizer.sam_adaptive": "the steps before and after would aim at different minima",
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
"""Keys of the command, which differ whenever a run is resumed or belongs to another sweep."""


def compare(
    before: Plain,
    after: Plain,
    overrides: Collection[str],
    *,
    epochs: int,
    within_epoch: bool,
    resume: str,
    way_out: str,
) -> tuple[list[str], list[str]]:
    """List the changes between the configuration of a checkpoint and the current one, or refuse them.

    Args:
        before: configuration of the checkpoint, as plain containers.
        after: current configuration.
        overrides: keys set on the command line.
        epochs: number of completed epochs of the checkpoint.
        within_epoch: whether the checkpoint was written within the next epoch.
        resume, way_out: value of `resume` and alternative, for the error message.

    Returns:
        (changes that affect results, changes that do not), one sentence each.

    Raises:
        ConfigError: names every key that cannot change, both values, the reason and the way out.
    """
    effects, free, refused = [], [], []
    for change in _changes(before, after, epochs):
        if matches(change.key, COMMAND_KEYS):
            continue
        if matches(change.key, WITHOUT_EFFECT):
            free.append(f"resume: {change} (does not change results)")
            continue
        rule = next((rule for key, rule in RULES.items() if matches(change.key, (key,))), None)
        refusal = _refusal(change, rule, overrides, within_epoch)
        if refusal is not None:
            refused.append(f"  {change}\n    {refusal}")
        elif rule is not None:
            effects.append(f"resume: {change}: {rule.description(change)}")
    if refused:
        raise ConfigError(
            f"resume={resume}: the configuration differs from that of the checkpoint, and these keys cannot change:\n"
            + "\n".join([*refused, way_out])
        )
    return effects, free


def _changes(before: Plain, after: Plain, epochs: int) -> list[Change]:
    old, new = dict(flat(before)), dict(flat(after))
    keys = [key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)]
    changes = [Change(key, old.get(key, ABSENT), new.get(key, ABSENT), after, epochs) for key in keys]
    return [change for change in changes if not _same_batch_size(change)]


def _same_batch_size(change: Change) -> bool:
    """Whether a change only sets data.batch_size=auto, which means the checkpoint's batch size on resume."""
    return change.key == "data.batch_size" and change.after == "auto"


def _refusal(change: Change, rule: Rule | None, overrides: Collection[str], within_epoch: bool) -> str | None:
    """Reason why a change is refused; None if it is allowed."""
    if rule is None or (rule.allowed is not None and not rule.allowed(change)):
        return next((reason for part, reason in REASONS.items() if matches(change.key, (part,))), DEFAULT_REASON)
    schedule = str(change.config["scheduler"].get("_target_"))
    if rule.length and schedule.lower().endswith(("onecycle", "onecyclelr")):
        return f"{schedule} plans its whole course from the length of the run"
    if rule.between_epochs and within_epoch:
        return f"it can only change between epochs, and the checkpoint was written within epoch {change.epochs + 1}"
    if rule.explicit and change.key not in overrides:
        return (
            f"set one of them explicitly: {change.key}={_shown(change.before)} continues as before, "
            f"{change.key}={_shown(change.after)} changes it"
        )
    return None


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else f"{text[:77]}..."
