"""Networks whose input is not square."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command, succeeded
from PIL import Image
from torchvision.transforms.v2 import functional

import graft
from graft.data.augment import Augment
from graft.data.augmenter import Augmenter
from graft.data.preprocessing import Preprocessing
from graft.data.transforms import eval_transform
from graft.errors import ConfigError
from graft.inspection.dataset import visible

SIZE = (24, 48)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "resized"), [(100, 300, (32, 96)), (100, 150, (42, 64)), (60, 120, (32, 64)), (9, 5, (115, 64))]
)
def test_an_image_covers_the_box_before_the_centre_crop(height: int, width: int, resized: tuple[int, int]) -> None:
    preprocessing = Preprocessing(SIZE, 32)
    assert preprocessing.box == (32, 64)
    image = noise(height, width)
    expected = functional.center_crop(functional.resize(image, list(resized), antialias=True), list(SIZE))
    found = eval_transform(preprocessing)(image)
    assert torch.equal(found, functional.pil_to_tensor(expected))
    shown = visible(np.array([[width, height]], np.float64), preprocessing)[0]
    assert shown == pytest.approx((SIZE[1] / resized[1], SIZE[0] / resized[0]), rel=0.03)
    squashed = eval_transform(Preprocessing(SIZE, 32, fit="squash"))(image)
    assert torch.equal(squashed, functional.pil_to_tensor(functional.resize(image, list(SIZE), antialias=True)))


def test_random_crops_keep_the_aspect_ratio_of_the_input_within_their_range() -> None:
    augmenter = Augmenter(Augment(random_resized_crop={"scale": [0.1, 0.3]}), 0, Preprocessing(SIZE, 32))
    indices = np.arange(3000)
    sides = np.full(3000, 400)
    _, _, heights, widths = augmenter.draws.crops(0, indices, sides, sides).T
    ratios = widths / heights / 2
    assert 0.74 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.35


def test_shifts_flips_and_erasing_keep_to_the_image() -> None:
    augment = Augment(random_crop_padding=5, horizontal_flip=0.5, vertical_flip=0.5, random_erasing=0.5)
    preprocessing = Preprocessing(SIZE, 24, mean=(0.0, 0.0, 0.0))
    augmenter, image = Augmenter(augment, 0, preprocessing), noise(*SIZE)
    padded = functional.pad(functional.pil_to_tensor(image), [5], padding_mode="reflect")
    erased = 0
    for index in range(40):
        key = np.array([index])
        top, left, vertical, horizontal = augmenter.draws.moves(0, key)[0].tolist()
        expected = functional.crop(padded, top + 5, left + 5, *SIZE)
        expected = expected.flip([axis for axis, flip in ((1, vertical), (2, horizontal)) if flip])
        begin, end, first, last = augmenter.draws.erased(0, key)[0].tolist()
        expected[:, begin:end, first:last] = 0
        erased += end > SIZE[0] or last > SIZE[0]
        assert torch.equal(augmenter.picture(image, 0, index), expected)
    assert erased, "no rectangle beyond the height of the image"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network that tells whether the left or the right end of a wide image is bright."""
    root = tmp_path_factory.mktemp("wide")
    draw = np.random.default_rng(0)
    for number in range(40):
        pixels = draw.integers(0, 60, (30, 60, 3), dtype=np.uint8)
        name = "left" if number % 2 else "right"
        pixels[:, slice(0, 8) if name == "left" else slice(-8, None)] += 150
        file = root / "images" / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    words = ("data=folder", f"data.root={root}/images", "data.preprocess.input_size=[24,48]", "data.batch_size=8",
             "model=vgg_custom", "model.table=[8,M,8,M]", "model.classifier=linear", "strategy=scratch",
             "model.average_pool=4", "optimizer.lr=0.05", "trainer.max_epochs=20", "augment=light",
             "augment.color_jitter=0.2", "data.horizontal_flip=0")  # fmt: skip
    return graft.train(*words, folder=root / "run", echo=False).folder


def test_a_run_is_evaluated_predicted_and_exported_with_its_size(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"]["test/acc"] == 1
    evaluated = succeeded(command(tmp_path / "evaluated", "-m", "graft.cli", "evaluate", f"checkpoint={run}"))
    assert "acc 1.0000" in evaluated.out
    images = run.parent / "images"
    found = graft.load(run).predict([images / "left" / "1.png", images / "right" / "2.png"])
    assert [each.classes[0] for each in found] == ["left", "right"]
    words = (f"checkpoint={run}", "format=[onnx,state_dict]", f"folder={tmp_path}/exported")
    succeeded(command(tmp_path / "export", "-m", "graft.cli", "export", *words))
    [described] = (tmp_path / "exported").glob("*.onnx.json")
    assert json.loads(described.read_text())["input"]["shape"] == ["batch", 3, 24, 48]
    [weights] = (tmp_path / "exported").glob("*.safetensors")
    assert [each.classes[0] for each in graft.load(weights).predict(images / "left")] == ["left"] * 20


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("[24,48,3]", r"data\.preprocess\.input_size=\[24,48,3\]: must be the side of a square"),
        ("wide", r"data\.preprocess\.input_size=wide: must be the side"),
        ("[16,64]", r"data\.preprocess\.input_size=\[16,64\] and model=vgg11 .* needs at least 32x32"),
    ],
)
def test_other_sizes_are_refused_before_training(size: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graft.build("model=vgg11", "data=faces", "strategy=scratch", f"data.preprocess.input_size={size}")


def test_a_network_of_fixed_size_takes_no_rectangle() -> None:
    words = ("model=torchvision", "model.name=vit_b_32", "data=faces", "strategy=scratch")
    with pytest.raises(ConfigError, match=r"input_size=\[224,448\] and model=vit_b_32 .* exactly 224x224"):
        graft.build(*words, "data.preprocess.input_size=[224,448]")
