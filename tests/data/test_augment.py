"""Checks of the augmentation options."""

from typing import Any

import pytest

import graft
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.data.augment import Augment, augment_of
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
def test_whole_batches_are_augmented_unless_an_option_crops_at_random(option: str, batchable: bool) -> None:
    config = typed(graft.compose(f"augment={option}").config, TrainConfig)
    assert augment_of(config).batchable is batchable


def test_a_resized_crop_defaults_to_the_imagenet_settings() -> None:
    assert Augment(random_resized_crop={}).resized_crop_ranges() == {
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
    }
    assert not Augment(random_resized_crop={}).batchable
    assert Augment().resized_crop_ranges() == {}


@pytest.mark.parametrize("option", ["basic", "imagenet", "strong"])
def test_a_set_whose_mirror_images_mean_something_else_is_flipped_only_on_request(option):
    def flips(*overrides: str) -> float:
        return graft.compose(f"augment={option}", *overrides).config.augment.horizontal_flip

    assert flips("data=hymenoptera") == flips("data=digits", "augment.horizontal_flip=0.5") == 0.5
    assert flips("data=digits") == flips("data=hymenoptera", "data.horizontal_flip=0") == 0
