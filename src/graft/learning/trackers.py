"""Experiment trackers, through Lightning's loggers: the name, group and id of a run, images, and the end of a run.

Lightning's loggers have no common interface for these. A tracker's package is imported only by its logger.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger
from PIL import Image

from graft.config.targets import TARGET, short_name


@dataclass(frozen=True)
class TrackedRun:
    """A run, as described to a tracker.

    Attributes:
        name: the run's folder, e.g. "2026-03-01_10-15-00", or of a sweep "lr_search/3".
        group: name of its sweep; None for a single run.
        id: the tracker's own name of the run that is resumed; None for a new one.
    """

    name: str
    group: str | None = None
    id: str | None = None


class Tracker:
    """How a run is opened, shown and closed in a tracker.

    Attributes:
        way_out: what to do if the tracker cannot be reached; {key} is the key of the logger.
        fixed_choices: whether hyperparameters cannot be changed once they are logged.
    """

    way_out = "Leave it out of logger=[…]."
    fixed_choices = False

    def arguments(self, run: TrackedRun, own: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for the logger; those in `own`, the user's, have priority."""
        return {}

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """A context for the first contact with the tracker."""
        yield

    def open(self, logger: Any, run: TrackedRun) -> str:
        """Start or continue the run in the tracker; returns its id."""
        return str(logger.version)

    def show(self, logger: Any, tag: str, image: Image.Image, step: int) -> None:
        """Log an image."""
        logger.log_image(tag, [image], step=step)

    def finish(self, logger: Any, success: bool) -> None:
        """End the run, so that the next run of this process is another one in the tracker."""
        logger.finalize("success" if success else "failed")


class Wandb(Tracker):
    """Weights & Biases."""

    way_out = "Run `wandb login`, or set WANDB_API_KEY; or log to files with {key}.offline=true."

    def arguments(self, run: TrackedRun, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": run.name, "group": run.group, "id": run.id}

    def open(self, logger: Any, run: TrackedRun) -> str:
        return str(logger.experiment.id)

    def finish(self, logger: Any, success: bool) -> None:
        super().finish(logger, success)
        logger.experiment.finish(exit_code=0 if success else 1)


class MLflow(Tracker):
    """MLflow."""

    way_out = "Start the server, or give {key}.tracking_uri another address or sqlite:///FILE."
    fixed_choices = True

    def arguments(self, run: TrackedRun, own: Mapping[str, Any]) -> dict[str, Any]:
        tags = {**({"sweep": run.group} if run.group else {}), **(own.get("tags") or {})}
        return {"run_name": run.name, "tags": tags or None, "run_id": run.id}

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Give up after 2 retries: MLflow's 7 take minutes."""
        key = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
        if key in os.environ:
            yield
            return
        os.environ[key] = "2"
        try:
            yield
        finally:
            del os.environ[key]

    def open(self, logger: Any, run: TrackedRun) -> str:
        if run.id is not None:
            logger.experiment.update_run(run.id, status="RUNNING")
        return str(logger.run_id)

    def show(self, logger: Any, tag: str, image: Image.Image, step: int) -> None:
        logger.experiment.log_image(logger.run_id, image, key=tag, step=step)


class Comet(Tracker):
    """Comet."""

    way_out = "Set COMET_API_KEY; or log to files with {key}.online=false."

    def arguments(self, run: TrackedRun, own: Mapping[str, Any]) -> dict[str, Any]:
        tags = [*([run.group] if run.group else []), *(own.get("tags") or [])]
        return {"name": run.name, "tags": tags or None, "experiment_key": run.id}

    def show(self, logger: Any, tag: str, image: Image.Image, step: int) -> None:
        logger.experiment.log_image(image, name=tag, step=step)

    def finish(self, logger: Any, success: bool) -> None:
        super().finish(logger, success)
        logger.experiment.end()


class Aim(Tracker):
    """Aim."""

    def arguments(self, run: TrackedRun, own: Mapping[str, Any]) -> dict[str, Any]:
        logging.getLogger("aim.sdk.reporter").setLevel(logging.WARNING)  # it logs each of its threads
        return {"run_name": run.name, "run_hash": run.id}

    def open(self, logger: Any, run: TrackedRun) -> str:
        if run.group is not None and run.id is None:
            logger.experiment.add_tag(run.group)
        return super().open(logger, run)

    def show(self, logger: Any, tag: str, image: Image.Image, step: int) -> None:
        from aim import Image as AimImage

        logger.experiment.track(AimImage(image), name=tag, step=step)


TRACKERS: Mapping[str, Tracker] = {
    "WandbLogger": Wandb(),
    "MLFlowLogger": MLflow(),
    "CometLogger": Comet(),
    "comet": Comet(),
    "AimLogger": Aim(),
}
"""Name of a logger's class, or of the function that builds it -> its tracker."""


def tracker_named(node: Mapping[str, Any]) -> Tracker | None:
    """The tracker of a logger's configuration, by the last part of its target; None for another logger."""
    return TRACKERS.get(short_name(str(node[TARGET])))


def tracker_of(logger: Logger) -> Tracker | None:
    """The tracker of a logger, by its class or a base of it; None for another logger."""
    return next((TRACKERS[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in TRACKERS), None)


def show_image(logger: Logger, tag: str, image: Image.Image, step: int) -> None:
    """Log an image to a tracker; other loggers show none."""
    tracker = tracker_of(logger)
    if tracker is not None:
        tracker.show(logger, tag, image, step)
