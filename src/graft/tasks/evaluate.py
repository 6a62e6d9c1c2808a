"""`graft evaluate`: the figures of a checkpoint again, on its own data set or another."""

from pathlib import Path
from typing import Any

from graft.config.command_checks import check_evaluate, overridden_keys
from graft.errors import ConfigError
from graft.learning.checkpoints import checkpoint_file
from graft.system import downloads
from graft.system.files import require_writable
from graft.system.folder_lock import new_folder
from graft.system.startup import uncollected


def main(config: Any) -> float:
    """Evaluate as `config` (an EvaluateConfig, composed by Hydra) says; returns the accuracy to a sweeper."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = overridden_keys(hydra.overrides.task)
    check_evaluate(config, overrides)
    downloads.configure(config.download)
    checkpoint = checkpoint_file(config.checkpoint)
    with uncollected():
        from graft.tasks import evaluation  # torch only now that there is something to evaluate

    return evaluation.run(config, checkpoint, overrides, Path(hydra.runtime.output_dir))


def claim(config: Any, folder: Path, own_name: bool) -> Path:
    """Refuse what cannot be evaluated before Hydra writes to `folder`; returns the folder to use.

    Raises:
        ConfigError, TrainingError: the configuration, the checkpoint, or a folder that holds something already.
    """
    check_evaluate(config, overridden_keys(config.hydra.overrides.task))
    checkpoint_file(config.checkpoint)
    if own_name:
        return new_folder(folder)
    require_writable(folder, "hydra.run.dir")
    found = [name for name in ("evaluation.json", "summary.json") if (folder / name).exists()]
    if found:
        what = "a run" if "summary.json" in found else "an evaluation"
        raise ConfigError(f"hydra.run.dir={folder}: holds {found[0]} of {what}.\nGive another folder.")
    return folder
