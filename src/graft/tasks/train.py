"""`graft train`: fit a network, keep its best checkpoint, test it, write the run folder."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from graft.config.config_hash import config_hash
from graft.config.registration import plain, typed
from graft.config.schema import TrainConfig
from graft.system import downloads
from graft.system.gpu import require_gpu
from graft.system.signals import STOP
from graft.system.slurm import first_task
from graft.system.startup import garbage_collection_paused
from graft.tasks.checks import check_class_weights, choices, settle
from graft.tasks.data import check_available, open_data
from graft.tasks.locations import check_locations
from graft.tasks.prepare import Prepared, claimed, find_resumption, prepare, resume_when_queued_again
from graft.tasks.run import Run

log = logging.getLogger("graft")


def main(config: DictConfig) -> float | None:
    """Train as `config` (a TrainConfig, composed by Hydra) says; returns `optimized_metric` to a sweeper."""
    from hydra.core.hydra_config import HydraConfig

    hydra, cfg = HydraConfig.get(), typed(config, TrainConfig)
    command = Command(Path(hydra.runtime.output_dir), list(hydra.overrides.task), dict(hydra.runtime.choices))
    if not first_task():
        logging.getLogger().handlers.clear()
    prepared = claimed() or prepare(cfg, command.overrides, command.folder, generated_name=False)
    with _explaining_how_to_resume(command), prepared:
        return train(cfg, command, prepared)["metrics"].get(cfg.optimized_metric)


@dataclass(frozen=True)
class Command:
    """What a run is told beside its configuration.

    Attributes:
        folder: where everything of the run goes.
        overrides: what was said on the command line, e.g. "strategy=scratch".
        picked: Hydra's choice of each group, e.g. {"augment": "basic"}.
        in_sweep: the run is a job of a sweep, so that a value may be meant for others of its jobs.
    """

    folder: Path
    overrides: list[str]
    picked: dict[str, str]
    in_sweep: bool = False


def train(config: TrainConfig, command: Command, prepared: Prepared | None = None) -> dict[str, Any]:
    """One run from beginning to end; returns what its summary.json says.

    Args:
        config: of the run; it is settled in place.
        command: its command.
        prepared: as `prepare` gives it; None for a job, whose folder its sweep has claimed.
    """
    check_locations(config, {"hydra.run.dir": command.folder})
    resume_when_queued_again(config)
    run = open_run(config, command)
    with STOP.handling_signals(), run.recording():
        settle(config, () if command.in_sweep else command.overrides)
        run.summary["config"] = choices(plain(config), command.picked)
        require_gpu(config.trainer.accelerator)
        resumption = prepared.resumption if prepared else find_resumption(config, command.overrides, command.folder)
        splits = prepared.splits if prepared else None
        downloads.configure(config.download)
        with garbage_collection_paused():
            if splits is None:
                check_available(config)
                splits = open_data(config)
                if resumption is not None:
                    resumption.require_data(splits)
            check_class_weights(config.loss.class_weights, splits.classes)
            from graft.tasks import fit  # torch and Lightning only now that nothing is known to stand in the way

        run.summary |= {
            "classes": list(splits.classes),
            "data": run.summary["data"]
            | {
                "counts": splits.counts(),
                "fingerprint": splits.fingerprint(),
                "content": splits.source,
                "validates_on_test": splits.val is splits.test,
                "notes": list(splits.notes),
                "left_out": dict(splits.left_out),
            },
        }
        fit.run(config, splits, run, resumption)
        if config.callbacks.keep == "none":
            run.summary["checkpoint"] = None
    if run.writes:  # the summary says by now that nothing need go on from here
        thin_out(run.folder, config.callbacks.keep)
    log.info("run folder  %s", run.folder)
    return run.summary


def thin_out(folder: Path, keep: str) -> None:
    """Remove what a finished run is not to keep of its checkpoints (callbacks.keep)."""
    for name in {"all": (), "best": ("last.ckpt",), "none": ("last.ckpt", "best.ckpt")}[keep]:
        (folder / "checkpoints" / name).unlink(missing_ok=True)


def open_run(config: TrainConfig, command: Command) -> Run:
    """The record of the run that is about to begin."""
    run = Run.open(
        command.folder,
        seed=config.seed,
        identity=config_hash(config),
        overrides=command.overrides,
        going_on=config.resume is not None,
    )
    run.summary |= {"fold": config.data.fold, "config": choices(plain(config), command.picked)}
    run.summary["data"] = {"root": config.data.root}
    return run


@contextmanager
def _explaining_how_to_resume(command: Command) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (command.folder / "checkpoints" / "last.ckpt").is_file():
            kept = [word for word in command.overrides if not word.startswith(("resume=", "hydra.run.dir="))]
            words = shlex.join(["graft", "train", *kept, f"hydra.run.dir={command.folder}", "resume=auto"])
            log.info("interrupted; go on with\n  %s", words)
        raise
