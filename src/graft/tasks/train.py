"""`graft train`: fit a network, keep its best checkpoint, test it, write the run folder."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graft.config.recipes import recipe_of
from graft.config.validation import QUICKSTART, choices, settle
from graft.data.sources import load_splits, locate
from graft.data.splits import Splits
from graft.errors import DataError
from graft.learning.gpu import require_gpu
from graft.tasks.run import Run

log = logging.getLogger("graft")

REACH_SECONDS = 2.0
"""How long an address may take to answer before it counts as out of reach."""


def main(config: Any) -> float | None:
    """Train as `config` (a TrainConfig, composed by Hydra) says; returns `optimized_metric` to a sweeper."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    run = Run.open(Path(hydra.runtime.output_dir), seed=config.seed)
    with run.recording(), _saying_how_to_go_on(run.folder, hydra.overrides.task):
        settle(config, said=hydra.overrides.task if hydra.mode == RunMode.RUN else ())
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        run.summary["config"] = choices(plain, dict(hydra.runtime.choices))
        require_gpu(config.trainer.accelerator)
        check_available(config)
        splits = open_data(config)
        run.summary |= {
            "classes": list(splits.classes),
            "data": {"counts": splits.counts(), "fingerprint": splits.fingerprint(), "notes": list(splits.notes)},
        }
        from graft.tasks import fit  # torch and Lightning only now that nothing is known to stand in the way

        fit.run(config, plain, splits, run)
    log.info("run folder  %s", run.folder)
    return run.summary["metrics"].get(config.optimized_metric)


@contextmanager
def _saying_how_to_go_on(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (folder / "checkpoints" / "last.ckpt").is_file():
            kept = [word for word in overrides if not word.startswith(("resume=", "hydra.run.dir="))]
            command = shlex.join(["graft", "train", *kept, f"hydra.run.dir={folder}", "resume=auto"])
            log.info("interrupted; go on with\n  %s", command)
        raise


def check_available(config: Any) -> None:
    """Stop before anything is downloaded or built when data or weights are neither here nor within reach.

    Raises:
        DataError: names what is missing, its address, the place to put it, and what trains without it.
    """
    data, weights = config.data, config.model.weights
    said = []
    missing = locate(data.name, data_root(config), download=data.download, timeout=REACH_SECONDS)
    if missing is not None:
        said.append(f"{missing}\nWithout it: data=faces or data=digits (embedded), or data=folder data.root=FOLDER.")
    if weights is not None and (missing is None or weights == "default"):
        from graft.models.weights import locate_weights  # imports torch: only now

        lacking = locate_weights(recipe_of(config), weights, timeout=REACH_SECONDS)
        if lacking is not None:
            said.append(f"{lacking}\nWithout them: strategy=scratch.")
    if said:
        raise DataError("\n\n".join([*said, f"Offline, with what is embedded: {QUICKSTART}"]))


def open_data(config: Any) -> Splits:
    """The splits of the configured data set, downloaded where needed."""
    data = config.data
    return load_splits(
        data.name,
        root=data_root(config),
        seed=config.seed,
        shots=data.shots,
        val_fraction=data.val_fraction,
        fold=data.fold,
        folds=data.folds,
        download=data.download,
        options=dict(data.options),
    )


def data_root(config: Any) -> Path | None:
    """The folder of the configured set; None for embedded ones."""
    return None if config.data.root is None else Path(config.data.root).expanduser()
