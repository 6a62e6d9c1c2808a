"""Training on cached features of frozen layers equals training on the images."""

import logging
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_runs import FACES, Workplace, parts
from commands import succeeded, train
from PIL import Image

from graft.config.choices import choices
from graft.config.registration import plain
from graft.data.augment import augment_of
from graft.data.datamodule import ImageDataModule
from graft.data.feature_batches import FeatureTable
from graft.errors import ConfigError
from graft.features.cache import FeatureCache
from graft.learning.module import TransferModule
from graft.models import Recipe, build_network
from graft.models.configured import recipe_of
from graft.models.weights import default_preprocessing
from graft.tasks.data import open_data
from graft.tasks.locations import FEATURES


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def cached(shared: Workplace) -> SimpleNamespace:
    """Four epochs on features of the frozen backbone."""
    return shared.fit("cached", "trainer.test=true")


def equal(one: SimpleNamespace, other: SimpleNamespace, names: str = "") -> bool:
    assert one.weights.keys() == other.weights.keys()
    return all(torch.equal(tensor, other.weights[key]) for key, tensor in one.weights.items() if names in key)


def predictions(run: SimpleNamespace) -> torch.Tensor:
    """Logits of the whole network as its checkpoint has it, for a few images."""
    network = build_network(Recipe("vgg_mini"), 2)
    network.load_state_dict({key.removeprefix("network."): tensor for key, tensor in run.weights.items()})
    with torch.no_grad():
        return network.eval()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def assert_same(one: SimpleNamespace, other: SimpleNamespace) -> None:
    torch.testing.assert_close(predictions(one), predictions(other), rtol=0, atol=1e-5)
    assert one.metrics.keys() == other.metrics.keys()
    for name, value in one.metrics.items():
        assert value == pytest.approx(other.metrics[name], abs=1e-5), name


def test_training_on_features_gives_the_predictions_of_training_on_images(
    cached: SimpleNamespace, shared: Workplace
) -> None:
    plain = shared.fit("plain", "trainer.test=true", "cache=none")
    assert plain.cache is None
    assert_same(cached, plain)
    before = build_network(Recipe("vgg_mini"), 2).state_dict().keys()
    assert {key.removeprefix("network.") for key in cached.weights} == before, "the whole network is in the checkpoint"
    assert equal(cached, plain, names="features.")


def test_the_summary_says_what_was_cached(cached: SimpleNamespace, shared: Workplace) -> None:
    assert cached.cache["folder"] == str(shared.cache / FEATURES)
    assert parts(cached).keys() == {"train", "val", "test"}
    train = parts(cached)["train"]
    assert (train["cut"], train["views"], train["computed"]) == ("avgpool/flatten", 1, 90)
    assert train["bytes"] == 90 * 256 * 4
    assert 0 < train["seconds"] <= cached.cache["seconds"]


def test_runs_with_different_heads_and_rates_share_the_features(cached: SimpleNamespace, shared: Workplace) -> None:
    other = shared.fit("other", "seed=5", "data.val_fraction=0", "optimizer.lr=0.5", "trainer.test=true")
    assert not any(entry["computed"] for entry in parts(other).values()), "the same images in other splits"
    again = shared.fit("again", "optimizer.lr=0.5", "optimizer=adamw", "data.batch_size=7")
    assert not any(entry["computed"] for entry in parts(again).values())


def test_with_one_view_per_epoch_augmented_training_is_the_same(place: Workplace) -> None:
    both = [
        place.fit(name, "augment=imagenet", *extra)
        for name, *extra in (("on", "cache.views=9"), ("off", "cache.views=null"))
    ]
    assert parts(both[0])["train"]["views"] == 4, "no more than there are epochs"
    assert "train" not in parts(both[1]), "that would change what it sees"
    assert parts(both[1])["val"]["computed"] == 0
    assert_same(*both)


def test_fewer_views_than_epochs_alternate(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, torch.Tensor] = {}
    step = TransferModule.training_step

    def watched(self: Any, batch: Any, batch_idx: int) -> Any:
        if 0 in batch.indices:
            seen[self.current_epoch] = batch.features[0][batch.indices == 0]
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TransferModule, "training_step", watched)
    run = place.fit("run", "augment=basic", "cache.views=3", "trainer.max_epochs=5")
    assert parts(run)["train"]["views"] == 3
    assert [torch.equal(seen[epoch], seen[epoch % 3]) for epoch in range(5)] == [True] * 5
    assert not torch.equal(seen[0], seen[1])


def test_one_view_is_the_image_without_augmentation_and_shares_its_features(place: Workplace) -> None:
    plain = place.fit("plain")
    one = place.fit("one", "augment=imagenet", "cache.views=1")
    assert not any(entry["computed"] for entry in parts(one).values())
    assert any("without augmentation (cache.views=1)" in note for note in one.notes)
    assert equal(plain, one)


def test_a_strategy_sets_the_default_number_of_views(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "graft")
    words = ("augment=basic", "trainer.max_epochs=5")
    assert parts(place.fit("default", *words))["train"]["views"] == 4
    assert "4 augmented views of each image" in caplog.text
    assert "cache.views=null trains on images" in caplog.text
    words = ("augment=basic", "trainer.max_epochs=2", "strategy.cached_views=all")
    assert parts(place.fit("all", *words))["train"]["views"] == 2
    assert "train" not in parts(place.fit("images", *words, "cache.views=null"))
    with pytest.raises(ConfigError, match=r"cache\.views=all and trainer\.max_epochs=-1 disagree"):
        place.config(*words, "trainer.max_epochs=-1", "trainer.max_steps=5")


def test_folds_and_shots_share_the_augmented_views_of_the_images_that_they_share(place: Workplace) -> None:
    words = ("augment=imagenet", "cache.views=2", "trainer.max_epochs=2", "data.folds=3")
    runs = [place.fit(f"fold{fold}", *words, f"data.fold={fold}") for fold in range(3)]
    rows = [parts(run)["train"]["rows"] for run in runs]
    images = {index for run in runs for index in [parts(run)["val"]["rows"]]}
    assert parts(runs[0])["train"]["computed"] == rows[0]
    assert sum(parts(run)["train"]["computed"] for run in runs) < rows[0] + 2 * max(images) + 3, "each view once"
    few = place.fit("few", *words, "data.fold=0", "data.shots=5")
    assert parts(few)["train"] | {"rows": 20} == parts(few)["train"]
    assert not any(entry["computed"] for entry in parts(few).values())
    plain = place.fit("plain", *words, "data.fold=2", "cache=none")
    assert_same(runs[2], plain)


def test_gradual_unfreezing_uses_features_while_layers_are_frozen(place: Workplace) -> None:
    overrides = ("strategy=gradual", "freeze.every=2", "callbacks.ema=0.9")
    both = [place.fit(name, *overrides, *extra) for name, *extra in (("on",), ("off", "cache=none"))]
    assert parts(both[0])["train"]["epochs"] == [0, 1]
    assert_same(*both)
    frozen = place.fit("frozen")
    assert not equal(both[0], frozen, names="features.0.weight"), "it trains from epoch 2 on"


LINEAR = "model.classifier=linear"
"""A head without BatchNorm."""


def test_dropout_above_the_cut_is_drawn_identically(place: Workplace) -> None:
    on, off = (place.fit(mode, LINEAR, "model.dropout=0.5", f"cache={mode}") for mode in ("features", "none"))
    assert (parts(on)["train"]["cut"], parts(on)["val"]["cut"]) == ("avgpool/flatten", "avgpool/flatten")
    for key, tensor in on.weights.items():
        torch.testing.assert_close(tensor, off.weights[key], rtol=0, atol=1e-5)


def test_computed_and_cached_features_give_bit_identical_runs(place: Workplace) -> None:
    overrides = ("augment=basic", "cache=features", "callbacks.ema=0.5", "trainer.precision=bf16-mixed")
    first, second = place.fit("first", *overrides), place.fit("second", *overrides)
    assert (parts(first)["train"]["computed"], parts(second)["train"]["computed"]) == (360, 0)
    assert parts(first)["train"]["bytes"] == 4 * 90 * 256 * 2, "bf16, four views"
    assert any("4 augmented views" in note for note in first.notes)
    assert equal(first, second)


def test_features_that_do_not_fit_are_not_cached_and_a_note_says_so(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "graft")
    run = place.fit("run", "cache.max_gb=5e-5", "trainer.max_epochs=1")
    assert parts(run).keys() == {"val"}
    assert "92.2 kB of features (90 train images at avgpool/flatten) do not fit into cache.max_gb=5e-05" in caplog.text
    with pytest.raises(ConfigError, match=r"cache=features: .* do not fit into cache\.max_gb"):
        place.fit("asked", "cache=features", "cache.max_gb=5e-5")


def test_a_full_disk_does_not_stop_training(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    obtain = FeatureCache._provide

    def on_a_full_disk(self: Any, parts: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            obtain(self, parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(FeatureCache, "_provide", on_a_full_disk)
    run = place.fit("run", "trainer.max_epochs=1")
    assert run.cache is None
    assert any("cannot be kept" in note and "File too large" in note for note in run.notes)
    assert run.epochs == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_that_this_user_cannot_write_to_is_named_and_does_not_stop_training(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provide = FeatureCache._provide

    def as_nobody(self: Any, parts: Any) -> None:
        os.seteuid(65534)
        try:
            provide(self, parts)
        finally:
            os.seteuid(0)

    monkeypatch.setattr(FeatureCache, "_provide", as_nobody)
    run = place.fit("run", "trainer.max_epochs=1")
    assert (run.cache, run.epochs) == (None, 1)
    [note] = [note for note in run.notes if "cannot be kept" in note]
    assert f"paths.cache={place.cache}" in note
    assert "Permission denied for user nobody" in note
    assert [record.levelname for record in caplog.records if note in record.getMessage()] == ["WARNING"]


def test_a_file_in_place_of_the_cache_is_named_and_does_not_stop_training(place: Workplace) -> None:
    place.cache.write_text("notes")
    run = place.fit("run", "trainer.max_epochs=1")
    assert run.cache is None
    assert any(f"paths.cache={place.cache}" in note for note in run.notes)
    assert place.cache.read_text() == "notes"


def test_the_log_suggests_cached_views(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "graft")
    words = ("augment=basic", "cache.views=null", "trainer.max_epochs=5")
    place.fit("run", *words, "trainer.limit_train_batches=1")
    assert "cache.views=4" not in caplog.text, "an epoch of one batch would not gain"
    place.fit("more", *words)
    assert "4 passes through the frozen layers instead of 5" in caplog.text


def test_networks_without_a_frozen_prefix_train_unchanged(place: Workplace) -> None:
    run = place.fit("run", "freeze=custom", "freeze.patterns=['*bias']", "trainer.max_epochs=1")
    assert run.cache is None
    with pytest.raises(ConfigError, match="cache=features: no frozen layer comes before the first that trains"):
        place.fit("asked", "freeze=custom", "freeze.patterns=['*bias']", "cache=features")


def test_impossible_combinations_are_refused(place: Workplace) -> None:
    for overrides, said in {
        ("strategy=finetune",): "cache=features and freeze=none disagree",
        ("augment.mixup=0.2",): r"cache=features and augment\.mixup=0\.2 disagree",
        ("data=folder", f"data.root={place.folder}"): r"paths\.cache=.* is in data\.root",
        ("cache.views=0",): r"cache\.views=0",
        ("cache.max_gb=0",): r"cache\.max_gb=0",
        ("cache.mode=feature",): r"Did you mean features\?",
    }.items():
        with pytest.raises(ConfigError, match=said):
            place.config("cache=features", *overrides)


def test_nothing_is_written_into_the_users_image_folder(place: Workplace) -> None:
    for number in range(12):
        file = place.folder / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(file)
    before = sorted((place.folder / "photos").rglob("*"))
    photos = ("data=folder", f"data.root={place.folder}/photos", f"paths.cache={place.folder}/photos/cache")
    with pytest.raises(ConfigError, match=r"paths\.cache=.*: is in data\.root"):
        place.fit("run", *photos, "trainer.max_epochs=1")
    assert sorted((place.folder / "photos").rglob("*")) == before


def test_after_files_are_moved_between_classes_training_uses_the_right_features(
    place: Workplace, shared_data: Path
) -> None:
    """Of one size in bytes and one time of change, as photographs converted to bitmaps and unpacked from a zip are."""
    root, flowers = place.folder / "photos", shared_data / "flower_photos"
    for name, other in (("daisy", "tulips"), ("tulips", "daisy")):
        (root / name).mkdir(parents=True)
        originals = [sorted((flowers / folder).glob("*"))[:24] for folder in (name, other)]
        for number in range(24):
            file = root / name / f"{number}.bmp"
            Image.open(originals[number % 2][number]).convert("RGB").resize((48, 48)).save(file)
            os.utime(file, (1e9, 1e9))
    words = ("data=folder", f"data.root={root}", "data.val_fraction=0.3", "trainer.max_epochs=2", "trainer.test=true")
    wrong = place.fit("wrong", *words)
    for number in range(1, 24, 2):
        one, two, aside = (root / name / f"{number}.bmp" for name in ("daisy", "tulips", "."))
        for source, target in ((one, aside), (two, one), (aside, two)):
            source.rename(target)
    cached, plain = place.fit("cached", *words), place.fit("plain", *words, "cache=none")
    assert [entry["computed"] for entry in parts(cached).values()] == [0] * 3, "the same images, under other names"
    assert_same(cached, plain)
    assert not equal(cached, wrong, names="classifier")


def test_of_the_cache_options_only_views_distinguish_runs(place: Workplace) -> None:
    extras = ((), ("cache=features", "cache.max_gb=1"), ("cache.views=null",), ("cache=none",))
    configs = [place.config("augment=basic", *extra) for extra in extras]
    default, features, images, none = (choices(plain(config), {}) for config in configs)  # type: ignore[arg-type]
    assert default == features
    assert images == none
    assert {key for key in none if none[key] != default[key]} == {"cache.views"}


def test_mixed_images_and_limited_batches_pass_through_the_whole_network(place: Workplace) -> None:
    mixed = place.fit("mixed", "augment.mixup=0.2", "trainer.max_epochs=2")
    assert parts(mixed).keys() == {"val"}
    limited = place.fit("limited", "trainer.limit_val_batches=1", "trainer.limit_train_batches=1")
    assert limited.cache is None


def test_features_are_computed_batch_by_batch_and_the_images_are_released(place: Workplace) -> None:
    config = place.config()
    splits = open_data(config)
    preprocessing = default_preprocessing(recipe_of(config), "bundled")
    data = ImageDataModule(splits, preprocessing, augment_of(config), batch_size=4)
    sizes = [len(batch.labels) for batch in data.in_order("train", 0, 32)]
    assert sizes == [32, 32, 26]
    assert data._train_images is not None
    data.use_features("train", FeatureTable({}, 1))
    assert data._train_images is None


def test_two_processes_share_one_cache(tmp_path: Path, place: Workplace) -> None:
    one = place.fit("one", LINEAR, "optimizer.momentum=0", "cache=none", "trainer.max_epochs=2")
    two = succeeded(
        train(
            tmp_path / "two",
            *FACES,
            LINEAR,
            "trainer=ddp",
            "trainer.accelerator=cpu",
            "trainer.devices=2",
            "data.batch_size=8",
            "optimizer.momentum=0",
            "trainer.max_epochs=2",
        )
    )
    assert {entry["part"] for entry in two.summary["cache"]["features"]} == {"train", "val"}
    assert len(list((tmp_path / "outputs" / "cache" / FEATURES).glob("*/meta.json"))) == 2, (
        "each is computed by one of them"
    )
    for name in ("val/loss", "train/loss"):
        assert two.summary["metrics"][name] == pytest.approx(one.metrics[name], abs=1e-4)


@pytest.mark.parametrize("resident_gb", [0, 1])
def test_unreadable_images_do_not_shift_the_features_of_others(place: Workplace, resident_gb: float) -> None:
    """With data.on_error=skip others stand in for them, with their own labels: nothing for a store that runs share."""
    photos = place.folder / "photos"
    for label, name in enumerate(("a", "b")):
        (photos / name).mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((40, 40), 10 + 20 * label + i).save(photos / name / f"{i}.png")
    spoiled = photos / "a" / "5.png"
    content = bytearray(spoiled.read_bytes())
    content[300:320] = bytes(20)  # neither the header nor the end of the file tells of it
    spoiled.write_bytes(content)
    words = ("data=folder", f"data.root={photos}", "data.on_error=skip", f"data.resident_gb={resident_gb}")
    cached, plain = (place.fit(mode, *words, f"cache={mode}") for mode in ("auto", "none"))
    assert cached.unreadable == plain.unreadable
    assert list(cached.unreadable) == ["a/5.png"]
    assert parts(cached) == {}
    assert len(list((place.cache / FEATURES).glob("*/meta.json"))) == 1, (
        "those to validate on, of which none is unreadable"
    )
    assert any("some images cannot be read" in note for note in cached.notes)
    assert equal(cached, plain)
