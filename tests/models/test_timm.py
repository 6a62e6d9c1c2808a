"""timm's networks are named, built, preprocessed and loaded as timm does it."""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.layers import resample_abs_pos_embed
from torch import nn

from graft.data.transforms import eval_transform
from graft.errors import ConfigError, NotAvailable, WeightsError
from graft.models import Recipe, build_network, fixed_input_size
from graft.models.families.timm import architectures
from graft.models.heads import head_modules
from graft.models.registry import facts_of
from graft.models.weights import (
    default_classes,
    default_preprocessing,
    load_weights,
    locate_weights,
    sized_by_weights,
)
from graft.system import downloads

RESNET = Recipe("test_resnet.r160_in1k", family="timm")
VIT = Recipe("test_vit.r160_in1k", family="timm")


def drawn(recipe: Recipe, classes: int, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(recipe, classes)


def written(recipe: Recipe, file: Path, classes: int = 1000) -> nn.Module:
    """A network at random whose tensors are in `file`."""
    network = drawn(recipe, classes)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), file)
    return network


def equal(network: nn.Module, other: nn.Module, names: tuple[str, ...]) -> bool:
    ours, theirs = network.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in names)


# Building


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("test_resnet", ("fc",)),
        ("test_vit.r160_in1k", ("head",)),
        ("test_convnext", ("head.fc",)),
        ("mobilenetv3_small_050", ("classifier",)),
        ("efficientformer_l1", ("head", "head_dist")),
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("vgg11_bn", ("head.fc",)),
        ("dla34", ("fc",)),
    ],
)
def test_the_head_is_timms_classifier_and_gives_logits(name: str, head: tuple[str, ...]) -> None:
    recipe = Recipe(name, family="timm")
    with torch.device("meta"):
        network = build_network(recipe, 7).eval()
    assert head_modules(network) == head
    assert all(len(network.get_submodule(part).weight) == 7 for part in head)
    side = default_preprocessing(recipe, None).input_size
    assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


def test_a_network_is_initialised_as_by_timm() -> None:
    for recipe in (RESNET, VIT, Recipe("resnet10t", family="timm")):
        torch.manual_seed(1)
        theirs = timm.create_model(recipe.name, num_classes=5)
        assert equal(drawn(recipe, 5), theirs, tuple(theirs.state_dict()))


def test_dropout_is_timms_drop_rate_and_input_size_applies_to_networks_of_fixed_size() -> None:
    assert drawn(Recipe("test_convnext", family="timm", dropout=0.3), 2).head.drop.p == 0.3
    sized = drawn(Recipe("test_vit", family="timm", input_size=96), 2).eval()
    assert sized(torch.zeros(1, 3, 96, 96)).shape == (1, 2)
    assert fixed_input_size(VIT) == 160
    assert fixed_input_size(Recipe("test_vit", family="timm", input_size=96)) == 96
    assert fixed_input_size(RESNET) is None


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("resnet50.a1_in2k", family="timm"), ["a1_in2k", "Did you mean", "resnet50.a1_in1k"]),
        (Recipe("vit_base_patch16_sapiens2.fb", family="timm"), ["1024x768", "square"]),
        (Recipe("qwen3_vit_88m_enc", family="timm"), ["qwen3_vit_88m_enc", "no head"]),
        (Recipe("test_maxvit", family="timm", input_size=100), ["test_maxvit", "model.input_size=100", "window"]),
        (Recipe("nest_tiny", family="timm", input_size=100), ["nest_tiny", "model.input_size=100", "evenly"]),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_the_reason(recipe: Recipe, words: list[str]) -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        build_network(recipe, 2)
    assert all(word in str(error.value) for word in words)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    architectures.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"model=timm .*: needs timm.*pip install 'graft-vision\[timm\]'"):
            facts_of(Recipe("resnet50", family="timm"))
    finally:
        architectures.cache_clear()


# What an image is fed as


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "resnet18.tv_in1k",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "convnext_base.clip_laiona_augreg_ft_in1k_384",
        "tf_efficientnet_b0.ns_jft_in1k",
        "vit_base_patch16_siglip_224.webli",
    ],
)
def test_evaluation_pixels_equal_those_of_timms_transforms(name: str) -> None:
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 45, 3), dtype=np.uint8))
    config = timm.models.get_pretrained_cfg(name).to_dict()
    ours = default_preprocessing(Recipe(name, family="timm"), None)
    assert ours == default_preprocessing(Recipe(name, family="timm"), "default")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.mean, ours.std))
    theirs = create_transform(**resolve_data_config(pretrained_cfg=config))(picture)
    torch.testing.assert_close((eval_transform(ours)(picture) / 255 - mean) / std, theirs, rtol=1e-5, atol=1e-4)


def test_another_size_keeps_the_margin() -> None:
    ours = default_preprocessing(Recipe("resnet50.a1_in1k", family="timm", input_size=112), "default")
    assert (ours.input_size, ours.resize_size) == (112, 118)


def test_classes_are_those_the_weights_were_trained_on() -> None:
    assert default_classes(RESNET, "default")[:2] == ("tench", "goldfish")
    large = default_classes(Recipe("resnetv2_50x1_bit.goog_in21k", family="timm"), "default")
    assert len(large) == 21843
    assert "organism" in large[0]
    assert default_classes(Recipe("vit_small_patch14_dinov2.lvd142m", family="timm"), "default") is None
    assert default_classes(RESNET, None) is None


# Files


@pytest.mark.parametrize("recipe", [RESNET, VIT, Recipe("mobilenetv3_small_050", family="timm")])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "ckpt"])
def test_files_of_every_kind_load_completely_except_for_the_head(recipe: Recipe, kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"file.{kind}"
    trained = drawn(recipe, 1000)
    state = trained.state_dict()
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(
            state if kind == "pth" else {"state_dict": {f"network.{key}": v for key, v in state.items()}, "graft": {}},
            file,
        )
    network = drawn(recipe, 7, seed=2)
    report = load_weights(network, recipe, str(file))
    assert set(report.random) == {f"{head}.{kind}" for head in head_modules(network) for kind in ("weight", "bias")}
    assert equal(network, trained, report.loaded)
    assert report.preprocessing == default_preprocessing(recipe, "default")
    assert report.classes[0] == "tench"
    kept = drawn(recipe, 1000, seed=2)
    assert load_weights(kept, recipe, str(file), keep_head=True).random == ()
    assert equal(kept, trained, tuple(state))


def test_a_checkpoint_of_other_classes_names_no_imagenet_class(tmp_path: Path) -> None:
    written(VIT, tmp_path / "five.safetensors", classes=5)
    report = load_weights(drawn(VIT, 5, seed=2), VIT, str(tmp_path / "five.safetensors"), keep_head=True)
    assert (report.random, report.classes) == ((), None)


def test_position_embeddings_are_interpolated_to_another_size_with_a_note(tmp_path: Path) -> None:
    trained = written(VIT, tmp_path / "vit.safetensors", classes=3)
    recipe = Recipe("test_vit", family="timm", input_size=96)
    network = drawn(recipe, 3, seed=2)
    report = load_weights(network, recipe, str(tmp_path / "vit.safetensors"), keep_head=True)
    assert report.random == ()
    assert report.notes == ("Interpolated for this image size: pos_embed.",)
    assert report.preprocessing.input_size == 96
    assert equal(network, trained, tuple(name for name in report.loaded if name != "pos_embed"))
    expected = resample_abs_pos_embed(trained.pos_embed, new_size=[6, 6], num_prefix_tokens=1)
    assert torch.equal(network.pos_embed, expected)


def test_a_file_in_an_older_format_is_converted_as_by_timm(tmp_path: Path) -> None:
    trained = drawn(VIT, 1000)
    state = trained.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    torch.save({"model": state}, tmp_path / "old.pth")
    network = drawn(VIT, 4, seed=2)
    report = load_weights(network, VIT, str(tmp_path / "old.pth"))
    assert report.random == ("head.weight", "head.bias")
    assert equal(network, trained, report.loaded)


def test_a_file_of_another_network_names_the_keys(tmp_path: Path) -> None:
    written(VIT, tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)does not fit model=test_resnet.*missing: conv1.*not in the network: "):
        load_weights(drawn(RESNET, 2), RESNET, str(tmp_path / "vit.safetensors"))


def test_a_fine_tuned_file_of_another_size_builds_the_network_for_it(tmp_path: Path) -> None:
    recipe = Recipe("test_vit", family="timm", input_size=96)
    preprocessing = default_preprocessing(recipe, None).to_dict()
    torch.save(
        {
            "state_dict": {f"network.{key}": value for key, value in drawn(recipe, 3).state_dict().items()},
            "graft": {"preprocessing": preprocessing, "classes": ["a", "b", "c"]},
        },
        tmp_path / "best.ckpt",
    )
    again = sized_by_weights(Recipe("test_vit", family="timm"), str(tmp_path / "best.ckpt"))
    assert again == recipe
    assert load_weights(drawn(again, 3, seed=2), again, str(tmp_path / "best.ckpt"), keep_head=True).notes == ()
    assert sized_by_weights(VIT, "default") == VIT


# The hub


@pytest.fixture
def hub(http_server, tmp_path, monkeypatch):
    """A Hugging Face hub in the likeness of a folder: `hub.folder / "timm" / NAME / "resolve" / "main" / FILE`."""
    monkeypatch.setattr(constants, "ENDPOINT", http_server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", http_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return http_server


def publish(hub, recipe: Recipe, name: str = "model.safetensors") -> tuple[nn.Module, Path]:
    file = hub.folder / "timm" / recipe.name / "resolve" / "main" / name
    trained = written(recipe, file.with_suffix(".safetensors"))
    if file.suffix == ".bin":
        file.with_suffix(".safetensors").unlink()
        torch.save(trained.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    hub.headers = {"ETag": f'"{digest}"', "X-Repo-Commit": "c0ffee" * 6 + "c0ff"}
    return trained, file


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_timms_weights_are_downloaded_from_the_hub_once(hub, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained, file = publish(hub, RESNET, name)
    assert locate_weights(RESNET, "default") is None
    network = drawn(RESNET, 1000, seed=2)
    report = load_weights(network, RESNET, "default", keep_head=True)
    assert equal(network, trained, report.loaded)
    assert report.random == ()
    assert report.source == "timm test_resnet.r160_in1k"
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.classes[0] == "tench"
    fetched = len(hub.requests)
    file.unlink()
    assert locate_weights(RESNET, "default") is None, "it is in the cache"
    load_weights(network, RESNET, "default")
    assert len(hub.requests) == fetched
    assert capsys.readouterr().out == ""


def test_a_name_without_tag_logs_the_chosen_weights(hub) -> None:
    publish(hub, RESNET)
    recipe = Recipe("test_resnet", family="timm")
    assert load_weights(drawn(recipe, 2), recipe, "default").source == "timm test_resnet.r160_in1k"


def test_weights_at_the_path_of_the_message_are_found(hub, tmp_path: Path) -> None:
    missing = locate_weights(RESNET, "default")
    assert missing.url == f"{hub.url}/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert str(tmp_path / "cache" / "models--timm--test_resnet.r160_in1k") in missing.manual_path
    with pytest.raises(NotAvailable, match="HTTP 404"):
        load_weights(drawn(RESNET, 2), RESNET, "default")
    trained = written(RESNET, Path(missing.manual_path))
    assert locate_weights(RESNET, "default") is None
    network = drawn(RESNET, 2, seed=2)
    assert equal(network, trained, load_weights(network, RESNET, "default").loaded)


def test_an_unreachable_hub_is_reported_with_address_and_local_path(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *, what: str, manual_path: str) -> None:
        raise NotAvailable(what, url, manual_path, "no network")

    monkeypatch.setattr(downloads, "require_reachable", refuse)
    missing = locate_weights(RESNET, "default")
    assert "test_resnet.r160_in1k" in missing.what
    assert missing.reason == "no network"
    with pytest.raises(NotAvailable, match="no network"):
        load_weights(drawn(RESNET, 2), RESNET, "default")


def test_an_offline_hub_is_not_contacted(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, RESNET)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_weights(RESNET, "default").reason == "HF_HUB_OFFLINE is set"
    assert hub.requests == []


def test_a_damaged_file_in_the_hubs_cache_is_named(hub) -> None:
    publish(hub, RESNET)
    load_weights(drawn(RESNET, 2), RESNET, "default")
    cached = timm_file(RESNET)
    cached.resolve().write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"the file is damaged\. Delete it"):
        load_weights(drawn(RESNET, 2), RESNET, "default")
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    assert load_weights(drawn(RESNET, 2), RESNET, "default").sha256


def timm_file(recipe: Recipe) -> Path:
    """Its file in the hub's cache."""
    (file,) = Path(constants.HF_HUB_CACHE).glob(f"models--timm--{recipe.name}/snapshots/*/model.safetensors")
    return file


def test_unknown_weights_of_timm_are_refused_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"timm has no weights for test_vit_relpos.*strategy=scratch"):
        locate_weights(Recipe("test_vit_relpos", family="timm"), "default")
    with pytest.raises(WeightsError, match=r"resnet50\.a1_in1k"):
        locate_weights(Recipe("resnet50.a1_in1k", family="timm"), "bundled")
