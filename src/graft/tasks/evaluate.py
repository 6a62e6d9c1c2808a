"""`graft evaluate`: the metrics of a checkpoint, or of an ensemble, on its own data set or another."""

from pathlib import Path

from omegaconf import DictConfig

from graft.config.commands import EvaluateConfig
from graft.config.registration import typed
from graft.learning.checkpoints import checkpoint_files
from graft.system import downloads
from graft.system.folder_lock import claimed_folder
from graft.system.startup import garbage_collection_paused
from graft.tasks.command_checks import check_evaluate, overridden_keys, texts_of


def main(config: DictConfig) -> float:
    """Run `graft evaluate` and return the accuracy, for a sweeper.

    Args:
        config: an EvaluateConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = overridden_keys(hydra.overrides.task)
    cfg = typed(config, EvaluateConfig)
    check_evaluate(cfg, overrides)
    downloads.configure(cfg.download)
    checkpoints = checkpoint_files(texts_of(cfg.checkpoint))
    with garbage_collection_paused():
        from graft.tasks import evaluation  # torch is imported only once there is something to evaluate

    return evaluation.run(cfg, checkpoints, overrides, Path(hydra.runtime.output_dir))


def claim(config: DictConfig, folder: Path, generated_name: bool) -> Path:
    """Check the command and its folder before Hydra writes to `folder`; return the folder to use.

    Raises:
        ConfigError, TrainingError: the configuration, the checkpoint, or a folder that is already used.
    """
    cfg = typed(config, EvaluateConfig)
    check_evaluate(cfg, overridden_keys(config.hydra.overrides.task))
    checkpoint_files(texts_of(cfg.checkpoint))
    return claimed_folder(folder, generated_name, {"summary.json": "a run", "evaluation.json": "an evaluation"})
