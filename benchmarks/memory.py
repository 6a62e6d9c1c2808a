"""Peak memory: of training against a plain loop, and of computing cached features.

    python -m benchmarks.memory                          VGG16 at batch 32 on the CPU, two steps each
    python -m benchmarks.memory --model vgg_mini --size 32 --batch-size 256
    python -m benchmarks.memory --features 2000          the cache's peak for 2,000 and 4,000 images: it must not grow

Each runs in a separate process, and the figure is its peak (on a GPU: the peak of its allocator). What
is in memory before the first step, imports and images, is subtracted.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.common import composed, noise, training
from benchmarks.training_step import BEST, batches_of_noise, by_graft, by_loop
from graft.data.splits import Splits
from graft.models.normalise import Normalise
from graft.system.device import choose_device
from graft.tasks import fit
from graft.tasks.build import assemble
from graft.tasks.trainer import silence_lightning

MIB = 2**20


def peak_mib() -> float:
    """Peak memory of this process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def growth() -> Iterator[None]:
    """Print by how much the block has raised the peak."""
    before = peak_mib()
    yield
    print(f"{peak_mib() - before:.0f}")


def peak(way: str, model: str, size: int, batch_size: int) -> None:
    """The peak of two steps of `way`: "hand" (bf16 autocast, channels-last, fused SGD) or "graft"."""
    config = training(model, size, batch_size)
    silence_lightning()
    device = choose_device(config.trainer)
    splits = batches_of_noise(config, 2)
    with growth(), tempfile.TemporaryDirectory() as folder:
        if way == "graft":
            by_graft(config, splits, device)
        else:
            experiment = assemble(config, splits, Path(folder))
            normalise = Normalise(experiment.module.preprocessing)
            loader = experiment.data.train_dataloader()
            batches = ((normalise(batch.images), batch.labels) for batch in loader)
            by_loop(experiment.module.network, lambda: batches, device.root, BEST)


def features(count: int) -> None:
    """The peak of a run that computes and uses the features of `count` images of 64 pixels."""
    config = composed(
        "model=vgg_mini", "model.weights=bundled", "strategy=feature_extract", "data=cifar10", "augment=none",
        "cache=features", "data.batch_size=32", "data.preprocess.input_size=64", "data.preprocess.resize_size=64",
        "data.resident_gb=0", "trainer.max_epochs=1", "callbacks.checkpoint=last",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config.paths.cache = f"{folder}/cache"
        images = noise(count, 64)
        few = images.select(range(8))
        with growth():
            splits = Splits(("one", "other"), images, few, few)
            fit.one_process(config, splits, choose_device(config.trainer), fit.RunChoices({}, ()), Path(folder))


def in_new_process(*words: object) -> float:
    """MiB that the process `python -m benchmarks.memory --child WORDS` prints last."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--features", type=int, metavar="N", help="the cache's peak for N and 2 N images instead")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *rest = options.child
        return features(int(rest[0])) if what == "features" else peak(what, rest[0], int(rest[1]), int(rest[2]))
    if options.features:
        one, two = (in_new_process("features", count) for count in (options.features, 2 * options.features))
        print(
            f"cached features of {options.features:,} images: {one:.0f} MiB; of {2 * options.features:,}: {two:.0f} MiB"
        )
        return None
    hand, graft = (in_new_process(way, options.model, options.size, options.batch_size) for way in ("hand", "graft"))
    print(
        f"{options.model}, {options.size} pixels, batches of {options.batch_size}: by hand {hand:.0f} MiB, "
        f"Graft {graft:.0f} MiB, ratio {graft / hand:.3f}"
    )
    return None


if __name__ == "__main__":
    main()
