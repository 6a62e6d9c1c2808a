"""Every supported kind of image is decoded to upright 8-bit RGB."""

import io
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.data.images import ImageSet
from graft.data.reading import FORMATS, read_image, to_rgb
from graft.errors import UnreadableImage

RED, CLEAR_RED = (255, 0, 0), (255, 0, 0, 0)


def through_file(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """Save and read back as a data set would."""
    image.save(path, **options)
    return np.asarray(read_image(path))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert through_file(grey, tmp_path / "a.png")[0, :, 0].tolist() == [0, 100, 255]
    assert through_file(grey, tmp_path / "a.tif")[0, :, 1].tolist() == [0, 100, 255]


def test_float_grey_in_the_unit_interval_is_scaled_and_larger_is_not() -> None:
    def shades(*values: float) -> list[int]:
        return np.asarray(to_rgb(Image.fromarray(np.array([values], dtype=np.float32))))[0, :, 2].tolist()

    assert shades(0.0, 0.5, 1.0) == [0, 128, 255]
    assert shades(-3.0, 100.0, 300.0) == [0, 100, 255]


def test_cmyk_red_stays_red(tmp_path: Path) -> None:
    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    red, green, blue = through_file(cmyk, tmp_path / "a.jpg", quality=100)[4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_composited_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), CLEAR_RED)
    image.putpixel((1, 0), (0, 0, 0, 255))
    converted = image.convert(mode)
    converted.putalpha(image.getchannel("A"))  # which Pillow before 12 loses on the way to a palette
    assert np.asarray(to_rgb(converted))[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_half_transparent_black_over_white_is_grey() -> None:
    assert np.asarray(to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))[0, 0, 0] == 127


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    read = through_file(palette, tmp_path / "a.png", transparency=0)
    assert read[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    assert through_file(palette, tmp_path / "b.png")[0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_rgb_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 0))
    assert through_file(image, tmp_path / "a.png", transparency=RED)[0].tolist() == [
        [255, 255, 255],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel_become_three_equal_channels(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), 255)
    assert np.asarray(to_rgb(image))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 16))  # white at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to look at it
    read = through_file(image, tmp_path / "a.jpg", exif=exif, quality=100)
    assert read.shape == (32, 16, 3)
    assert read[4, 8, 0] > 240  # white at the top now
    assert read[28, 8, 0] < 15


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(read_image(tmp_path / "a.webp"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_with_damaged_exif_data_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), RED).save(tmp_path / "a.jpg", exif=exif, quality=100)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    begin = content.index(b"Exif\0\0")
    content[begin + 6 : begin + 32] = bytes(range(100, 126))
    (tmp_path / "a.jpg").write_bytes(content)
    assert np.asarray(read_image(tmp_path / "a.jpg")).shape == (16, 32, 3)


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 80).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


def damaged_header(path: Path) -> None:
    Image.effect_noise((64, 64), 80).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:8] + b"\0" * 40)


def bomb(path: Path) -> None:
    """100,000 by 4,000 pixels in 50 kB."""
    Image.new("1", (100_000, 4_000)).save(path, "PNG")


def sparse(beginning: bytes) -> Callable[[Path], object]:
    """A file of 3 GB, of which all but `beginning` is a hole."""

    def make(path: Path) -> None:
        path.write_bytes(beginning)
        os.truncate(path, 3 << 30)

    return make


def saved(format_: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(content, format_, **options)
    return content.getvalue()


HUGE_CHUNK = saved("PNG")[:33] + (2**31 - 1).to_bytes(4, "big") + b"tEXt"


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty", "0 bytes"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "no image", "it begins with b'<html>not found<'"),
        (truncated, "truncated", "truncated"),
        (damaged_header, "damaged", "header"),
        (bomb, "too large", "more than 178,956,970 pixels"),
        (lambda path: None, "missing", "no such file"),
        (lambda path: path.symlink_to("nowhere"), "missing", "a broken link"),
        (lambda path: path.mkdir(), "refused", "Is a directory"),
        (lambda path: path.symlink_to(path), "missing", "a link to itself"),
        (os.mkfifo, "not a regular file", "a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file", "a character device"),
        (sparse(b"\xff\xd8\xff"), "too large", "its header is larger than 256 MB or 1,048,576 reads"),
        (
            sparse(saved("JPEG", progressive=True)[:900]),
            "too large",
            "3,221,225,472 bytes for 64 x 64 pixels; the limit is",
        ),
        (sparse(HUGE_CHUNK), "too large", "its header is larger than"),
        (sparse(saved("WEBP")), "too large", "its header is larger than"),
    ],
    ids=[
        *("empty", "html", "truncated", "header", "bomb", "vanished", "link", "folder", "self-link", "fifo", "device"),
        *("sparse JPEG", "sparse JPEG cut short", "sparse PNG", "sparse WEBP"),
    ],
)
def test_a_file_that_is_no_picture_is_named_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], object], kind: str, reason: str
) -> None:
    path = tmp_path / "bad.jpg"
    spoil(path)
    with pytest.raises(UnreadableImage, match=r"bad\.jpg: cannot be read as an image \(.*\)\.\n") as raised:
        read_image(path)
    assert raised.value.kind == kind
    assert reason in raised.value.reason
    again = pickle.loads(pickle.dumps(raised.value))  # a worker process hands it over
    assert (str(again), again.path, again.kind) == (str(raised.value), path, kind)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF"])
def test_any_defect_of_a_file_raises_an_error_that_names_it(tmp_path: Path, format_: str) -> None:
    """Random damage: Pillow answers with a dozen kinds of exceptions, of which none may reach the user as it is."""
    path, chance = tmp_path / "a", random.Random(0)
    Image.effect_noise((24, 24), 90).convert("RGB").save(path, format_)
    whole, outcomes = path.read_bytes(), set()
    for trial in range(200):
        content = bytearray(whole[: chance.randrange(1, len(whole))] if trial % 4 == 0 else whole)
        for _ in range(chance.choice((1, 3, 20))):
            content[chance.randrange(min(len(content), 400))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            outcomes.add(read_image(path).mode)
        except UnreadableImage as error:
            outcomes.add(error.kind)
    assert outcomes & {"damaged", "truncated", "no image"}


def test_select_keeps_names_labels_and_pictures_together() -> None:
    pixels = np.arange(4, dtype=np.uint8).repeat(3).reshape(4, 1, 1, 3)
    images = ImageSet(list("abcd"), np.array([0, 1, 0, 1]), pixels=pixels).select([3, 0])
    assert (images.names, images.labels.tolist()) == (["d", "a"], [1, 0])
    assert images.load(0).getpixel((0, 0)) == (3, 3, 3)
    assert images.counts(3) == [1, 1, 0]


def test_an_eps_file_called_jpg_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, started = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    ghostscript = programs / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    assert shutil.which("gs") == str(ghostscript)
    picture = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8), RED).save(picture, "EPS")
    with pytest.raises(OSError), Image.open(picture) as opened:  # noqa: PT011
        opened.load()
    assert started.exists(), "the attack works on Pillow alone"
    started.unlink()
    with pytest.raises(UnreadableImage, match=r"it begins with b'%!PS-Adobe-3.0 E"):
        read_image(picture)
    assert not started.exists()


@pytest.mark.parametrize("format_", ["EPS", "PDF", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "DDS"])
def test_other_formats_are_not_read_regardless_of_the_file_name(format_: str, tmp_path: Path) -> None:
    try:
        Image.new("RGB", (16, 16)).save(tmp_path / "x.png", format_)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {format_}")
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_format_is_recognised_by_its_content_regardless_of_the_file_name(format_: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).save(tmp_path / "x.bmp", format_)
    assert read_image(tmp_path / "x.bmp").size == (16, 16)
