"""Grad-CAM: a known answer, a map for every family, and an unchanged network."""

import pytest
import torch
from torch import nn

from graft.models import Recipe, build_network
from graft.review.gradcam import grad_cam


class Corner(nn.Module):
    """Class 0 depends on the first channel, class 1 on the second: a network with a known answer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.fc = nn.Linear(3, 2, bias=False)
        nn.init.dirac_(self.features.weight)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def test_the_region_that_supports_the_class_is_highlighted() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, :4, :4] = 200  # class 0 in the upper left corner
    images[1, 1, 4:, 4:] = 100  # class 1 in the lower right one
    images[2, 2] = 50  # speaks against class 1 everywhere
    heat = grad_cam(Corner(), images, torch.tensor([0, 1, 1]), lambda pixels: pixels.float())
    assert heat is not None
    expected = torch.zeros(3, 8, 8)
    expected[0, :4, :4] = expected[1, 4:, 4:] = 1
    torch.testing.assert_close(heat, expected)


FAMILIES = ("vgg_mini", "alexnet", "resnet18", "squeezenet1_0", "densenet121", "inception_v3", "swin_t")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_map_and_is_unchanged(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(Recipe(name), 3)
    network.train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    frozen.training = False
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    size = {"vgg_mini": 32, "inception_v3": 160}.get(name, 96)
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    heat = grad_cam(network, images, torch.tensor([0, 2]), lambda pixels: pixels.float() / 64 - 2)
    assert heat is not None
    assert heat.shape == (2, size, size)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert heat.amax((1, 2)).max() == pytest.approx(1, abs=1e-3)
    assert modes == [module.training for module in network.modules()]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class Attention(nn.Module):
    """Each token adds the sum of all tokens; as in a vision transformer, only the class token reaches the head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()
        self.project = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.project.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.project(self.norm(tokens)).sum(1, keepdim=True)


class ClassToken(nn.Module):
    """A small transformer whose class 0 adds up the first feature of all 4 × 4 patches and class 1 the second."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        nn.init.zeros_(self.patches.weight)
        with torch.no_grad():
            self.patches.weight[range(3), range(3), 0, 0] = 1
        self.blocks = nn.Sequential(Attention())
        self.head = nn.Linear(3, 2, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1))[:, 0])


def test_the_patches_of_a_vision_transformer_that_raise_the_score_are_highlighted() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, :4, :4] = images[1, 1, 4:, 4:] = 200
    heat = grad_cam(ClassToken(), images, torch.tensor([0, 1]), lambda pixels: pixels.float())
    assert heat is not None
    assert heat[0, :3, :3].min() == 1
    assert heat[1, 5:, 5:].min() == 1
    assert heat[0, 5:, :].max() == heat[1, :3, :].max() == 0


@pytest.mark.parametrize(
    ("name", "family"),
    [("vit_b_32", ""), ("vit_tiny_patch16_224", "timm"), ("resnet18", "timm"), ("convnext_atto", "timm")],
)
def test_vision_transformers_and_timm_networks_have_a_map(name: str, family: str) -> None:
    torch.manual_seed(0)
    if family:
        network = pytest.importorskip(family).create_model(name, num_classes=3)
    else:
        network = build_network(Recipe(name), 3)
    size = 224 if "vit" in name else 96
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    heat = grad_cam(network, images, torch.tensor([0, 2]), lambda pixels: pixels.float() / 64 - 2)
    assert heat is not None
    assert heat.shape == (2, size, size)
    assert heat.amax((1, 2)).max() == pytest.approx(1, abs=1e-3)
    assert heat.std() > 0


def test_a_network_whose_map_is_a_single_pixel_has_none() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2))
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert grad_cam(network, images, torch.tensor([0]), lambda pixels: pixels.float()) is None
