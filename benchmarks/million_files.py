"""How long a run takes to its first batch, and how much memory, with a million files.

    python -m benchmarks.million_files                      1,000 classes of 1,000 links to a few small JPEGs
    python -m benchmarks.million_files 100 100              100 classes of 100

The links are made in a temporary folder and removed afterwards. Each step is timed in one process, which is what a
run does before its first step; the peak of memory is that of this process, 0.8 GB of which the imports take.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = 64
"""Different files; a file system allows a file no more than some ten thousand links."""


def make_links(folder: Path, classes: int, each: int) -> None:
    """`classes` folders of `each` hard links, in `folder`/photos, to files in `folder`/sources."""
    generator = np.random.RandomState(0)
    (folder / "sources").mkdir()
    sources = []
    for number in range(SOURCES):
        sources.append(str(folder / "sources" / f"{number}.jpg"))
        Image.fromarray(generator.randint(0, 256, (32, 32, 3), dtype=np.uint8)).save(sources[-1])
    for label in range(classes):
        name = folder / "photos" / f"class_{label:05d}"
        name.mkdir(parents=True)
        for number in range(each):
            os.link(sources[(label * each + number) % SOURCES], f"{name}/IMG_{number:07d}.jpg")


def memory() -> float:
    """Peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took, and the peak of memory so far."""
    started = time.perf_counter()
    yield
    print(f"{what:<28}{time.perf_counter() - started:8.2f} s{memory():10.0f} MiB", flush=True)


def measure(root: Path) -> None:
    """The steps of a run up to its first batch."""
    with timed("import"):
        from graft.data.augment import Augment
        from graft.data.datamodule import ImageDataModule
        from graft.data.loading import load_splits
        from graft.data.preprocessing import Preprocessing
        from graft.data.scan import exclude_unreadable
    started = time.perf_counter()
    with timed("list and divide"):
        splits = load_splits("folder", root=root, seed=0)
    with timed("scan the files"):
        splits = exclude_unreadable(splits, "raise")
    with timed("fingerprint of the set"):
        splits.fingerprint()
    with timed("of the training images"):  # as the feature cache takes it; the files have been read by then
        splits.train.fingerprint()
    with timed("first batch, two workers"):
        augment = Augment(random_resized_crop={})
        data = ImageDataModule(splits, Preprocessing(32, 32), augment, batch_size=32, num_workers=2, seed=0)
        loader = iter(data.train_dataloader())
        next(loader)
    count = len({id(part): part for part in splits.parts().values()})
    print(f"{sum(map(len, splits.parts().values())):,} images in {count} parts, {len(splits.classes):,} classes")
    print(f"to the first batch: {time.perf_counter() - started:.1f} s, {memory():.0f} MiB")


def main() -> None:
    """Make the links, measure in this process, remove them."""
    classes, each = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 1000)
    folder = Path(tempfile.mkdtemp(prefix="million_files_"))
    try:
        started = time.perf_counter()
        make_links(folder, classes, each)
        print(f"{classes * each:,} links made in {time.perf_counter() - started:.1f} s")
        measure(folder / "photos")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
