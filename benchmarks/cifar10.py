"""An epoch of CIFAR-10 and its validation: the notebook's loop, Graft on the same network, and `cifar10_speed`.

    python -m benchmarks.cifar10 --data DATASETS
    python -m benchmarks.cifar10 --data DATASETS --images 5000    a tenth of the training images

The notebook trains `vgg16_cifar` in batches of 512 without augmentation (experiment=cifar10_vgg16), in fp32 from a
DataLoader of PIL images. The three take turns; decoding the set once, which Graft does before its first epoch, counts.
The accuracies are those after this one epoch; what whole trainings reach is in docs/results.md.
"""

import argparse
import statistics
import sys
from pathlib import Path

from benchmarks.common import composed
from benchmarks.whole_run import by_graft, plain
from graft.data.images import ImageSet
from graft.data.splits import Splits
from graft.tasks.data import open_data

PRESETS = ("cifar10_vgg16", "cifar10_speed")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cifar10_speed"
"""The folder that `cifar10_speed` is from."""


def fewer(splits: Splits, count: int) -> Splits:
    """`count` training images, evenly over the set, and a fifth as many to validate on."""

    def some(images: ImageSet, count: int) -> ImageSet:
        return images.select(images.spread(count))

    val = some(splits.val, max(1, count // 5))
    return Splits(splits.classes, some(splits.train, count), val, val)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of data sets, as in paths.data=")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the notebook's DataLoaders")
    arguments = parser.parse_args()
    sys.path.append(str(EXAMPLE))
    same, speed = (
        composed(
            f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]", f"experiment={name}", f"paths.data={arguments.data}",
            "trainer.max_epochs=1", "trainer.limit_val_batches=1.0", "review=none",
        )
        for name in PRESETS
    )  # fmt: skip
    splits = fewer(open_data(same), arguments.images)
    ratios: dict[str, list[float]] = {name: [] for name in PRESETS}
    for pair in range(arguments.pairs):
        loop = plain(same, splits, 1, arguments.workers)
        print(f"pair {pair + 1}: the notebook {loop.seconds:.1f} s (accuracy {loop.accuracy:.4f})", flush=True)
        for name, config in zip(PRESETS, (same, speed), strict=True):
            run = by_graft(config, splits)
            ratios[name].append(loop.seconds / run.seconds)
            print(
                f"    {name} {run.seconds:.1f} s (accuracy {run.accuracy:.4f}), ratio {ratios[name][-1]:.1f}",
                flush=True,
            )
    for name, found in ratios.items():
        print(f"the notebook / {name}: median {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})")


if __name__ == "__main__":
    main()
