"""The configuration and data that a checkpoint is evaluated with: those of its run, or what a command overrides."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.config.commands import EvaluateConfig, EvaluateDataConfig, ExportConfig
from graft.config.recorded import recorded_run, require_trusted
from graft.config.schema import DataConfig, TrainConfig
from graft.data.sources import checked_name, is_data_module, known_sources, source_target
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError
from graft.tasks.data import divide_data, missing_data, open_data
from graft.tasks.run import valid_summary

if TYPE_CHECKING:
    from graft.learning.restore import Restored


def run_config(
    config: EvaluateConfig | ExportConfig,
    recorded: Mapping[str, Any],
    overrides: Collection[str],
    source: str = "checkpoint",
) -> TrainConfig:
    """The configuration of a run as far as its checkpoint records it, with the data that `config` names.

    All other keys have their defaults, because training does not matter here. Nothing is downloaded to a folder that
    only the checkpoint names.

    Args:
        config: of the command.
        recorded: the run's configuration, as `recorded_run` reads it.
        overrides: keys set on the command line. A key of `data` that is not among them is the run's, so that the run's
            own data set has the run's own splits.
        source: the checkpoint's file, for messages.

    Raises:
        ConfigError: the checkpoint names no data set, or one of a package that is not in `config.trust`.
    """
    run = TrainConfig()
    for key, value in recorded_run(recorded, source).items():
        if isinstance(value, Mapping):
            vars(getattr(run, key)).update(value)
        else:
            setattr(run, key, value)
    own = recorded.get("data", {}).get("_target_")
    if config.data._target_ is None:
        require_trusted_source(own, source, config.trust)
    if config.data._target_ not in (None, own):
        kept = {key: getattr(run.data, key) for key in ("batch_size", "num_workers", "timeout")}
        named = {key: value for key, value in vars(config.data).items() if value is not None}
        run.data = DataConfig()
        vars(run.data).update(kept | named)
    else:
        run.data.download = "paths.data" in overrides
        if "paths.data" in overrides and run.data.root is not None:
            run.data.root = with_new_parent(run.data.root, run.paths.data, config.paths.data)
    for key in overrides:
        if key.startswith("data."):
            _copy(config, run, key)
    if "data.root" in overrides and "data.download" not in overrides:
        run.data.download = True
    return run


def _copy(source: object, target: object, key: str) -> None:
    """Give the dotted `key` of `target` its value in `source`, None if it has none; both are typed configurations."""
    *parents, last = key.split(".")
    for name in parents:
        source, target = _fields(source).get(name, {}), _fields(target).setdefault(name, {})
    _fields(target)[last] = _fields(source).get(last)


def _fields(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else vars(node)


def require_trusted_source(target: str | None, source: str, trust: Sequence[str]) -> None:
    """Raise ConfigError unless the data set that a checkpoint names is Graft's own or of a trusted package."""
    if target is None:
        raise ConfigError(f"{source}: names no data set.\nGive one: data=… data.root=FOLDER.")
    if target not in map(source_target, known_sources()):
        require_trusted("data._target_", target, source, trust)


def with_new_parent(root: str, old: str, new: str) -> str:
    """`root` with its parent folder `old` replaced by `new`; unchanged if it is not in `old`."""
    return str(Path(new) / Path(root).relative_to(old)) if Path(root).is_relative_to(old) else root


def open_splits(run: TrainConfig) -> Splits:
    """The data set of a run.

    Raises:
        DataError: it is not on this machine and cannot be downloaded; names the path to put it at.
    """
    run.data.name = checked_name(run.data.name, run.data._target_)
    missing = missing_data(run)
    if missing is not None:
        raise DataError(
            f"{missing}\nIf it is somewhere else, or to download it: paths.data=FOLDER (of all data sets) "
            "or data.root=FOLDER (of this one)."
        )
    return open_data(run)


def summary_next_to(checkpoint: Path) -> dict[str, Any]:
    """The summary of the run, if the checkpoint is still in the run's folder; else an empty one."""
    return valid_summary(checkpoint.absolute().parents[1]) if len(checkpoint.absolute().parents) > 1 else {}


def notes_on_changed_data(splits: Splits, summary: dict[str, Any]) -> list[str]:
    """A note if the images are not those of the run."""
    data, current = summary.get("data"), splits.fingerprint()
    recorded = data.get("fingerprint") if isinstance(data, dict) else None
    if recorded == current or not isinstance(recorded, str):
        return []
    before = ascii(recorded[:8])[1:-1]
    return [
        f"the data are not those of the run: images were added, removed or changed ({before} then, {current[:8]} now)"
    ]


def notes_on_training_images(
    config: EvaluateConfig, restored: "Restored", evaluated: TrainConfig, splits: Splits
) -> list[str]:
    """A note if images of validation or test, on which a network is evaluated, have trained it.

    This happens in an ensemble whose runs divided the same data set differently, such as the folds of a
    cross-validation: the validation images of one have trained the others.

    Args:
        config: of the command.
        restored: the network.
        evaluated: the run whose data are evaluated.
        splits: these data.
    """
    recorded = restored.config.get("data", {}).get("_target_")
    if config.split not in ("val", "test") or recorded != evaluated.data._target_ or is_data_module(recorded):
        return []
    own = run_config(dataclasses.replace(config, data=EvaluateDataConfig()), restored.config, (), restored.source)
    restored.preprocessing.image_format.configure(own.data)
    own.data.root = evaluated.data.root
    if (vars(own.data), own.seed) == (vars(evaluated.data), evaluated.seed):
        return []
    try:
        trained = set(divide_data(own).train.names)
    except DataError as error:
        return [f"whether these images have trained {restored.source} is unknown: {str(error).splitlines()[0]}"]
    images = splits.parts()[config.split]
    count = sum(name in trained for name in images.names)
    return [f"{count:,} of the {len(images):,} {config.split} images have trained {restored.source}"] if count else []
