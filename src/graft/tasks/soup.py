"""`graft soup`: average the weights of several checkpoints of the same network."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from graft.config.commands import SoupConfig
from graft.config.registration import typed
from graft.errors import ConfigError, TrainingError
from graft.learning.checkpoints import PREVIOUS, checkpoint_files
from graft.report.summary import find_summaries
from graft.system import downloads
from graft.system.folder_lock import claimed_folder
from graft.system.startup import garbage_collection_paused
from graft.tasks.command_checks import check_soup, overridden_keys, texts_of


def main(config: DictConfig) -> float:
    """Run `graft soup` and return the value of the metric on the validation images, for a sweeper.

    Args:
        config: a SoupConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    cfg = typed(config, SoupConfig)
    check_soup(cfg)
    downloads.configure(cfg.download)
    files = ingredients(texts_of(cfg.runs))
    with garbage_collection_paused():
        from graft.tasks import souping  # torch is imported only once there is something to average

    return souping.run(cfg, files, overridden_keys(hydra.overrides.task), Path(hydra.runtime.output_dir))


def claim(config: DictConfig, folder: Path, generated_name: bool) -> Path:
    """Check the command and its folder before Hydra writes to `folder`; return the folder to use.

    Raises:
        ConfigError, TrainingError: the configuration, the checkpoints, or a folder that is already used.
    """
    cfg = typed(config, SoupConfig)
    check_soup(cfg)
    ingredients(texts_of(cfg.runs))
    return claimed_folder(folder, generated_name, {"summary.json": "a run"})


def ingredients(values: Sequence[str]) -> list[Path]:
    """The checkpoints that `runs=` names, at least two.

    Of a run's folder the best one, of a folder of checkpoints all but previous.ckpt, of any other folder the best ones
    of the finished runs in it.

    Raises:
        ConfigError: fewer than two, or the same file twice.
        TrainingError: a path without a checkpoint.
    """
    named: list[str] = []
    for value in values:
        folder = Path(value).expanduser()
        if not folder.is_dir() or (folder / "checkpoints").is_dir():
            named.append(value)
        elif found := sorted(file for file in folder.glob("*.ckpt") if file.name != PREVIOUS):
            named += map(str, found)
        else:
            named += map(str, best_of_runs(folder))
    files = checkpoint_files(named)
    if len(files) < 2:
        raise ConfigError(f"runs={','.join(values)}: one checkpoint, {files[0]}; there is nothing to average it with.")
    return files


def best_of_runs(folder: Path) -> list[Path]:
    """The checkpoints of the finished runs in a folder, in the order of their folders' names.

    Raises:
        TrainingError: there are none.
    """
    runs = [run for run in find_summaries(folder)[0] if run.status == "finished"]
    runs = [run for run in runs if run.epochs]  # not those of other soups
    files = [run.folder / run.checkpoint for run in runs if run.checkpoint]
    if not files:
        kept = "; they kept no checkpoints (callbacks.keep=none)" if runs else ""
        raise TrainingError(f"runs={folder}: no checkpoint of a finished run in it{kept}.")
    return sorted(files, key=lambda file: [int(part) if part.isdecimal() else part for part in file.parts[-3:-2]])
