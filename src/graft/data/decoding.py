"""Pictures decoded once and for all, with a progress bar."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from graft.data.cores import available_cores
from graft.data.images import ImageSet
from graft.data.lost import LostImages
from graft.data.transforms import Picture, eval_transform
from graft.preprocessing import Preprocessing


def decode_resident(
    images: ImageSet, preprocessing: Preprocessing, *, what: str = "images", only: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """All pictures as evaluation sees them, uint8 [N, S, S, 3]; with threads, and a progress bar on a
    terminal. With `only`, nothing is known of the others.

    Raises:
        UnreadableImage: a picture cannot be read; names the file.
    """
    return decode_readable(images, preprocessing, None, what=what, only=only)[0]


def decode_readable(
    images: ImageSet,
    preprocessing: Preprocessing,
    lost: LostImages | None,
    *,
    what: str = "images",
    only: Sequence[int] | None = None,
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """(pictures as `decode_resident` gives them, rows of those that cannot be read); black in these rows.

    Raises:
        UnreadableImage: a picture cannot be read, and `lost` is None; names the file.
    """
    size = preprocessing.input_size
    if images.pixels is not None and images.pixels.shape[1:3] == (size, size) == (preprocessing.resize_size,) * 2:
        return images.pixels, []
    transform = eval_transform(preprocessing)
    with torch.inference_mode(False):  # Lightning asks for loaders in inference mode; training uses these pixels too
        pixels = np.zeros((len(images), size, size, 3), dtype=np.uint8)
    unread: list[int] = []

    def decode(index: int) -> None:
        if lost is None:
            picture: Picture | None = images.load(index)
        else:
            picture, _ = lost.load(images, index, replace=False)
        if picture is None:
            unread.append(index)
        else:
            pixels[index] = transform(picture).permute(1, 2, 0).numpy()

    rows = range(len(images)) if only is None else only
    with (
        ThreadPoolExecutor(available_cores(), "decode") as pool,
        contextlib.closing(Progress(what, len(rows))) as bar,
    ):
        for done, _ in enumerate(pool.map(decode, rows, chunksize=1), 1):
            bar.update(done)
    return pixels, sorted(unread)


class Progress:
    """A bar on stderr, on a terminal, once the work has taken a second."""

    PATIENCE = 1.0

    def __init__(self, what: str, total: int) -> None:
        from rich.progress import Progress

        from graft.terminal import PlainConsole

        console = PlainConsole(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(f"decoding {what}", total=total)
        self.due: float | None = time.monotonic() + self.PATIENCE

    def update(self, done: int) -> None:
        """`done` pictures are decoded."""
        self.bar.update(self.task, completed=done)
        if self.due is not None and time.monotonic() > self.due:
            self.due = None
            self.bar.start()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()
