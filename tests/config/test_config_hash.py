"""Two configurations have the same hash if and only if their runs must give the same results."""

from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.config_hash import config_hash
from graft.config.registration import register, typed
from graft.config.schema import TrainConfig

SMALL = ("model=vgg_mini", "data=digits", "strategy=scratch")


def of(*overrides: str) -> str:
    register()
    with initialize_config_dir(str(conf_dir())):
        return config_hash(typed(compose("train", [*SMALL, *overrides]), TrainConfig))


def test_paths_and_loading_options_do_not_change_the_hash() -> None:
    same = ("paths.outputs=elsewhere", "data.num_workers=3", "logger=none", "sweep_name=x", "resume=auto",
            "callbacks.checkpoint_every_n_steps=9")  # fmt: skip
    assert of(*same) == of()


def test_every_key_that_can_change_a_result_changes_the_hash() -> None:
    different = (
        "seed=1",
        "optimizer.lr=0.123",
        "optimized_metric=val/loss",
        "trainer.max_epochs=3",
        "model.dropout=0.3",
        "data.root=/elsewhere",
        "callbacks.ema=0.9",
        "augment=strong",
    )
    assert len({of(), *map(of, different)}) == len(different) + 1
