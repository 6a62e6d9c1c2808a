"""`python -m graft.tasks.bundle RUN_FOLDER`: the best weights of a run as the package's bundled ones.

Half-precision safetensors; recipe, classes, preprocessing, seed, accuracy and versions in the metadata.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from graft.learning.checkpoints import read_checkpoint
from graft.system.files import safe_name
from graft.tasks.run import read_summary

BUNDLED = Path(__file__).resolve().parents[1] / "models" / "bundled"

MOST_STAGES = 10


def bundle(folder: Path, target: Path | None = None) -> Path:
    """Write the best checkpoint of the run in `folder` to `target` (default: the package's bundled weights)."""
    checkpoint = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    summary = read_summary(folder)
    made = checkpoint["graft"]
    name = made["recipe"]["name"]
    target = target or BUNDLED / f"{safe_name(name)}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = "network."
    tensors = {
        key.removeprefix(prefix): (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    stages = [made["config"]]
    # the runs whose weights this one started from, the first run first
    while (source := Path(stages[0]["model"]["weights"] or "")).is_file() and len(stages) < MOST_STAGES:
        stages.insert(0, read_checkpoint(source)["graft"]["config"])
    metadata = {
        "recipe": json.dumps(made["recipe"]),
        "classes": json.dumps(made["classes"]),
        "preprocessing": json.dumps(made["preprocessing"]),
        "training": json.dumps(stages),
        "data": json.dumps({key: summary["data"][key] for key in ("fingerprint", "notes")}),
        "seed": str(summary["seed"]),
        "test/acc": str(summary["metrics"]["test/acc"]),
        "versions": json.dumps(summary["versions"]),
    }
    save_file(tensors, target, metadata)
    return target


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    written = bundle(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(f"{written}  {written.stat().st_size / 1e6:.2f} MB")
