"""Checks of the augmentation options."""

from typing import Any

import pytest

from graft.config import conf_dir
from graft.data.augment import Augment
from graft.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"policy": "trivail"},
            "augment.policy=trivail: choose null, trivial, rand, auto. Did you mean trivial?",
        ),
        ({"horizontal_flip": 1.5}, "augment.horizontal_flip=1.5: must be a probability"),
        ({"random_crop_padding": -1}, "augment.random_crop_padding=-1"),
        ({"color_jitter": -0.1}, "augment.color_jitter=-0.1"),
        ({"random_resized_crop": {"scale": [0.5, 2]}}, "augment.random_resized_crop.scale=[0.5, 2]"),
        ({"random_resized_crop": {"ratio": [2, 1]}}, "augment.random_resized_crop.ratio=[2, 1]"),
        ({"random_resized_crop": {"scale": 0.5}}, "augment.random_resized_crop.scale=0.5: must be two numbers"),
        (
            {"random_resized_crop": {"size": [1, 1]}},
            "augment.random_resized_crop.size: no such key. There are scale and ratio",
        ),
    ],
)
def test_a_mistake_names_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Augment(**values)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("option", "batchable"), [("none", True), ("basic", True), ("imagenet", False), ("strong", False)]
)
def test_every_option_is_batchable_exactly_if_it_can_augment_whole_batches(option: str, batchable: bool) -> None:
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "augment" / f"{option}.yaml"))
    assert isinstance(values, dict)
    assert Augment(**values).batchable is batchable  # type: ignore[arg-type]


def test_a_resized_crop_defaults_to_the_imagenet_settings() -> None:
    assert Augment(random_resized_crop={}).resized_crop_ranges() == {
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
    }
    assert not Augment(random_resized_crop={}).batchable
    assert Augment().resized_crop_ranges() == {}
