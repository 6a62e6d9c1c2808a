"""Images that are not 8-bit RGB: grey, 16 bits, several bands."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from one_training_step import composed
from PIL import Image

import graft
from graft.config.commands import EvaluateConfig
from graft.config.registration import typed
from graft.data import channel_statistics, operations
from graft.data.augment import Augment
from graft.data.augmenter import Augmenter
from graft.data.bands import Bands, NotInFormat
from graft.data.display import visible
from graft.data.image_format import ImageFormat
from graft.data.images import ImageSet
from graft.data.loading import load_published
from graft.data.preprocessing import Preprocessing
from graft.data.reading import load_file
from graft.data.shards.packing import Options, Packing, pack
from graft.data.transforms import eval_transform
from graft.errors import ConfigError, DataError, UnreadableImage
from graft.tasks.evaluation import run as evaluate
from graft.tasks.export import export

GREY, FIVE = ImageFormat(1, 16), ImageFormat(5, 16)
Array = npt.NDArray[Any]


def noise(*shape: int, dtype: Any = np.uint16) -> Array:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def preprocessing(image_format: ImageFormat, size: int, **options: Any) -> Preprocessing:
    half = (0.5,) * image_format.channels
    return Preprocessing(size, size, mean=half, std=half, image_format=image_format, **options)


# -- files

WRITERS: dict[str, Callable[[Path, Array], object]] = {
    "planar.tif": lambda file, bands: tifffile.imwrite(file, bands, planarconfig="separate", photometric="minisblack"),
    "interleaved.tif": lambda file, bands: tifffile.imwrite(
        file, bands.transpose(1, 2, 0).copy(), planarconfig="contig", photometric="minisblack", compression="zlib"
    ),
    "pages.tif": lambda file, bands: tifffile.imwrite(file, bands, metadata=None),
    "separate_pages.tif": lambda file, bands: [tifffile.imwrite(file, band, append=True) for band in bands],
    "unnamed_axes.tif": lambda file, bands: tifffile.imwrite(file, bands.transpose(1, 2, 0).copy()),
    "big.tif": lambda file, bands: tifffile.imwrite(file, bands, bigtiff=True),
    "first.npy": lambda file, bands: np.save(file, bands),
    "last.npy": lambda file, bands: np.save(file, bands.transpose(1, 2, 0)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_bands_are_read_from_the_first_or_the_last_axis(name: str, tmp_path: Path) -> None:
    bands = noise(5, 8, 13)
    WRITERS[name](tmp_path / name, bands)
    assert np.array_equal(load_file(tmp_path / name, FIVE), bands.transpose(1, 2, 0))
    chosen = ImageFormat(2, 16, bands=(4, 1))
    assert np.array_equal(load_file(tmp_path / name, chosen), bands[[3, 0]].transpose(1, 2, 0)), "numbered from 1"


def test_grey_files_of_any_kind_become_one_channel(tmp_path: Path) -> None:
    deep, shallow, colour = noise(9, 7), noise(9, 7, dtype=np.uint8), noise(9, 7, 3, dtype=np.uint8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.save(tmp_path / "float.npy", (deep / 65535).astype(np.float32))
    luminance = np.asarray(Image.fromarray(colour).convert("L"))
    expected = {"deep.png": deep, "deep.tif": deep, "shallow.png": shallow.astype(np.uint16) * 257,
                "colour.png": luminance.astype(np.uint16) * 257, "float.npy": deep}  # fmt: skip
    for name, levels in expected.items():
        assert np.array_equal(load_file(tmp_path / name, GREY), levels[..., None]), name
    eight = load_file(tmp_path / "deep.png", ImageFormat(1, 8))
    assert np.array_equal(eight, np.rint(deep / 257)[..., None])


def test_values_are_scaled_to_the_value_that_is_white_and_clipped() -> None:
    values = np.array([[[0], [2048], [4095], [5000]]], np.uint16)
    wanted = ImageFormat(1, 16, max_value=4095)
    expected = [0, round(2048 / 4095 * 65535), 65535, 65535]
    assert Bands.of(values, wanted).scaled(wanted).ravel().tolist() == expected
    negative = Bands.of(np.array([[[-3], [10]]], np.int16), ImageFormat(1, 8, max_value=10))
    assert negative.scaled(ImageFormat(1, 8, max_value=10)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "wanted", "message"),
    [
        (np.zeros((2, 2, 1), np.int16), GREY, "int16; set data.max_value"),
        (np.full((2, 2, 1), 7.0), GREY, r"floats up to 7, not to 1; set data\.max_value"),
        (np.full((2, 2, 1), np.nan), GREY, "NaN"),
        (np.zeros((2, 2, 4), np.uint8), FIVE, r"4 bands, not data\.channels=5; data\.channels=4 takes them"),
        (np.zeros((2, 2, 4), np.uint8), ImageFormat(3, 16), r"4 bands, .*; data\.bands=\[1,2,3\] chooses them"),
        (np.zeros((2, 2, 4), np.uint8), ImageFormat(1, 16, bands=(5,)), "4 bands, and data.bands names band 5"),
        (np.zeros((2, 2, 1), complex), GREY, "complex"),
    ],
)
def test_values_and_bands_that_do_not_fit_are_refused(values: Array, wanted: ImageFormat, message: str) -> None:
    with pytest.raises(NotInFormat, match=message):
        Bands.of(values, wanted).scaled(wanted)


def test_a_damaged_or_strange_file_is_named_with_the_reason(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", noise(50, 50, 5))
    tifffile.imwrite(tmp_path / "cut.tif", noise(5, 50, 50), planarconfig="separate", photometric="minisblack")
    for name in ("cut.npy", "cut.tif"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    np.save(tmp_path / "code.npy", np.array([print], object), allow_pickle=True)
    np.save(tmp_path / "cube.npy", noise(4, 5, 6, 7))
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (5, 900000, 900000), }"
    (tmp_path / "bomb.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (tmp_path / "deep.png").write_bytes(_png_of_16_bits())
    reasons = {"cut.npy": "bytes of an array", "cut.tif": "bytes", "code.npy": "Python objects",
               "cube.npy": "an array of the shape", "bomb.npy": "bytes of an array", "deep.png": "16-bit"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=rf"{name}: cannot be read as an image \(.*{reason}"):
            load_file(tmp_path / name, ImageFormat(3, 16) if name == "deep.png" else FIVE)
    Image.fromarray(noise(4, 4, 4, dtype=np.uint8)).save(tmp_path / "rgba.png")
    with pytest.raises(UnreadableImage, match=r"4 bands, not data\.channels=5") as error:
        load_file(tmp_path / "rgba.png", FIVE)
    assert error.value.kind == "channels"


def _png_of_16_bits() -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads as 8-bit."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_shards_hold_the_files_and_are_read_in_the_format(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", "bands")
    files, _ = load_published("folder", root=images, seed=0, image_format=FIVE)
    pack(Packing.of(files, Options(), (), {}), tmp_path / "shards")
    shards, _ = load_published("shards", root=tmp_path / "shards", seed=0, image_format=FIVE)
    assert sorted(shards.train.names) == sorted(files.train.names)
    for index, name in enumerate(files.train.names):
        assert np.array_equal(shards.train.load(list(shards.train.names).index(name)), files.train.load(index))


# -- pixels


def test_sixteen_bits_are_resized_as_in_double_precision() -> None:
    width, size = 97, 24
    ramp = np.rint(np.linspace(0, 65535, width)).astype(np.uint16)
    image = np.stack([np.tile(ramp, (width, 1)), noise(width, width)], axis=-1)
    scale = width / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(width)[None] - centres[:, None]) / scale)
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("yi,xj,ijc->cyx", weights, weights, image.astype(np.float64))
    found = eval_transform(preprocessing(ImageFormat(2, 16), size, fit="squash"))(image)
    assert found.dtype == torch.uint16
    assert np.abs(found.numpy().astype(np.float64) - expected).max() <= 0.51, "rounded once"
    assert len(np.unique(found[0])) == size, "a ramp keeps more than 8 bits"


def test_shape_and_brightness_change_any_format_alike_in_the_picture_and_in_the_batch() -> None:
    image = noise(12, 12, 5)
    plain = preprocessing(FIVE, 12)
    flipped = Augmenter(Augment(horizontal_flip=1.0), 0, plain).picture(image, 0, 3)
    assert np.array_equal(flipped.numpy(), image.transpose(2, 0, 1)[:, :, ::-1])
    augment = Augment(random_crop_padding=2, horizontal_flip=0.5, color_jitter=0.5, random_erasing=0.5)
    augmenter, keys = Augmenter(augment, 0, plain), np.arange(4)
    batch = augmenter.batch(np.stack([image] * 4), keys, 1, keys)
    assert batch.dtype == np.uint16
    assert len(np.unique(batch.reshape(4, -1), axis=0)) == 4
    for key in keys:
        assert np.array_equal(augmenter.picture(image, 1, int(key)).permute(1, 2, 0).numpy(), batch[key])


def test_brightness_scales_levels_of_sixteen_bits() -> None:
    image = torch.tensor([1000, 40000], dtype=torch.uint16).view(1, 1, 1, 2)
    assert operations.brightness(image, torch.tensor(0.5)).flatten().tolist() == [1500, 60000]
    assert operations.contrast(image, torch.tensor(-1.0)).flatten().tolist() == [20500, 20500]


def test_a_picture_shows_the_first_three_bands_stretched() -> None:
    shown = visible((noise(20, 30, 5) // 100 + 3000).astype(np.uint16))
    assert shown.shape == (20, 30, 3)
    assert shown.min() == 0
    assert shown.max() == 255
    grey = noise(4, 4, 1, dtype=np.uint8)
    assert np.array_equal(visible(grey), np.repeat(grey, 3, axis=-1)), "8 bits are shown as they are"


def test_mean_and_std_are_those_of_the_pixels_with_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [noise(8, 8, 2) // (number + 1) for number in range(5)]
    for number, image in enumerate(images):
        image[..., 1] = 7
        np.save(tmp_path / f"{number}.npy", image)
    wanted = ImageFormat(2, 16, max_value=50_000)
    names = [f"{number}.npy" for number in range(5)]
    paths = [tmp_path / name for name in names]
    every = ImageSet(names, np.zeros(5, np.int64), paths=paths, image_format=wanted)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(channel_statistics, "available_cores", lambda cores=cores: cores)
        found.append(channel_statistics.with_statistics(preprocessing(wanted, 8), every, None))
    assert found[0] == found[1]
    measured, notes = found[0]
    values = np.stack([every.load(index) for index in range(5)])[..., 0] / 65535
    assert measured.mean[0] == pytest.approx(values.mean(), abs=1e-12)
    assert measured.std[0] == pytest.approx(values.std(), abs=1e-12)
    assert measured.std[1] == 1
    assert [note.split(" ")[0] for note in notes] == ["measured", "channel", "1"]
    assert "above data.max_value=50000" in notes[2]


# -- the whole way


def write_set(root: Path, kind: str) -> Path:
    """Forty images whose class is in one band: grey as 16-bit PNG, or five bands as TIFF and .npy of 12 bits."""
    draw = np.random.default_rng(0)
    for number in range(40):
        label = ("dark", "light")[number % 2]
        bands = draw.integers(0, 3000, (5, 20, 26), dtype=np.uint16)
        bands[0 if kind == "grey" else 3] //= 1 if label == "light" else 8
        file = root / label / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "grey":
            Image.fromarray(bands[0]).save(file.with_suffix(".png"))
        elif number % 4 < 2:
            np.save(file.with_suffix(".npy"), bands.transpose(1, 2, 0))
        else:
            tifffile.imwrite(file.with_suffix(".tif"), bands, photometric="minisblack")
    return root


SMALL = ("data=folder", "data.batch_size=8", "data.max_value=4095", "data.preprocess.input_size=16", "model=vgg_custom",
         "model.table=[8,M,8,M]", "model.classifier=linear", "model.average_pool=4", "strategy=scratch",
         "optimizer.lr=0.05", "scheduler=none", "trainer.accelerator=cpu")  # fmt: skip


def trained(kind: str, folder: Path, *words: str) -> tuple[graft.FinishedRun, Path]:
    """A run that has learned to tell the two classes, and the folder of its images."""
    images = write_set(folder / "images", kind)
    run = graft.train(*SMALL, f"data.root={images}", "trainer.max_epochs=6", *words, folder=folder / "run", echo=False)
    assert run.metrics["test/acc"] == 1
    assert [note for note in run.summary["notes"] if note.startswith("measured on 28 training images")]
    config = typed(composed(f"checkpoint={run.folder}", task="evaluate"), EvaluateConfig)
    assert evaluate(config, [run.checkpoint], (), folder / "evaluated") == 1
    scored = json.loads((folder / "evaluated" / "evaluation.json").read_text())
    assert scored["metrics"]["test/loss"] == run.metrics["test/loss"]
    return run, images


def test_a_run_on_grey_images_of_16_bits_is_evaluated_and_predicts_files_and_pictures(tmp_path: Path) -> None:
    words = ("data.channels=1", "review=none", "logger.tensorboard=false", "data.preprocess.interpolation=bicubic")
    run, images = trained("grey", tmp_path, *words)
    with Image.open(images / "light" / "1.png") as picture:
        found = graft.load(run.folder).predict([*sorted((images / "light").iterdir()), picture])
    assert [each.classes[0] for each in found] == ["light"] * 21
    assert found[0].probabilities == found[-1].probabilities


def test_a_run_on_bands_is_reviewed_evaluated_predicted_and_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, images = trained("bands", tmp_path, "data.channels=5", "augment=none", "augment.horizontal_flip=0.5")
    assert not [record.getMessage() for record in caplog.records if "review:" in record.getMessage()]
    array = np.load(images / "light" / "1.npy")
    found = graft.load(run.folder).predict([images / "light" / "1.npy", array, array.astype(np.float32)])
    assert {(each.classes[0], each.probabilities[0]) for each in found} == {("light", found[0].probabilities[0])}
    words = (f"checkpoint={run.folder}", "format=onnx", "preprocess=true", f"folder={tmp_path}/exported")
    export(composed(*words, task="export"))
    [described] = (tmp_path / "exported").glob("*.json")
    taken = json.loads(described.read_text())["input"]
    assert taken["shape"] == ["batch", 5, 16, 16]
    assert "uint16 from 0 to 65535" in taken["values"]


def test_a_resumed_run_on_bands_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", "bands")
    words = (*SMALL, f"data.root={images}", "data.bands=[4,1]", "review=none", "logger.tensorboard=false")
    whole = graft.train(*words, "trainer.max_epochs=2", folder=tmp_path / "whole", echo=False)
    graft.train(*words, "trainer.max_epochs=1", folder=tmp_path / "part", echo=False)
    part = graft.train(*words, "trainer.max_epochs=2", "resume=auto", folder=tmp_path / "part", echo=False)
    states = [torch.load(each.folder / "checkpoints/last.ckpt")["state_dict"] for each in (whole, part)]
    assert states[0]["network.features.0.weight"].shape[1] == 2
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert whole.metrics == part.metrics


# -- mistakes


def test_files_of_other_bands_are_refused_before_training_or_skipped(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", "bands")
    np.save(images / "dark" / "other.npy", noise(9, 9, 4))
    words = (*SMALL, f"data.root={images}", "data.channels=5")
    with pytest.raises(DataError, match=r"dark/other\.npy  \(channels: it has 4 bands, not data\.channels=5"):
        graft.compose(*words).splits()
    splits = graft.compose(*words, "data.on_error=skip").splits()
    assert [name for name, _ in splits.unreadable] == ["dark/other.npy"]
    assert len(splits.part("all")) == 40


def test_coloured_files_of_a_grey_set_are_counted_and_named(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", "grey")
    Image.fromarray(noise(9, 9, 3, dtype=np.uint8)).save(images / "dark" / "red.png")
    notes = graft.compose(*SMALL, f"data.root={images}", "data.channels=1").splits().notes
    assert [note for note in notes if "1 image in colour converted to grey" in note and "dark/red.png" in note]


def test_arrays_are_no_images_of_an_rgb_set(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", "grey")
    np.save(images / "dark" / "embedding.npy", noise(9))
    splits = graft.compose("data=folder", f"data.root={images}").splits()
    assert len(splits.part("all")) == 40
    assert [name for name, _ in splits.unused] == ["dark/embedding.npy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.channels=2", "data.bands=[1,2,3]"), r"data\.channels=2 and data\.bands=\[1,2,3\] disagree"),
        (("data.bits=12",), r"data\.bits=12: must be 8 or 16"),
        (("data.channels=1", "augment=strong"), r"augment\.policy=trivial and images of 1 channel of 16 bits disagree"),
        (("data.channels=1", "data.preprocess.mean=[0.5,0.5,0.5]"), r"data\.preprocess\.mean=.* a list of 1 numbers"),
        (("data.channels=4", "model=inception_v3"), r"data\.channels=4 and model=inception_v3 disagree"),
        (("data.channels=4", "model._target_=torchvision.models.resnet18"), "does not take in_channels"),
    ],
)
def test_formats_that_cannot_work_are_refused_by_key(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graft.build("data=digits", "strategy=scratch", *words)
