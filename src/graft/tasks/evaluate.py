"""`graft evaluate`: the figures of a checkpoint again, on its own data set or another."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft import downloads
from graft.config.inference import check_evaluate, said_keys
from graft.config.training import DataConfig, TrainConfig
from graft.data.sources import locate
from graft.data.splits import Splits
from graft.errors import DataError
from graft.learning.checkpoints import checkpoint_file
from graft.startup import uncollected
from graft.tasks.train import data_root, open_data

log = logging.getLogger("graft")


def main(config: Any) -> float:
    """Evaluate as `config` (an EvaluateConfig, composed by Hydra) says; returns the accuracy to a sweeper."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    said = said_keys(hydra.overrides.task)
    check_evaluate(config, said)
    downloads.configure(config.download)
    checkpoint = checkpoint_file(config.checkpoint)
    with uncollected():
        from graft.tasks import score  # torch only now that there is something to evaluate

    return score.run(config, checkpoint, said, Path(hydra.runtime.output_dir))


def run_config(config: Any, made: dict[str, Any], said: Collection[str]) -> Any:
    """The run's own TrainConfig with the data that `config` (an EvaluateConfig) asks for.

    Args:
        config: what is asked.
        made: the run's configuration, as its checkpoint holds it.
        said: keys of the command line. A key of `data` that is not among them is the run's, so that naming the run's
            own set gives the run's own splits.
    """
    # Plain, not the schema itself: another version's checkpoint may have keys that this one does not know.
    run: Any = OmegaConf.merge(OmegaConf.to_container(OmegaConf.structured(TrainConfig)), made)
    if config.data.name not in (None, run.data.name):
        kept = {key: run.data[key] for key in ("batch_size", "num_workers", "resident_gb")}
        given = {key: value for key, value in config.data.items() if value is not None}
        run.data = OmegaConf.merge(OmegaConf.structured(DataConfig), kept, given)
    elif "paths.data" in said and run.data.root is not None:
        run.data.root = moved(run.data.root, run.paths.data, config.paths.data)
    for key in said:
        if key.startswith("data."):
            OmegaConf.update(run, key, OmegaConf.select(config, key))
    return run


def moved(root: str, old: str, new: str) -> str:
    """`root` with the folder `old` that it lies in replaced by `new`; as it is when it lies elsewhere."""
    return str(Path(new) / Path(root).relative_to(old)) if Path(root).is_relative_to(old) else root


def open_splits(run: Any) -> Splits:
    """The data set that `run` (a TrainConfig) names.

    Raises:
        DataError: it is neither here nor within reach; says where to put it.
    """
    missing = locate(run.data.name, data_root(run), download=run.data.download)
    if missing is not None:
        raise DataError(
            f"{missing}\nIf it lies elsewhere: paths.data=FOLDER (of all sets) or data.root=FOLDER (of this one)."
        )
    return open_data(run)


def summary_beside(checkpoint: Path) -> dict[str, Any]:
    """What the run said of itself, where the checkpoint still lies in the run's folder; else nothing."""
    try:
        summary: dict[str, Any] = json.loads((checkpoint.parents[1] / "summary.json").read_text())
    except (OSError, ValueError, IndexError):
        return {}
    return summary


def different_data(splits: Splits, summary: dict[str, Any]) -> list[str]:
    """A note when the images are not those that the run divided."""
    then, now = summary.get("data", {}).get("fingerprint"), splits.fingerprint()
    if then in (None, now):
        return []
    return [
        f"the data are not those of the run: images were added, removed or changed ({then[:8]} then, {now[:8]} now)"
    ]
