"""The keys of every command, known to Hydra. No heavy import: `--help` reads this."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from graft.config.commands import CompareConfig, EvaluateConfig, ExportConfig, InspectConfig, PredictConfig
from graft.config.training import TrainConfig

SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "inspect": InspectConfig,
}


def register() -> None:
    """Make the schemas known to Hydra under `schema/`."""
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        config = OmegaConf.structured(node)
        if "data" in config:
            OmegaConf.set_struct(config.data, False)
        store.store(group="schema", name=name, node=config, package="_global_", replace=True)
