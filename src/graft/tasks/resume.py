"""Compares the checkpoint that a run resumes from with its configuration and data, before anything is written."""

import copy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft.config.registration import plain
from graft.config.resuming import compare
from graft.config.schema import TrainConfig
from graft.config.targets import TARGET
from graft.config.task import SINGLE_LABEL, TASKS
from graft.errors import ConfigError, DataError, TrainingError, listed
from graft.learning.checkpoints import BEST, LAST, PREVIOUS, Progress, best_of, progress_of, read_checkpoint
from graft.learning.run_files import EVENTS, METRICS, PICTURES, TRACKERS
from graft.system.files import writing_atomically
from graft.tasks.command_checks import overridden_keys
from graft.tasks.follow_task import follow_task
from graft.tasks.run import read_summary

if TYPE_CHECKING:
    from graft.data.splits import Splits

COPIED = (METRICS, "nan_batches.jsonl", "unreadable.jsonl", EVENTS)
"""Files that a run resumed in a new folder gets from the old one, in addition to its checkpoints."""


LEFT_BY_A_RUN = (
    *COPIED, "review.npz", TRACKERS, *PICTURES, *(f"checkpoints/{name}" for name in (LAST, PREVIOUS, BEST)),
)  # fmt: skip
"""Files of an earlier attempt that a new run in the same folder removes; summary.json is already replaced."""


OLD_KEYS = (("optimizer", "name"), ("freeze", "policy"))
"""Group and key that chose a part before it was named by `_target_`."""


@dataclass(frozen=True)
class Resumption:
    """A checkpoint to resume from that fits the configuration of the run.

    Attributes:
        checkpoint: the file.
        classes: names of its classes.
        fingerprint: of its data; None in checkpoints of earlier versions.
        corrections: hash of what data.corrections had changed in them; None if nothing, or without a summary.
        notes: changes of the configuration, one sentence each.
        free: changes without an effect on any result.
        has_best: whether the run already has a best checkpoint, next to `checkpoint`.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    fingerprint: str | None
    corrections: str | None
    notes: tuple[str, ...]
    free: tuple[str, ...]
    has_best: bool

    def with_note(self, note: str) -> "Resumption":
        """A copy with `note` before the others."""
        return replace(self, notes=(note, *self.notes))

    def require_data(self, splits: "Splits") -> None:
        """Refuse data that are not those of the checkpoint.

        Raises:
            DataError: other classes, another order of them, or other images; names them.
        """
        if splits.classes != self.classes:
            raise DataError(
                f"resume: {_different_classes(self.classes, splits.classes)}\n{_as_before(self.checkpoint)}"
            )
        fingerprint = splits.fingerprint()
        applied = splits.corrections
        if self.fingerprint not in (None, fingerprint) and applied and self.corrections not in (None, applied.digest):
            raise DataError(
                f"resume: data.corrections={applied.file}: not the corrections of the checkpoint "
                f"({self.corrections[:8]} then, {applied.digest[:8]} now), so images would have other labels.\n"
                f"{_as_before(self.checkpoint)}"
            )
        if self.fingerprint not in (None, fingerprint):
            raise DataError(
                f"resume: the images are not those of the checkpoint ({self.fingerprint[:8]} then, "
                f"{fingerprint[:8]} now): some were added, removed, renamed or changed, and images may have moved "
                f"between training, validation and test.\n{_as_before(self.checkpoint)}"
            )

    def copy_into(self, folder: Path) -> None:
        """Copy checkpoints and logs to `folder`, so that it is a complete run; nothing if it is the run's folder."""
        source = self.checkpoint.parent
        if source.resolve() == (folder / "checkpoints").resolve():
            return
        _copy(self.checkpoint, folder / "checkpoints" / LAST)
        if self.has_best:
            _copy(source / BEST, folder / "checkpoints" / BEST)
        for pattern in COPIED if source.name == "checkpoints" else ():
            for file in source.parent.glob(pattern):
                _copy(file, folder / file.relative_to(source.parent))


def open_resumption(config: TrainConfig, checkpoint: Path, overrides: Sequence[str]) -> Resumption:
    """Compare a checkpoint with the configuration of the run that is to resume from it.

    Args:
        config: settled; not changed.
        checkpoint: a last.ckpt, as a rule.
        overrides: of the command line.

    Raises:
        ConfigError: a key differs that cannot change, or there is nothing left to train.
        TrainingError: the file is no checkpoint to resume from, or the best checkpoint of its run is missing.
    """
    content = read_checkpoint(checkpoint)
    if "optimizer_states" not in content or "loops" not in content:
        others = [name for name in ("last.ckpt", "previous.ckpt") if checkpoint.with_name(name).is_file()]
        instead = f"resume={checkpoint.with_name(others[0])} continues the run, or " if others else ""
        raise TrainingError(
            f"resume={checkpoint}: it holds weights and no state of the optimizer, so no run can continue from it.\n"
            f"{instead}model.weights={checkpoint} begins a new run with its weights."
        )
    config = copy.deepcopy(config)
    with _naming_malformed(checkpoint):
        follow_task(config, TASKS.get(content["graft"].get("task"), SINGLE_LABEL))
        return _compared(plain(config), checkpoint, content, overrides)


def _compared(
    current: Mapping[str, Any], checkpoint: Path, content: Mapping[str, Any], overrides: Sequence[str]
) -> Resumption:
    _refuse_older_version(content["graft"]["config"], checkpoint)
    progress = progress_of(content)
    run = read_summary(checkpoint.parent.parent)
    effects, free = compare(
        _complete(content["graft"]["config"]),
        current,
        overridden_keys(overrides),
        epochs=progress.epochs,
        within_epoch=progress.within_epoch,
        resume=str(checkpoint),
        way_out=_as_before(checkpoint, run),
    )
    _require_best(checkpoint, content, progress, effects)
    if run.get("status") not in ("interrupted", "failed"):
        _require_more(current, content["graft"]["config"], progress, run.get("status"))
    return Resumption(
        checkpoint=checkpoint,
        classes=tuple(content["graft"]["classes"]),
        fingerprint=content["graft"].get("fingerprint"),
        corrections=corrections_of(run),
        notes=tuple(effects),
        free=tuple(free),
        has_best=bool(best_of(content)),
    )


def corrections_of(run: Mapping[str, Any]) -> str | None:
    """The hash of the corrections in the summary of a run; None if there is none."""
    data = run.get("data")
    corrections = data.get("corrections") if isinstance(data, dict) else None
    digest = corrections.get("sha256") if isinstance(corrections, dict) else None
    return digest if isinstance(digest, str) else None


def _refuse_older_version(recorded: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse the checkpoint of a version whose optimizer and freeze policy had names instead of targets."""
    old = [f"{group}.{key}" for group, key in OLD_KEYS if key in recorded[group] and TARGET not in recorded[group]]
    if old:
        weights = checkpoint.with_name(BEST) if checkpoint.with_name(BEST).is_file() else checkpoint
        raise TrainingError(
            f"resume={checkpoint}: the run was recorded by an older version of Graft ({' and '.join(old)}), whose "
            "optimizer and schedule this version cannot continue exactly.\n"
            f"Evaluate the run: graft evaluate checkpoint={weights}\n"
            f"Or begin a new one with its weights: model.weights={weights}"
        )


@contextmanager
def _naming_malformed(checkpoint: Path) -> Iterator[None]:
    """Turn an error about a missing or wrong value of a checkpoint into a TrainingError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OmegaConfBaseException) as error:
        raise TrainingError(
            f"resume={checkpoint}: not a checkpoint that a run can continue from ({type(error).__name__}: {error})."
        ) from error


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration, with defaults for the keys that its version did not have."""
    # plain, not the schema itself: another version's checkpoint may have keys that this one does not know
    merged = OmegaConf.merge(OmegaConf.to_container(OmegaConf.structured(TrainConfig)), config)
    return OmegaConf.to_container(merged, resolve=True)  # type: ignore[return-value]


def _require_best(checkpoint: Path, content: Mapping[str, Any], progress: Progress, effects: Sequence[str]) -> None:
    """Refuse to continue without the run's best checkpoint so far: the result would be worse."""
    state = best_of(content)
    if not state:
        return
    best, score = checkpoint.with_name(BEST), f"{state['monitor']}={float(state['best_model_score']):.4f}"
    if not best.is_file():
        raise TrainingError(
            f"{best}: missing. {checkpoint.name} says that the best epoch so far, with {score}, is in it, and without "
            f"it the run would end with a worse one.\nPut it back, or begin a new run: model.weights={checkpoint}."
        )
    saved_at, found = state.get("saved_at"), read_checkpoint(best)["global_step"]
    if saved_at in (None, found):
        return
    if found <= progress.steps:
        raise TrainingError(
            f"{best}: it is of step {found}, and {checkpoint.name} says that the best epoch so far, with {score}, was "
            f"saved at step {saved_at}.\nPut the file of this run back, or begin a new run: model.weights={checkpoint}."
        )
    if effects:  # the epoch that wrote it is repeated, and must give the same result
        raise ConfigError(
            f"{best}: it is of step {found}, after the last step of {checkpoint.name}, {progress.steps}: the run was "
            "killed in between.\nResume it once without changes, for an epoch at least, and change then:\n"
            + "\n".join(effects)
        )


def _require_more(
    current: Mapping[str, Any], before: Mapping[str, Any], progress: Progress, status: str | None
) -> None:
    """Refuse to resume a finished run with nothing left to train; an unfinished one may still need its test."""
    trainer, patience = current["trainer"], current["callbacks"]["early_stopping"]
    done = {"max_epochs": progress.epochs, "max_steps": progress.steps}
    for key, count in done.items():
        if 0 < trainer[key] <= count:
            raise ConfigError(
                f"resume: the run has reached trainer.{key}={trainer[key]}"
                + (f" ({count} done)" if count > trainer[key] else "")
                + f"; raise it to continue, e.g. trainer.{key}={2 * count}."
            )
    if status == "finished" and patience is not None and patience == before["callbacks"]["early_stopping"]:
        raise ConfigError(
            f"resume: callbacks.early_stopping={patience} has ended the run after epoch {progress.epochs}; "
            "raise it to continue."
        )


def _different_classes(before: Sequence[str], now: Sequence[str]) -> str:
    if set(before) == set(now):
        return (
            "the classes are in another order than the checkpoint's, so each output would stand for another class: "
            f"{_listed(before)} then, {_listed(now)} now."
        )
    added, removed = [name for name in now if name not in before], [name for name in before if name not in now]
    return (
        "the classes are not those of the checkpoint"
        + "".join(f"; {what}: {_listed(names)}" for what, names in (("added", added), ("removed", removed)) if names)
        + "."
    )


def _listed(names: Sequence[str]) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in listed(names, 20, counted=False))


def _as_before(checkpoint: Path, run: Mapping[str, Any] | None = None) -> str:
    words = [str(word) for word in (run or {}).get("overrides", ()) if str(word).isprintable()]
    overrides = f" (its overrides were: {' '.join(words)})" if words else ""
    weights = checkpoint.with_name(BEST) if checkpoint.with_name(BEST).is_file() else checkpoint
    return f"Resume with what the run had{overrides}, or begin a new run with its weights: model.weights={weights}."


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, writing_atomically(target) as write:
        shutil.copyfileobj(read, write)


def remove_earlier_attempt(folder: Path) -> None:
    """Remove the files of an attempt that was stopped before its first checkpoint."""
    for pattern in LEFT_BY_A_RUN:
        for file in folder.glob(pattern):
            file.unlink()
