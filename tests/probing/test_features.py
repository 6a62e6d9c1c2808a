"""The features that are probed are those that training caches."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cached_runs import Workplace, parts
from PIL import Image

from graft.data.images import ImageSet
from graft.data.transforms import eval_transform
from graft.errors import DataError, UnreadableImage
from graft.models.normalise import Normalise
from graft.probing.features import Pretrained, pretrained, stage_features
from graft.tasks.data import open_data


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def trained(shared: Workplace) -> SimpleNamespace:
    """A run that has cached the features of its training and validation images."""
    return shared.fit("trained", "trainer.max_epochs=1")


@pytest.fixture
def network(shared: Workplace) -> Pretrained:
    return pretrained(shared.config(), 2)


def test_training_and_probing_compute_no_features_twice(
    trained: SimpleNamespace, shared: Workplace, network: Pretrained
) -> None:
    assert parts(trained)["train"]["computed"] > 0
    config = shared.config()
    splits = open_data(config)
    seen = stage_features(config, network, splits.train.join(splits.val), splits.source)
    assert seen.computed == 0, "training has computed them"
    assert stage_features(config, network, splits.test, splits.source).computed == len(splits.test)
    tested = shared.fit("tested", "trainer.max_epochs=1", "trainer.test=true", "optimizer.lr=0.02")
    assert parts(tested)["test"]["computed"] == 0, "probing has computed them"


def test_augmented_views_are_those_of_the_first_epochs_of_a_run(shared: Workplace, network: Pretrained) -> None:
    words = ("augment=light", "cache.views=2", "trainer.max_epochs=2")
    config = shared.config(*words)
    splits = open_data(config)
    seen = stage_features(config, network, splits.train, splits.source, views=1)
    assert seen.computed >= len(splits.train), "no run has augmented them"
    assert parts(shared.fit("augmented", *words))["train"]["computed"] == len(splits.train), "of two views, one"
    assert stage_features(config, network, splits.train, splits.source, views=2).computed == 0


def test_features_are_the_means_of_what_the_network_computes(shared: Workplace, network: Pretrained) -> None:
    config = shared.config()
    images = open_data(config).train.select([3, 50])
    pictures = torch.stack([eval_transform(network.preprocessing)(images.load(index)) for index in range(2)])
    found = stage_features(config, network, images).stages
    assert list(found) == [stage.name for stage in network.backbone]
    with torch.no_grad():
        maps = Normalise(network.preprocessing)(pictures)
        network.network.eval()
        for layer in network.network.features:  # type: ignore[union-attr]
            maps = layer(maps)
            for rows in found.values():
                if rows.shape[1:] == maps.shape[1:2] and isinstance(layer, torch.nn.MaxPool2d):
                    np.testing.assert_allclose(rows, maps.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(stage_features(config, network, images, stages=()).end, maps.mean((2, 3)), atol=1e-5)


def test_without_room_in_the_cache_the_features_are_the_same(
    shared: Workplace, network: Pretrained, tmp_path: Path
) -> None:
    images = open_data(shared.config()).train.select(range(11))
    cached = stage_features(shared.config(), network, images)
    plain = stage_features(shared.config("cache=none"), network, images)
    small = stage_features(shared.config("cache.max_gb=1e-6", f"paths.cache={tmp_path}"), network, images)
    assert plain.computed == small.computed == 11
    for name, rows in cached.stages.items():
        np.testing.assert_array_equal(rows, plain.stages[name])
        np.testing.assert_array_equal(rows, small.stages[name])


def test_an_image_that_only_the_augmented_pass_cannot_read_is_left_out(
    shared: Workplace, network: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_data(shared.config()).train.select(range(8))
    load, reads = ImageSet.load, dict.fromkeys(images.names, 0)

    def failing(self: ImageSet, index: int) -> object:
        reads[self.names[index]] += 1
        if self.names[index] == images.names[2] and reads[images.names[2]] > 1:
            raise UnreadableImage(images.names[2], "missing", "no such file")
        return load(self, index)

    monkeypatch.setattr(ImageSet, "load", failing)
    used: list[np.ndarray] = []
    config = shared.config("augment=light", "data.on_error=skip", "data.num_workers=0", f"paths.cache={tmp_path}")
    found = stage_features(config, network, images, views=1, use=lambda cut, clean, views, rows: used.append(rows))
    assert found.unreadable == (images.names[2],)
    assert [rows.tolist() for rows in used] == [[0, 1, 3, 4, 5, 6, 7]], "not another image in its place"


def test_unreadable_images_are_named_and_have_no_features(
    shared: Workplace, network: Pretrained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        Image.new("RGB", (40, 40), (50 * number, 0, 90)).save(file)
    files[2].write_bytes(files[2].read_bytes()[:70])
    images = ImageSet([file.name for file in files], np.zeros(4, np.int64), files)
    with pytest.raises(DataError, match=r"2\.png"):
        stage_features(shared.config(), network, images)
    with caplog.at_level(logging.WARNING, "graft"):
        found = stage_features(shared.config("data.on_error=skip"), network, images)
    assert found.unreadable == ("2.png",)
    assert "2.png" in caplog.text
    assert np.isnan(found.end).any(1).tolist() == [False, False, True, False]
