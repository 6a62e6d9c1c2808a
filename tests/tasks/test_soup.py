"""Soups: the mean of weights, chosen on validation images, in a folder that the other commands take as a run's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command, succeeded

from graft.errors import ConfigError, TrainingError
from graft.learning.averaging import mean_of, measure_statistics
from graft.learning.restore import from_checkpoint
from graft.tasks.soup import ingredients


@pytest.fixture(scope="module")
def kitchen(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints a, b and bad: the run's weights plus a step, minus the same step, and without a head."""
    folder = tmp_path_factory.mktemp("kitchen")
    best = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    steps = {
        name: torch.randn(tensor.shape, generator=generator) * tensor.std() * 0.2
        for name, tensor in best["state_dict"].items()
        if name.endswith("weight") and tensor.ndim > 1
    }
    for name, sign in (("a", 1), ("b", -1), ("bad", 0)):
        weights = {key: tensor + sign * steps.get(key, torch.zeros(())) for key, tensor in best["state_dict"].items()}
        if name == "bad":
            head = list(steps)[-1]
            weights[head] = -10 * weights[head]
        run = folder / name / "checkpoints"
        run.mkdir(parents=True)
        torch.save(best | {"state_dict": weights}, run / "best.ckpt")
        shutil.copy(digits_run / "summary.json", folder / name)
    return folder


def soup(folder: Path, *words: str) -> Any:
    done = succeeded(command(folder, "-m", "graft.cli", "soup", *words, f"hydra.run.dir={folder}"))
    return done, json.loads((folder / "summary.json").read_text())


def test_a_greedy_soup_leaves_out_what_makes_it_worse_and_is_a_run_for_the_other_commands(
    kitchen: Path, digits_run: Path, tmp_path: Path
) -> None:
    _, summary = soup(tmp_path / "soup", f"runs={kitchen}", "optimized_metric=val/loss")
    steps = {Path(step["file"]).parts[-3]: step for step in summary["soup"]["steps"]}
    assert {name: step["kept"] for name, step in steps.items()} == {"a": True, "b": True, "bad": False}
    alone = [step["alone"] for step in summary["soup"]["steps"]]
    assert alone == sorted(alone), "the best first"
    run = json.loads((digits_run / "summary.json").read_text())
    assert summary["metrics"]["val/loss"] == pytest.approx(run["metrics"]["val/loss"], rel=1e-4), "the steps cancel"
    assert summary["metrics"]["test/loss"] == pytest.approx(run["metrics"]["test/loss"], rel=1e-4)
    assert summary["soup"]["test"]["best alone"]["test/loss"] > summary["soup"]["test"]["soup"]["test/loss"]

    evaluated = command(tmp_path / "evaluated", "-m", "graft.cli", "evaluate", f"checkpoint={tmp_path / 'soup'}",
                        f"hydra.run.dir={tmp_path / 'evaluated'}")  # fmt: skip
    assert "equal to the run's metrics" in succeeded(evaluated).out
    refused = command(tmp_path / "more", "-m", "graft.cli", "train", "data=digits",
                      "model=vgg_mini", f"resume={tmp_path / 'soup' / 'checkpoints' / 'best.ckpt'}")  # fmt: skip
    assert refused.code == 1
    assert f"model.weights={tmp_path / 'soup' / 'checkpoints' / 'best.ckpt'}" in refused.err


def test_a_uniform_soup_is_the_mean_of_all(kitchen: Path, tmp_path: Path) -> None:
    words = (str(kitchen / "a"), str(kitchen / "bad"), "method=uniform", "test=false")
    _, summary = soup(tmp_path / "soup", *words)
    assert all(step["kept"] for step in summary["soup"]["steps"])
    assert not any(name.startswith("test/") for name in summary["metrics"])
    files = [kitchen / "a", kitchen / "bad", tmp_path / "soup"]
    a, bad, mean = (torch.load(file / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for file in files)
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (a[name] + bad[name]) / 2)


def test_batch_norm_is_measured_again_where_the_statistics_differ(digits_run: Path) -> None:
    from graft.learning.inference import Inference
    from graft.system.device import Device

    restored = from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    inference = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False)
    inference.network = network.eval()
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    measure_statistics(inference, ["1"], images.split(4))
    with torch.no_grad():
        expected = torch.stack([network[0](inference.normalise(half)).mean((0, 2, 3)) for half in images.split(4)])
    torch.testing.assert_close(network[1].running_mean, expected.mean(0))
    assert not network[1].training
    assert network[1].momentum == 0.1


def test_the_mean_keeps_equal_tensors_and_counters_to_the_bit() -> None:
    states = [
        {"w": torch.tensor([0.1, value]), "same": torch.tensor(0.1), "n": torch.tensor(3)} for value in (1.0, 2.0)
    ]
    mean = mean_of(states)
    assert torch.equal(mean["w"], torch.tensor([0.1, 1.5]))
    assert torch.equal(mean["same"], states[0]["same"])
    assert mean["n"] == 3


def test_unlike_checkpoints_and_too_few_are_refused_by_name(kitchen: Path, digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to average"):
        ingredients([str(kitchen / "a")])
    with pytest.raises(TrainingError, match="no checkpoint"):
        ingredients([str(tmp_path)])
    best = torch.load(kitchen / "a" / "checkpoints" / "best.ckpt", weights_only=True)
    other = best | {"graft": best["graft"] | {"preprocessing": best["graft"]["preprocessing"] | {"resize_size": 99}}}
    renamed = best | {"graft": best["graft"] | {"classes": best["graft"]["classes"][::-1]}}
    from graft.tasks.souping import read_ingredients

    for name, content, message in (("other", other, "resize_size"), ("renamed", renamed, "in another order")):
        file = tmp_path / f"{name}.ckpt"
        torch.save(content, file)
        with pytest.raises(ConfigError, match=message):
            read_ingredients([kitchen / "a" / "checkpoints" / "best.ckpt", file], [])
