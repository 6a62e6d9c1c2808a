"""L2-SP: pretrained weights decay towards their initial values, new layers towards 0."""

from pathlib import Path

import pytest
import torch
from commands import SMALL

import graft
from graft.errors import ConfigError, TrainingError

TWO_STEPS = (
    *(word for word in SMALL if not word.startswith("strategy=")), "strategy=finetune", "model.batch_norm=true",
    "optimizer=sgd", "optimizer.momentum=0", "scheduler=none", "augment=none", "trainer.max_epochs=1",
    "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.test=false", "trainer.baseline=false",
    "review=none", "callbacks.progress=none", "callbacks.checkpoint=last", "data.num_workers=0", "model.dropout=0",
    "optimizer.lr=0.1",
)  # fmt: skip


def state(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def test_pretrained_weights_are_pulled_back_and_the_new_head_decays(pretrained: Path, tmp_path: Path) -> None:
    file = tmp_path / "start.ckpt"
    file.write_bytes(pretrained.read_bytes())

    def trained(name: str, *words: str) -> dict[str, torch.Tensor]:
        run = graft.train(*TWO_STEPS, f"model.weights={file}", *words, folder=tmp_path / name, echo=False)
        assert run.checkpoint is not None
        return state(run.checkpoint)

    start = state(file)
    one_step = trained("one", "trainer.limit_train_batches=1", "optimizer.weight_decay=0")
    free = trained("free", "optimizer.weight_decay=0")
    pulled = trained("pulled", "optimizer.weight_decay=0", "strategy.l2_sp=0.5")
    key, rate = "network.features.0.weight", 0.1 * 0.1
    # the first step is that of a run without it; the second is pulled by 0.5 * (w1 - w0), at the group's own rate
    expected = free[key] - rate * 0.5 * (one_step[key] - start[key])
    torch.testing.assert_close(pulled[key], expected, rtol=0, atol=1e-7)

    words = ("trainer.limit_train_batches=1", "optimizer.weight_decay=0.3", "strategy.l2_sp=0.5")
    decayed = trained("decayed", *words)
    assert torch.equal(decayed[key], one_step[key]), "no decay towards 0, and nothing to pull in the first step"
    head = next(name for name in reversed(free) if name.endswith("weight"))
    assert decayed[head].norm() < one_step[head].norm()

    content = torch.load(file, weights_only=True)
    torch.save(content | {"state_dict": {name: tensor + 1 for name, tensor in content["state_dict"].items()}}, file)
    with pytest.raises(TrainingError, match="begin a new run"):
        trained("resumed", *words, "trainer.max_epochs=2", f"resume={tmp_path / 'decayed'}")


def test_it_needs_pretrained_weights() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.l2_sp"):
        graft.train(*TWO_STEPS, "strategy=scratch", "strategy.l2_sp=0.1", echo=False)
