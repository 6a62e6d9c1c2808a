"""TensorFlow's flower photographs: 3,670 images of five classes, CC-BY."""

from pathlib import Path

from graft.data.layout import class_folders, read_class_folders, split_folders
from graft.data.sources.base import Download, Source
from graft.data.splits import stratified_split
from graft.errors import DataError

CLASS_FOLDERS = True
DOWNLOAD = Download(
    "http://download.tensorflow.org/example_images/flower_photos.tgz",
    folder="flower_photos",
    # TensorFlow Datasets, url_checksums/tf_flowers.txt
    sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    size=228_813_984,
)

TEST_COUNTS = {"daisy": 92, "dandelion": 132, "roses": 91, "sunflowers": 101, "tulips": 124}
CLASSES = tuple(TEST_COUNTS)


def load(root: Path, *, split_seed: int = 0) -> Source:
    """The flowers: 3,130 images for training and validation, 540 for testing (`TEST_COUNTS` per class).

    Args:
        root: contains class folders as in the archive, or `train` and `test` folders of them, which are kept.
        split_seed: seed of the draw of the test images.

    Raises:
        DataError: a class folder is missing, or a class has too few images.
    """
    parts = split_folders(root)
    if {"train", "test"} <= parts.keys():
        classes = tuple(class_folders(parts["train"]))
        train, val, test = (
            read_class_folders(parts[part], prefix=f"{part}/", classes=classes) if part in parts else None
            for part in ("train", "val", "test")
        )
        assert train is not None
        return Source(classes, train, val, test)
    missing = [name for name in CLASSES if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"data.root={root}: there is no {missing[0]}. Expected: class folders {', '.join(CLASSES)}, "
            f"as unpacked from {DOWNLOAD.url}, or train and test folders of them.\n"
            f"For other flowers use data=folder data.root={root}."
        )
    pool = read_class_folders(root, classes=CLASSES)
    try:
        kept, drawn = stratified_split(pool.labels, dict(enumerate(TEST_COUNTS.values())), split_seed, classes=CLASSES)
    except DataError as error:
        raise DataError(
            f"data.root={root}: {error}\nThe whole set has 3,670 images; for a part of it use data=folder "
            f"data.root={root}."
        ) from error
    return Source(CLASSES, pool.select(kept), test=pool.select(drawn))
