"""How the cost of a training step grows: with the side of the images, the size of the batch, the number of classes.

    python -m benchmarks.growth                    VGG11 on pictures of noise, some minutes
    python -m benchmarks.growth --model vgg16

Each line is the best of three runs of Graft, all layers training, each the mean of all steps but the first. Beside it
what proportion (to pixels, to images, to none) would make of the first line of its table.
"""

import argparse
import logging
from typing import Any

from benchmarks.common import noise, training
from benchmarks.training_step import by_graft
from graft.data.splits import Splits
from graft.system.device import choose_device
from graft.tasks.trainer import silence_lightning

SIDES = (64, 96, 128, 192, 256)
BATCHES = (4, 8, 16, 32)
CLASSES = (2, 100, 1_000, 10_000)
STEPS, REPEATS = 4, 3


def seconds(model: str, side: int, batch_size: int, classes: int) -> float:
    """Of a training step."""
    config = training(model, side, batch_size, "review=none")
    device, few = choose_device(config.trainer), noise(2, side)
    names = tuple(f"class {number}" for number in range(classes))
    splits = Splits(names, noise(batch_size * (STEPS + 1), side), few, few)
    return min(by_graft(config, splits, device) for _ in range(REPEATS))


def table(title: str, lines: list[tuple[str, dict[str, Any], float]]) -> None:
    """Print a line for each (name, what it measures, how many times the first one's work it is)."""
    print(title)
    first = None
    for name, settings, times in lines:
        took = seconds(**settings)
        first = first or took
        print(f"  {name:>14}  {1000 * took:8.1f} ms  {1000 * first * times:8.1f} ms in proportion", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--side", type=int, default=128, help="of the images, where it does not vary")
    parser.add_argument("--batch-size", type=int, default=8, help="where it does not vary")
    options = parser.parse_args()
    silence_lightning()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    usual = {"model": options.model, "side": options.side, "batch_size": options.batch_size, "classes": 2}
    table(
        f"{options.model}, batches of {options.batch_size}, by the side of the images",
        [(f"{side} pixels", usual | {"side": side}, (side / SIDES[0]) ** 2) for side in SIDES],
    )
    table(
        f"{options.model}, {options.side} pixels, by the size of the batch",
        [(f"{size} images", usual | {"batch_size": size}, size / BATCHES[0]) for size in BATCHES],
    )
    table(
        f"{options.model}, {options.side} pixels, batches of {options.batch_size}, by the number of classes",
        [(f"{count:,} classes", usual | {"classes": count}, 1.0) for count in CLASSES],
    )


if __name__ == "__main__":
    main()
