"""Whole runs of Graft against the plain loop of the notebooks, on the same images, with the accuracy of both.

    python -m benchmarks.whole_run --quick            seconds: vgg_mini recognises faces
    python -m benchmarks.whole_run --data DATASETS    last layer of VGG16 on ants and bees, 15 epochs, no augmentation
    python -m benchmarks.whole_run --data DATASETS --weights FILE --crops --views 4    random crops, four views in turn
    python -m benchmarks.whole_run --data DATASETS --plain-epochs 1    the plain loop for one epoch, scaled to all
    python -m benchmarks.whole_run --data DATASETS --strategy finetune --epochs 2 --crops    every layer

strategy=feature_extract trains only the last layer (freeze=backbone) on features that are computed once, into an empty
cache each time. The plain loop computes in fp32, Graft in what this machine does best; both have the same learning
rates and validate after every epoch. Both times begin with building the network and end with the last validation;
Graft's includes computing the features and writing the checkpoints.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import composed
from benchmarks.plain import CPU, Timed, train_plainly
from graft.data.splits import Splits
from graft.models import build_network
from graft.models.configured import recipe_of
from graft.models.weights import load_weights
from graft.review.training_review import RunChoices
from graft.tasks import fit
from graft.tasks.build import augment_of, resolve_preprocessing
from graft.tasks.data import open_data
from graft.transfer import plan_transfer

QUICK = {"model": "vgg_mini", "set": "faces", "weights": "bundled", "lr": 0.01, "batch_size": 16, "val_fraction": 0}


def configuration(arguments: argparse.Namespace) -> Any:
    """What both train, as `graft train` would compose it."""
    once = arguments.strategy == "feature_extract"
    overrides = {
        "model": arguments.model,
        "data": arguments.set,
        "model.weights": arguments.weights,
        "strategy": arguments.strategy,
        "freeze": "backbone" if once else "none",
        "augment": "imagenet" if arguments.crops else "none",
        "cache": "features" if once else "none",
        "cache.views": arguments.views if once and arguments.crops else "null",
        "optimizer.lr": arguments.lr,
        "scheduler": "none",
        "data.batch_size": arguments.batch_size,
        "data.val_fraction": arguments.val_fraction,
        "trainer.max_epochs": arguments.epochs,
        "callbacks.checkpoint": "last",
        "paths.data": arguments.data,
    }
    return composed(*(f"{key}={value}" for key, value in overrides.items()))


def plain(config: Any, splits: Splits, epochs: int, workers: int, device: torch.device = CPU) -> Timed:
    """The notebooks' loop, for `epochs` epochs."""
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    recipe = recipe_of(config)
    network = build_network(recipe, len(splits.classes))
    weights = load_weights(network, recipe, config.model.weights)
    plan = plan_transfer(network, config.strategy, config.freeze, config.optimizer)
    timed = train_plainly(
        network,
        splits,
        resolve_preprocessing(config, weights, splits, None)[0],
        augment_of(config),
        plan=plan,
        epochs=epochs,
        batch_size=config.data.batch_size,
        momentum=config.optimizer.momentum,
        workers=workers,
        device=device,
    )
    once = time.perf_counter() - started - timed.seconds
    return Timed(once + timed.seconds * config.trainer.max_epochs / epochs, timed.accuracy)


def by_graft(config: Any, splits: Splits) -> Timed:
    """Graft's run, in a new folder with nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        config.paths.cache = f"{folder}/cache"
        started = time.perf_counter()
        done = fit.one_process(config, splits, fit.choose_device(config.trainer), RunChoices({}, ()), Path(folder))
        seconds = time.perf_counter() - started
    for entry in (done["cache"] or {"features": ()})["features"]:
        print(
            f"    {entry['part']:5}  {entry['cut']}  {entry['views']} × {entry['bytes'] // entry['views']:,} bytes  "
            f"{entry['seconds']:.1f} s"
        )
    return Timed(seconds, done["metrics"]["val/acc"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--set", default="hymenoptera", help="the data set, as in data=")
    parser.add_argument("--data", default="data", help="folder of data sets, as in paths.data=")
    parser.add_argument("--weights", default="default", help="as in model.weights=")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--plain-epochs", type=int, help="epochs of the plain loop, scaled to --epochs")
    parser.add_argument("--strategy", default="feature_extract", help="or finetune, scratch")
    parser.add_argument("--crops", action="store_true", help="random crops and flips; without: no augmentation")
    parser.add_argument("--views", type=int, default=4, help="with --crops, of which features are kept")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--val-fraction", type=float, default=0.1, help="where a set has no validation split")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoaders")
    parser.add_argument("--quick", action="store_true", help="vgg_mini on faces, in seconds")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    config = configuration(arguments)
    splits = open_data(config)
    epochs = min(arguments.plain_epochs or arguments.epochs, arguments.epochs)
    precision = fit.choose_device(config.trainer).precision
    print(
        f"{arguments.model} on {arguments.set}: {len(splits.train)} training and {len(splits.val)} validation images, "
        f"{arguments.strategy}, {arguments.epochs} epochs, {config.cache.views or 'no'} views kept, "
        f"{'random crops' if arguments.crops else 'no augmentation'}, {torch.get_num_threads()} threads, {precision}"
    )
    ratios = []
    for pair in range(arguments.pairs):
        one, other = plain(config, splits, epochs, arguments.workers), by_graft(config, splits)
        ratios.append(one.seconds / other.seconds)
        print(
            f"pair {pair + 1}: plain fp32 {one.seconds:.1f} s (accuracy {one.accuracy:.4f}), "
            f"Graft {other.seconds:.1f} s (accuracy {other.accuracy:.4f}), ratio {ratios[-1]:.1f}",
            flush=True,
        )
    print(f"median ratio of {len(ratios)} pairs: {statistics.median(ratios):.1f}")
    if epochs < arguments.epochs:
        print(
            f"The plain loop ran for {epochs} of {arguments.epochs} epochs; its time is scaled linearly to all, its "
            f"accuracy is that after epoch {epochs}."
        )


if __name__ == "__main__":
    main()
