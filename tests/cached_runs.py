"""Short runs of the embedded photographs that share a cache of features, in this process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.registration import register
from graft.review.training_review import RunChoices
from graft.tasks import fit
from graft.tasks.checks import settle
from graft.tasks.data import open_data

FACES = (
    "model=vgg_mini", "model.weights=bundled", "data=faces", "data.batch_size=16", "strategy=feature_extract",
    "augment=none", "scheduler=none", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=4",
    "trainer.test=false", "trainer.baseline=false", "logger=none", "callbacks.progress=none",
    "callbacks.checkpoint=last",
)  # fmt: skip


class Workplace:
    """A folder for runs that share one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"

    def config(self, *overrides: str) -> Any:
        register()
        with initialize_config_dir(str(conf_dir())):
            return settle(compose("train", [*FACES, f"paths.cache={self.cache}", *overrides]))

    def fit(self, name: str, *overrides: str) -> SimpleNamespace:
        """Train in this process; returns the summary's entries and the weights of best.ckpt."""
        config = self.config(*overrides)
        folder = self.folder / name
        folder.mkdir()
        done = fit.one_process(config, open_data(config), fit.choose_device(config.trainer), RunChoices({}, ()), folder)
        content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        return SimpleNamespace(**done | {"weights": content["state_dict"], "folder": folder})


def parts(run: SimpleNamespace) -> dict[str, dict[str, Any]]:
    return {entry["part"]: entry for entry in run.cache["features"]} if run.cache else {}
