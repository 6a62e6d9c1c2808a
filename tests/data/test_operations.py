"""Operations on batches are torchvision's on single images, and give an image the same pixels in any batch."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from graft.data.draws import Operations
from graft.data.operations import apply

SHAPE = (40, 40)
MAGNITUDES = {"Rotate": (5.7, -110.0), "TranslateX": (5.7, -7.2), "TranslateY": (31.9, -7.2), "Posterize": (2.0, 6.0)}
NAMES = list(v2.AutoAugment()._AUGMENTATION_SPACE)


def images(shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """Noise, smooth colours, a grey wedge and one even colour: uint8 [N, H, W, 3]."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 3, *shape), generator=random, dtype=torch.uint8)
    coarse = torch.rand(3, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=shape, mode="bilinear").mul(255).to(torch.uint8)
    wedge = (torch.arange(shape[1], dtype=torch.uint8) * 4).expand(1, 3, *shape)
    even = torch.full((1, 3, *shape), 77, dtype=torch.uint8)
    return torch.cat([noise, smooth, wedge, even]).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(
    ("interpolation", "shape"), [("bilinear", (40, 40)), ("nearest", (40, 40)), ("bilinear", (28, 52))]
)
@pytest.mark.parametrize("name", [*NAMES, "Identity"])
def test_an_operation_is_torchvision_s(name: str, interpolation: str, shape: tuple[int, int]) -> None:
    mode = InterpolationMode(interpolation)
    policy = v2.TrivialAugmentWide(interpolation=mode)
    for magnitude in MAGNITUDES.get(name, (0.5, 0.99, *(() if name == "Solarize" else (-0.7,)))):
        originals = images(shape)
        planes = originals.permute(0, 3, 1, 2)
        theirs = torch.stack(
            [policy._apply_image_or_video_transform(each, name, magnitude, mode, policy._fill) for each in planes]
        )
        step = Operations([name] * len(originals), np.full(len(originals), magnitude))
        ours = apply(originals.clone(), [step], interpolation, torch.from_numpy).permute(0, 3, 1, 2)
        far = (ours.int() - theirs.int()).abs()
        if interpolation == "bilinear":
            assert far.max() <= 1, magnitude
        assert (far > 0).float().mean() < 0.04, magnitude


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.05, 0.5])
def test_hue_is_torchvision_s(shift: float) -> None:
    originals = images()
    theirs = v2.functional.adjust_hue(originals.permute(0, 3, 1, 2), shift).permute(0, 2, 3, 1)
    ours = apply(
        originals, [Operations(["Hue"] * len(originals), np.full(len(originals), shift))], "bilinear", torch.from_numpy
    )
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_an_image_gets_the_same_pixels_alone_and_in_any_batch(interpolation: str) -> None:
    names = [*NAMES, "Hue", "Identity", "Contrast", "Rotate", "Contrast"]
    originals = images()[np.arange(len(names)) % 8]
    magnitudes = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(names)))
    turned = names[3:] + names[:3]
    for row, order in enumerate((names, turned)):
        magnitudes[row] = [
            4.0 if name == "Posterize" else 8 * m if name in MAGNITUDES else abs(m) if name == "Solarize" else m
            for name, m in zip(order, magnitudes[row], strict=True)
        ]
    steps = [Operations(names, magnitudes[0]), Operations(turned, magnitudes[1])]
    together = apply(originals.clone(), steps, interpolation, torch.from_numpy)
    for row in range(len(names)):
        one = [Operations([step.names[row]], step.magnitudes[row : row + 1]) for step in steps]
        alone = apply(originals[row : row + 1].clone(), one, interpolation, torch.from_numpy)
        assert torch.equal(alone[0], together[row]), (names[row], turned[row])
    assert together.is_contiguous()


def test_pixels_from_outside_are_black_and_none_wrap_around() -> None:
    """Bicubic interpolation exceeds the range of grey levels at edges."""
    edges = torch.zeros(1, *SHAPE, 3, dtype=torch.uint8)
    edges[:, :, SHAPE[1] // 2 :] = 255
    turned = apply(edges, [Operations(["Rotate"], np.array([3.0]))], "bicubic", torch.from_numpy)[0, :, :, 0]
    assert turned[20, :15].max() == 0
    assert turned[20, 26:38].min() == 255
