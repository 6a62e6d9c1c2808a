"""Evaluation transforms equal torchvision's, and training transforms stay within their options."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import AlexNet_Weights
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from graft.data.augment import Augment
from graft.data.augmenter import Augmenter
from graft.data.preprocessing import Preprocessing
from graft.data.reading import read_image
from graft.data.transforms import as_image, as_pixels, eval_transform

EVERYTHING = Augment(
    random_resized_crop={"scale": [0.3, 1.0]},
    random_crop_padding=3,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    color_jitter=0.4,
    random_erasing=0.5,
)


def picture(width: int = 90, height: int = 60) -> Image.Image:
    values = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


def augmented(
    image: Image.Image | torch.Tensor, preprocessing: Preprocessing, augment: Augment, epoch: int = 0
) -> torch.Tensor:
    return Augmenter(augment, 0, preprocessing).picture(image, epoch, 0)


def denormalised(reference: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return ((reference * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(90, 60), (61, 200), (20, 20)])
def test_evaluation_equals_torchvision_s_preset_up_to_normalisation(interpolation: str, size: tuple[int, int]) -> None:
    ours = Preprocessing(input_size=48, resize_size=56, interpolation=interpolation)  # type: ignore[arg-type]
    theirs = ImageClassification(crop_size=48, resize_size=56, interpolation=InterpolationMode(interpolation))
    image = picture(*size)
    assert torch.equal(eval_transform(ours)(image), denormalised(theirs(image), ours))


@pytest.mark.parametrize("size", [(30_000, 3), (3, 30_000), (1, 1), (1, 100_000), (900, 50)])
@pytest.mark.parametrize("augment", [Augment(), Augment(random_resized_crop={})])
def test_a_strip_of_any_length_takes_no_more_memory_than_a_photograph(
    size: tuple[int, int], augment: Augment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        made.append(size[0] * size[1])
        assert made[-1] < 5e6, "pixels"
        return resize(self, size, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = Image.new("RGB", size)
    assert eval_transform(Preprocessing())(image).shape == (3, 224, 224)
    assert augmented(image, Preprocessing(), augment).shape == (3, 224, 224)
    assert made


def test_of_a_long_strip_the_centre_is_evaluated() -> None:
    ours = Preprocessing(input_size=48, resize_size=56)
    strip = picture(60, 40).resize((60, 40)).resize((1000, 20), Image.Resampling.BICUBIC)
    theirs = ImageClassification(crop_size=48, resize_size=56)
    difference = eval_transform(ours)(strip).int() - denormalised(theirs(strip), ours).int()
    assert difference.abs().max() <= 3


def test_a_real_photograph_equals_torchvision_s_own_preset(shared_data: Path) -> None:
    path = next((shared_data / "hymenoptera_data" / "val" / "ants").glob("*.jpg"))
    reference = AlexNet_Weights.DEFAULT.transforms()(Image.open(path))
    assert torch.equal(eval_transform(Preprocessing())(read_image(path)), denormalised(reference, Preprocessing()))


def test_squash_loses_nothing_at_the_borders() -> None:
    image = Image.new("RGB", (100, 20), "black")
    image.paste("white", (0, 0, 10, 20))
    squashed = eval_transform(Preprocessing(input_size=10, resize_size=10, fit="squash"))(image)
    cropped = eval_transform(Preprocessing(input_size=10, resize_size=10, fit="crop"))(image)
    assert squashed.shape == cropped.shape == (3, 10, 10)
    assert squashed[0, 5, 0] > 200
    assert cropped.max() == 0, "the centre alone"


@pytest.mark.parametrize("policy", [None, "trivial", "rand", "auto"])
def test_training_gives_uint8_of_the_network_s_size(policy: str | None) -> None:
    augment = Augment(**{**EVERYTHING.__dict__, "policy": policy})
    for size in ((90, 60), (31, 200), (20, 20)):
        image = augmented(picture(*size), Preprocessing(input_size=32, resize_size=32), augment)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 32, 32))


@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("size", [(500, 375), (300, 225), (90, 60)])
def test_a_random_crop_is_that_of_the_pil_image_to_a_grey_level(
    interpolation: str, levels: int, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(interpolation=interpolation)  # type: ignore[arg-type]
    augmenter = Augmenter(Augment(random_resized_crop={}), 0, preprocessing)
    image = picture(*size)
    for epoch in range(5):
        sides = (np.array([side]) for side in reversed(size))
        top, left, height, width = augmenter.draws.crops(epoch, np.array([0]), *sides)[0].tolist()
        cut = image.crop((left, top, left + width, top + height))
        mode = getattr(Image.Resampling, interpolation.upper())
        reference = v2.functional.pil_to_tensor(cut.resize((224, 224), mode)).int()
        for source in (image, as_pixels(image)):
            assert (augmenter.picture(source, epoch, 0) - reference).abs().max() <= levels


@pytest.mark.parametrize("augment", [Augment(), Augment(policy="trivial"), EVERYTHING])
def test_a_decoded_picture_and_its_pixels_give_the_same(augment: Augment) -> None:
    image = picture()
    assert torch.equal(as_pixels(as_image(as_pixels(image))), as_pixels(image))
    for epoch in range(3):
        pixels = [augmented(form, Preprocessing(32, 40), augment, epoch) for form in (image, as_pixels(image))]
        assert torch.equal(*pixels)


def test_training_without_augmentation_equals_evaluation() -> None:
    preprocessing = Preprocessing(input_size=32, resize_size=40)
    assert torch.equal(augmented(picture(), preprocessing, Augment()), eval_transform(preprocessing)(picture()))


def test_erasing_leaves_the_mean_colour() -> None:
    preprocessing = Preprocessing(input_size=16, resize_size=16, mean=(1.0, 0.5, 0.0))
    image = augmented(Image.new("RGB", (16, 16), (9, 9, 9)), preprocessing, Augment(random_erasing=1.0))
    colours = {tuple(pixel) for pixel in image.flatten(1).T.tolist()}
    assert colours == {(9, 9, 9), (255, 128, 0)}
