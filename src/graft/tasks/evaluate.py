"""`graft evaluate`: the figures of a checkpoint again, on its own data set or another."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft.config.command_checks import check_evaluate, said_keys
from graft.config.recorded import demand_trust, recorded_run
from graft.config.schema import DataConfig, TrainConfig
from graft.data.sources import known_sources, locate
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError
from graft.learning.checkpoints import checkpoint_file
from graft.system import downloads
from graft.system.files import require_writable
from graft.system.folder_lock import new_folder
from graft.system.startup import uncollected
from graft.tasks.run import valid_summary
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


def claim(config: Any, folder: Path, own_name: bool) -> Path:
    """Refuse what cannot be evaluated before Hydra writes to `folder`; returns the folder to use.

    Raises:
        ConfigError, TrainingError: the configuration, the checkpoint, or a folder that holds something already.
    """
    check_evaluate(config, said_keys(config.hydra.overrides.task))
    checkpoint_file(config.checkpoint)
    if own_name:
        return new_folder(folder)
    require_writable(folder, "hydra.run.dir")
    found = [name for name in ("evaluation.json", "summary.json") if (folder / name).exists()]
    if found:
        what = "a run" if "summary.json" in found else "an evaluation"
        raise ConfigError(f"hydra.run.dir={folder}: holds {found[0]} of {what}.\nGive another folder.")
    return folder


def run_config(config: Any, made: Mapping[str, Any], said: Collection[str], source: str = "checkpoint") -> Any:
    """A TrainConfig of what decides the run's figures, with the data that `config` (an EvaluateConfig) asks for.

    The rest is as usual: how a network was trained does not matter here. Nothing is downloaded to a folder that only
    the checkpoint names.

    Args:
        config: what is asked.
        made: what `recorded_run` reads of the run's configuration.
        said: keys of the command line. A key of `data` that is not among them is the run's, so that naming the run's
            own set gives the run's own splits.
        source: the checkpoint's file, for messages.

    Raises:
        ConfigError: the checkpoint names no data set, or one that would have to be imported from a package that is
            not in `config.trust`.
    """
    run: Any = OmegaConf.merge(OmegaConf.to_container(OmegaConf.structured(TrainConfig)), recorded_run(made, source))
    own = None if OmegaConf.is_missing(run.data, "name") else run.data.name
    if config.data.name is None:
        demand_source(own, source, config.trust)
    if config.data.name not in (None, own):
        kept = {key: run.data[key] for key in ("batch_size", "num_workers", "timeout")}
        given = {key: value for key, value in config.data.items() if value is not None}
        run.data = OmegaConf.merge(OmegaConf.structured(DataConfig), kept, given)
    else:
        run.data.download = "paths.data" in said
        if "paths.data" in said and run.data.root is not None:
            run.data.root = moved(run.data.root, run.paths.data, config.paths.data)
    for key in said:
        if key.startswith("data."):
            OmegaConf.update(run, key, OmegaConf.select(config, key))
    if "data.root" in said and "data.download" not in said:
        run.data.download = True
    return run


def demand_source(name: str | None, source: str, trust: Sequence[str]) -> None:
    """Raise ConfigError unless the data set that a checkpoint names is Graft's own or of a trusted package."""
    if name is None:
        raise ConfigError(f"{source}: names no data set.\nGive one: data=… data.root=FOLDER.")
    if name not in known_sources():
        demand_trust("data.name", name, source, trust)


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
            f"{missing}\nIf it lies elsewhere, or is to be fetched: paths.data=FOLDER (of all sets) or "
            "data.root=FOLDER (of this one)."
        )
    return open_data(run)


def summary_beside(checkpoint: Path) -> dict[str, Any]:
    """What the run said of itself, where the checkpoint still lies in the run's folder; else nothing."""
    return valid_summary(checkpoint.absolute().parents[1]) if len(checkpoint.absolute().parents) > 1 else {}


def different_data(splits: Splits, summary: dict[str, Any]) -> list[str]:
    """A note when the images are not those that the run divided."""
    data, now = summary.get("data"), splits.fingerprint()
    then = data.get("fingerprint") if isinstance(data, dict) else None
    if then == now or not isinstance(then, str):
        return []
    shown = ascii(then[:8])[1:-1]
    return [f"the data are not those of the run: images were added, removed or changed ({shown} then, {now[:8]} now)"]
