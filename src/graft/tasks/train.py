"""`graft train`: fit a network, keep its best checkpoint, test it, write the run folder."""

import logging
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from graft.config.choices import choices
from graft.config.config_hash import config_hash
from graft.config.metrics import known_directions
from graft.config.registration import plain, typed
from graft.config.schema import TrainConfig
from graft.errors import listed
from graft.learning.run_files import EVENTS, PICTURES
from graft.system import downloads
from graft.system.files import is_within
from graft.system.gpu import require_gpu
from graft.system.signals import STOP
from graft.system.slurm import first_task
from graft.system.startup import garbage_collection_paused
from graft.tasks.checks import check_loss_weights, settle
from graft.tasks.data import available_data
from graft.tasks.follow_task import adapted
from graft.tasks.locations import check_locations
from graft.tasks.prepare import PreparedRun, claimed, find_resumption, prepare, resume_when_queued_again
from graft.tasks.run import Run

if TYPE_CHECKING:
    from graft.data.splits import Splits

log = logging.getLogger("graft")

LISTED = 20
"""Largest number of classes whose names are logged."""


def main(config: DictConfig) -> float | None:
    """Run `graft train` and return the value of `optimized_metric`, for a sweeper.

    Args:
        config: a TrainConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra, cfg = HydraConfig.get(), typed(config, TrainConfig)
    command = Command(Path(hydra.runtime.output_dir), list(hydra.overrides.task), dict(hydra.runtime.choices))
    if not first_task():
        logging.getLogger().handlers.clear()
    prepared = claimed() or prepare(cfg, command.overrides, command.folder, generated_name=False)
    with _logging_resume_command(command), prepared:
        return train(cfg, command, prepared)["metrics"].get(cfg.optimized_metric)


@dataclass(frozen=True)
class Command:
    """The command that starts a run, in addition to its configuration.

    Attributes:
        folder: of the run.
        overrides: of the command line, e.g. "strategy=scratch".
        picked: the option of each config group, e.g. {"augment": "basic"}.
        in_sweep: whether the run is a job of a sweep, whose overrides need not all apply to each job.
        swept: keys that the sweep varies.
    """

    folder: Path
    overrides: list[str]
    picked: dict[str, str]
    in_sweep: bool = False
    swept: tuple[str, ...] = ()


def train(config: TrainConfig, command: Command, prepared: PreparedRun | None = None) -> dict[str, Any]:
    """Train and test a run; returns the content of its summary.json.

    Args:
        config: of the run; it is settled in place.
        command: its command.
        prepared: from `prepare`; None for a job of a sweep, which has claimed its folder.
    """
    check_locations(config, {"hydra.run.dir": command.folder})
    resume_when_queued_again(config)
    run = open_run(config, command)
    with STOP.handling_signals(), run.recording():
        settle(config, () if command.in_sweep else command.overrides)
        run.summary["config"] = choices(plain(config), command.picked)
        run.summary["higher_is_better"] = known_directions(config.metrics.parts())
        require_gpu(config.trainer.accelerator)
        resumption = prepared.resumption if prepared else find_resumption(config, command.overrides, command.folder)
        splits = prepared.splits if prepared else None
        downloads.configure(config.download)
        with garbage_collection_paused():
            if splits is None:
                splits = available_data(config)
                if resumption is not None:
                    resumption.require_data(splits)
            splits = adapted(config, splits)
            run.summary["config"] = choices(plain(config), command.picked)
            run.summary["higher_is_better"] = known_directions(config.metrics.parts())
            check_loss_weights(config, splits.classes)
            log.info("data  %s", data_line(splits))
            from graft.tasks import fit  # imports torch and Lightning, now that every check has passed

        run.summary |= {
            "task": splits.task.name,
            "classes": list(splits.classes),
            "data": run.summary["data"]
            | {
                "counts": splits.counts(),
                "fingerprint": splits.fingerprint(),
                "content": splits.source,
                "validates_on_test": splits.val is splits.test,
                "notes": list(splits.notes),
                "left_out": dict((*splits.unreadable, *splits.dropped)),
                "unused": dict(Counter(reason for _, reason in splits.unused)),
                **({} if splits.corrections is None else {"corrections": splits.corrections.plain()}),
            },
        }
        fit.run(config, splits, run, resumption, command.folder.parent.name if command.in_sweep else None)
        if config.callbacks.keep == "none":
            run.summary["checkpoint"] = None
    if run.writes:  # summary.json says "finished" by now, so no checkpoint is needed to resume
        remove_checkpoints(run.folder, config.callbacks.keep)
    chosen = f"the best {config.optimized_metric}" if config.callbacks.checkpoint == "best" else "the last"
    outputs = Path(config.paths.outputs)
    shown = outputs if is_within(run.folder, outputs) else run.folder
    log_outcome(run, shown, chosen, next_steps=not command.in_sweep)
    return run.summary


def log_outcome(run: Run, outputs: Path, chosen: str, *, next_steps: bool) -> None:
    """Log the end of a run.

    Args:
        run: its record.
        outputs: the folder whose runs TensorBoard is to show.
        chosen: why its checkpoint was kept: "the best val/acc" or "the last".
        next_steps: whether to log the commands that show, evaluate and use the run.
    """
    summary, folder = run.summary, run.folder
    if "best_epoch" in summary:
        log.info(
            "results are of epoch %d of %d (%s)  %s in all",
            *(summary["best_epoch"], summary["epochs"], chosen, duration(summary["seconds"])),
        )
    log.info("run folder  %s", folder)
    if pictures := [str(folder / name) for name in PICTURES if (folder / name).is_file()]:
        log.info("pictures  %s", "  ".join(pictures))
    if not next_steps:
        return
    commands = [["tensorboard", "--logdir", str(outputs)]] if any(folder.glob(EVENTS)) else []
    if summary.get("checkpoint"):
        commands += [
            ["graft", "evaluate", f"checkpoint={folder}"],
            ["graft", "predict", f"checkpoint={folder}", "source=IMAGE_OR_FOLDER"],
        ]
    for words in commands:
        log.info("  %s", shlex.join(words))


def data_line(splits: "Splits") -> str:
    """The number of images of each split, and the classes: "3,130 train · 540 val and test · 2 classes: ants, bees"."""
    parts = [f"{len(images):,} {name}" for name, images in splits.distinct_parts().items()]
    names = listed(splits.classes, LISTED, counted=False)
    return " · ".join([*parts, f"{len(splits.classes):,} classes: {names}"])


def duration(seconds: float) -> str:
    """A duration for people: "12.3 s", "4 min 5 s", "2 h 3 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def remove_checkpoints(folder: Path, keep: str) -> None:
    """Remove the checkpoints that a finished run does not keep (callbacks.keep)."""
    for name in {"all": (), "best": ("last.ckpt",), "none": ("last.ckpt", "best.ckpt")}[keep]:
        (folder / "checkpoints" / name).unlink(missing_ok=True)


def open_run(config: TrainConfig, command: Command) -> Run:
    """The record of the run that is about to start."""
    run = Run.open(
        command.folder,
        seed=config.seed,
        identity=config_hash(config),
        overrides=command.overrides,
        resuming=config.resume is not None,
    )
    run.summary |= {
        "fold": config.data.fold,
        "swept": list(command.swept),
        "config": choices(plain(config), command.picked),
    }
    run.summary["data"] = {"root": config.data.root}
    return run


@contextmanager
def _logging_resume_command(command: Command) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (command.folder / "checkpoints" / "last.ckpt").is_file():
            kept = [word for word in command.overrides if not word.startswith(("resume=", "hydra.run.dir="))]
            words = shlex.join(["graft", "train", *kept, f"hydra.run.dir={command.folder}", "resume=auto"])
            log.info("interrupted; resume with\n  %s", words)
        raise
