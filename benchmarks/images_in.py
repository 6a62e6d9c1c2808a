"""How fast images come in: Graft's loaders against a DataLoader of torchvision's PIL transforms, on the same cores.

    python -m benchmarks.images_in                           CIFAR-10's size and augmentation, on noise
    python -m benchmarks.images_in --data DATASETS           ants and bees too: photographs, random crops to 224 pixels
    python -m benchmarks.images_in --photographs 64          photographs of 12 megapixels, made from noise

The plain loader is that of the notebooks: worker processes that decode with PIL, crop, flip, make a normalised fp32
tensor. Graft's gives uint8 batches; its normalisation, which belongs to the device, is added to its time. Both pass
over the images `--epochs` times, shuffled and augmented, without training; Graft's first epoch, in which it decodes
what it holds in memory, is in its time.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.common import noise
from benchmarks.plain import Pictures, train_steps
from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.images import ImageSet
from graft.data.loading import load_splits
from graft.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from graft.data.splits import Splits
from graft.models.normalise import Normalise
from graft.system.cpu import available_cores


def plain(images: ImageSet, preprocessing: Preprocessing, augment: Augment, batch_size: int, epochs: int) -> float:
    """Images a second of the notebooks' loader, with a worker process for each core."""
    dataset = Pictures(images, train_steps(preprocessing, augment), preprocessing)
    started, count = time.perf_counter(), 0
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=available_cores(), persistent_workers=True)
    for _ in range(epochs):
        for batch, _ in loader:
            count += len(batch)
    return count / (time.perf_counter() - started)


def graft(images: ImageSet, preprocessing: Preprocessing, augment: Augment, batch_size: int, epochs: int) -> float:
    """Images a second of Graft's loader, normalised."""
    normalise = Normalise(preprocessing)
    started, count = time.perf_counter(), 0
    data = ImageDataModule(
        Splits(("one", "other"), images, images.select([0, 1]), images.select([0, 1])),
        preprocessing,
        augment,
        batch_size=batch_size,
        seed=0,
    )
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            count += len(normalise(batch.images))
    return count / (time.perf_counter() - started)


def compare(
    title: str,
    images: ImageSet,
    preprocessing: Preprocessing,
    augment: Augment,
    batch_size: int,
    options: argparse.Namespace,
) -> None:
    """Print both rates, pair by pair, and the median ratio."""
    print(
        f"{title}: {len(images):,} images, {options.epochs} epochs, batches of {batch_size}, {available_cores()} cores"
    )
    ratios = []
    for pair in range(1, options.pairs + 1):
        one = plain(images, preprocessing, augment, batch_size, options.epochs)
        other = graft(images, preprocessing, augment, batch_size, options.epochs)
        ratios.append(other / one)
        print(
            f"pair {pair}: plain {one:,.0f} images/s, Graft {other:,.0f} images/s, ratio {ratios[-1]:.1f}", flush=True
        )
    print(f"median ratio of {len(ratios)} pairs: {statistics.median(ratios):.1f}\n")


def photographs(folder: Path, count: int) -> ImageSet:
    """JPEGs of 4,000 by 3,000 pixels with the detail of real ones: noise at several scales."""
    generator, paths = np.random.RandomState(0), []
    for index in range(count):
        layers = [
            Image.fromarray(generator.randint(0, 256, (3000 // scale, 4000 // scale, 3), dtype=np.uint8)).resize(
                (4000, 3000)
            )
            for scale in (500, 100, 20)
        ]
        paths.append(folder / f"{index}.jpg")
        Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.2).save(paths[-1], quality=90)
    return ImageSet([path.name for path in paths], np.arange(count) % 2, paths=paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets: measures ants and bees too")
    parser.add_argument("--photographs", type=int, default=0, metavar="N", help="measures N large photographs too")
    parser.add_argument("--images", type=int, default=20_000, help="of CIFAR-10's size")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="4,000 images, two epochs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs = 4_000, 2
    torch.manual_seed(0)
    shift = Augment(random_crop_padding=4, horizontal_flip=0.5)
    compare("CIFAR-10's size", noise(options.images, 32), Preprocessing(32, 32), shift, 512, options)
    imagenet = Preprocessing(224, 256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    crops = Augment(random_resized_crop={}, horizontal_flip=0.5)
    if options.data:
        splits = load_splits("hymenoptera", root=options.data / "hymenoptera_data", seed=0, download=False)
        compare("ants and bees", splits.train, imagenet, crops, 8, options)
    if options.photographs:
        with tempfile.TemporaryDirectory() as folder:
            gentle = Augment(random_resized_crop={"scale": (0.35, 1.0)}, horizontal_flip=0.5)
            compare("photographs", photographs(Path(folder), options.photographs), imagenet, gentle, 8, options)


if __name__ == "__main__":
    main()
