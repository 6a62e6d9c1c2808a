"""A freeze policy, a view and a figure from a module outside of Graft, in a run that is killed and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import graft
from graft.learning.checkpoint_writing import ResumePoint

MODULE = '''
from matplotlib.figure import Figure


def alternating(stages, names, epoch, first):
    """Freeze the first stages always, the next in odd epochs."""
    frozen = stages[: first + epoch % 2]
    return {name for name in names if any(stage.holds(name) for stage in frozen)}


def rotated(images):
    return [images.rot90(1, (2, 3))]


def confidence(predictions, classes, bins=10):
    figure = Figure((3, 2), dpi=100)
    figure.subplots().hist(predictions.confidence, bins)
    return figure
'''
WORDS = (
    "model=vgg_mini", "model.weights=bundled", "data=digits", "augment=basic", "strategy=finetune",
    "strategy.batch_norm_statistics=update",
    "freeze._target_=own_parts.alternating", "freeze.first=1", "optimizer.lr=0.02", "trainer.max_epochs=3",
    "trainer.limit_train_batches=4", "trainer.limit_test_batches=2", "trainer.baseline=false",
    "callbacks.progress=none", "callbacks.checkpoint=last", "tta=true", "views.rotated._target_=own_parts.rotated",
    "review=none", "review.figures.confidence._target_=own_parts.confidence", "review.figures.confidence.bins=4",
)  # fmt: skip


class Killed(BaseException):
    """Ends a run as kill -9 does, as far as the disk is concerned."""


def train(folder: Path, *words: str) -> graft.FinishedRun:
    return graft.train(*WORDS, *words, folder=folder, echo=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, and one that was killed after its second epoch and resumed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        whole = train(folder / "whole")
        with pytest.MonkeyPatch.context() as killing:
            usual = ResumePoint.on_train_epoch_end

            def die(self: ResumePoint, trainer: Any, *others: Any) -> None:
                usual(self, trainer, *others)
                if trainer.current_epoch == 1:
                    raise Killed

            killing.setattr(ResumePoint, "on_train_epoch_end", die)
            killing.setattr(ResumePoint, "_is_due", lambda *_: True)
            with pytest.raises(Killed):
                train(folder / "resumed")
        killed = weights(folder / "resumed")
        return {"whole": whole, "killed": killed, "resumed": train(folder / "resumed", "resume=auto")}


def test_the_resumed_run_equals_the_uninterrupted_one(runs: dict[str, Any]) -> None:
    whole, resumed = weights(runs["whole"].folder), weights(runs["resumed"].folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert runs["whole"].metrics == runs["resumed"].metrics


def test_what_the_policy_freezes_is_bit_identical_with_its_batch_norm_and_nothing_else_is(runs: dict[str, Any]) -> None:
    from graft.models import Recipe, build_network
    from graft.models.weights import load_weights
    from graft.transfer import stages_of

    network = build_network(Recipe("vgg_mini"), 10)
    load_weights(network, Recipe("vgg_mini"), "bundled", classes=tuple("0123456789"))
    start, end = network.state_dict(), weights(runs["resumed"].folder)
    first, second = stages_of(network)[:2]
    names = [name for name, tensor in start.items() if tensor.is_floating_point()]
    assert any(first.holds(name) and "running" in name for name in names), "there is BatchNorm in the first stage"
    same = {name for name in names if torch.equal(start[name], end[f"network.{name}"])}
    assert same == {name for name in names if first.holds(name)}
    assert any(second.holds(name) for name in names)


def test_the_test_uses_the_custom_view_and_the_summary_names_it(runs: dict[str, Any]) -> None:
    assert runs["whole"].summary["views"] == ["identity", "hflip", "rotated"]


def test_the_custom_figure_is_in_tensorboard(runs: dict[str, Any]) -> None:
    events = EventAccumulator(str(runs["whole"].folder), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["visuals/confidence"]
    (figure,) = events.Images("visuals/confidence")
    assert (figure.width, figure.height) == (300, 200)
