"""Networks for another number of channels, and pretrained weights adapted to them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graft.errors import WeightsError
from graft.models import Recipe, build_network
from graft.models.registry import family_of
from graft.models.weights import load_weights
from graft.models.weights.fitting import adapted

NETWORKS = [Recipe("vgg_mini"), Recipe("squeezenet1_1"), Recipe("mobilenetv3_small_050", family="timm")]


def saved(network: nn.Module, file: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
    return str(file)


def for_channels(recipe: Recipe, channels: int, classes: int = 7) -> tuple[Recipe, nn.Module]:
    own = Recipe(recipe.name, family=recipe.family, channels=channels)
    return own, build_network(own, classes).eval()


@pytest.mark.parametrize("recipe", NETWORKS, ids=lambda recipe: f"{recipe.family or 'own'} {recipe.name}")
def test_an_adapted_network_computes_from_grey_what_it_did_from_repeated_grey(recipe: Recipe, tmp_path: Path) -> None:
    rgb = build_network(recipe, 7).eval()
    weights = saved(rgb, tmp_path / "rgb.safetensors")
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = rgb(grey.repeat(1, 3, 1, 1))
        for channels in (1, 5):
            own, network = for_channels(recipe, channels)
            report = load_weights(network, own, weights, keep_head=True, classes=())
            assert not report.random
            assert any(f"adapted for {channels} instead of 3 channels" in note for note in report.notes)
            found = network(grey.repeat(1, channels, 1, 1))
            assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max())), "the sum is kept"


def test_repeat_is_what_timm_does() -> None:
    from timm.models._manipulate import adapt_input_conv

    weight = torch.randn(8, 3, 5, 5)
    for channels in (1, 2, 4, 7):
        assert torch.allclose(adapted(weight, channels, "repeat"), adapt_input_conv(channels, weight), atol=1e-6)


def test_weights_of_the_same_channels_are_loaded_to_the_bit(tmp_path: Path) -> None:
    own, network = for_channels(Recipe("vgg_mini"), 5)
    again = build_network(own, 7)
    load_weights(again, own, saved(network, tmp_path / "five.safetensors"), keep_head=True)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_keep_and_random(tmp_path: Path) -> None:
    recipe = Recipe("squeezenet1_1")
    rgb = build_network(recipe, 7).eval()
    weights = saved(rgb, tmp_path / "rgb.safetensors")
    own, network = for_channels(recipe, 5)
    load_weights(network, own, weights, keep_head=True, first_conv="keep")
    images = torch.randn(1, 5, 40, 40)
    with torch.no_grad():
        assert torch.allclose(network(images), rgb(images[:, :3]), atol=1e-6)
    own, network = for_channels(recipe, 5)
    before = network.features[0].weight.clone()  # type: ignore[index, union-attr]
    report = load_weights(network, own, weights, keep_head=True, first_conv="random")
    assert report.random == ("features.0.weight", "features.0.bias")
    assert torch.equal(network.features[0].weight, before)  # type: ignore[index, union-attr]
    own, network = for_channels(recipe, 2)
    with pytest.raises(WeightsError, match="the images have 2 channels, fewer than the 3"):
        load_weights(network, own, weights, first_conv="keep")


def test_a_recipe_in_a_checkpoint_knows_its_channels() -> None:
    own, network = for_channels(Recipe("resnet18"), 13)
    again = Recipe.from_dict(own.to_dict())
    made = family_of(again).constructor(again, network, 7).make()
    assert made.state_dict()["conv1.weight"].shape == (64, 13, 7, 7)
    assert Recipe("vgg_mini", channels=3) == Recipe("vgg_mini")


def test_a_custom_network_is_made_for_the_channels_if_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_of_channels.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes, in_channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for channels in (3, 5):
        recipe = Recipe("net", target="net_of_channels.net", channels=channels)
        network = build_network(recipe, 2)
        assert network(torch.zeros(1, channels, 4, 4)).shape == (1, 2)
        assert family_of(recipe).constructor(recipe, network, 2).make()[0].in_channels == channels  # type: ignore[index]
