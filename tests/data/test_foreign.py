"""A user's LightningDataModule trains, resumes and is evaluated like Graft's own data."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY
from data_parts import Digits

import graft
from graft.data.foreign import ModuleLoader, build_module, describe, to_batch
from graft.data.sources import check_source, is_data_module
from graft.errors import ConfigError, DataError
from graft.learning.checkpoints import read_checkpoint

MODULE = ("data=target", "data._target_=data_parts.Digits", "data.batch_size=32", "seed=3", "scheduler=none")
WORDS = (*(word for word in TINY if not word.startswith(("data", "augment"))), *MODULE, "review=default")


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def test_a_data_module_trains_resumes_to_the_bit_and_is_evaluated(tmp_path: Path) -> None:
    whole = graft.train(*WORDS, "trainer.max_epochs=2", folder=tmp_path / "whole", echo=False)
    assert whole.summary["classes"] == [str(digit) for digit in range(10)]
    assert whole.summary["config"]["data"] == "Digits"
    assert any("augment" in note for note in whole.summary["notes"])
    graft.train(*WORDS, "trainer.max_epochs=1", folder=tmp_path / "parts", echo=False)
    graft.train(*WORDS, "trainer.max_epochs=2", "resume=auto", folder=tmp_path / "parts", echo=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    with pytest.raises(ConfigError, match=r"trust=\[data_parts\]"):
        evaluated(tmp_path)
    figures = evaluated(tmp_path, "trust=[data_parts]")
    assert figures["data"]["name"] == "Digits"
    assert 0 <= figures["metrics"]["test/acc"] <= 1


def evaluated(folder: Path, *words: str) -> dict[str, Any]:
    from graft.config.commands import EvaluateConfig
    from graft.config.registration import typed
    from graft.learning.checkpoints import checkpoint_files
    from graft.tasks import evaluation

    config = typed(graft.compose(f"checkpoint={folder}/whole", *words, task="evaluate").config, EvaluateConfig)
    (folder / "evaluated").mkdir(exist_ok=True)
    evaluation.run(config, checkpoint_files(config.checkpoint), (), folder / "evaluated")
    result: dict[str, Any] = json.loads((folder / "evaluated" / "evaluation.json").read_text())
    return result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.shots=5"], "data.shots=5 and data._target_=data_parts.Digits disagree"),
        (["data.channels=5"], "data.channels=5 and data._target_=data_parts.Digits disagree"),
        (["data.batch_size=auto"], "data.batch_size=auto and data._target_=data_parts.Digits disagree"),
        (["data.preprocess.fit=crop"], "data.preprocess.fit=crop: does not change the images"),
        (["data.preprocess.input_size=64"], "are 32 x 32 pixels"),
        (["data.cout=5"], "data.cout=5: data_parts.Digits has no such argument. Did you mean count"),
        (["data._target_=data_parts.Nameless"], "does not say which classes there are"),
    ],
)
def test_options_that_a_data_module_cannot_support_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as raised:
        graft.train(*WORDS, *words, folder=tmp_path / "run", echo=False)
    assert message in str(raised.value)


def loader(**arguments: Any) -> ModuleLoader:
    module = build_module("data_parts.Digits", arguments, {"seed": 0, "batch_size": 16})
    return ModuleLoader(module.train_dataloader(), "data._target_=data_parts.Digits", 10, 0, in_order=False)


def test_batches_depend_on_seed_epoch_and_position_alone() -> None:
    one, other = loader(), loader()
    first = [batch.images.clone() for batch in one]
    torch.manual_seed(99)
    assert all(torch.equal(*pair) for pair in zip(first, (batch.images for batch in other), strict=True))
    other.load_state_dict({"epoch": 0, "batches": 4})
    rest = [batch.images for batch in other]
    assert len(rest) == len(first) - 4
    assert all(torch.equal(*pair) for pair in zip(first[4:], rest, strict=True))
    other.set_epoch(1)
    assert not torch.equal(next(iter(other)).images, first[0])


@pytest.mark.parametrize("mappings", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_batches_are_pairs_or_mappings_of_uint8_or_floats(floats: bool, mappings: bool) -> None:
    arguments = {"floats": floats, "mappings": mappings, "test": False}
    module = build_module("data_parts.Digits", arguments, {"seed": 0, "batch_size": 8})
    splits = describe(module, "data_parts.Digits", arguments)
    assert (splits.input_size, splits.uint8, len(splits.train)) == (32, not floats, 160)
    assert splits.test is splits.val
    assert any("serve as test" in note for note in splits.notes)
    assert any("floating-point" in note for note in splits.notes) == floats


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2), "a loader yielded a Tensor"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2)), r"labels \[2\] \(torch.float32\)"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.int16), torch.zeros(2, dtype=torch.int64)), "images of torch.int16"),
        ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 10])), "labels 0 to 10 for 10 classes"),
    ],
)
def test_a_batch_of_another_form_is_described(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_batch(batch, "data._target_=x.Y", classes=10)


def test_hooks_that_are_not_called_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "on_after_batch_transfer", lambda self, batch, index: batch, raising=False)
    with pytest.raises(ConfigError, match="overrides on_after_batch_transfer"):
        build_module("data_parts.Digits", {}, {"seed": 0})


def test_a_class_with_loaders_is_a_data_module_and_a_source_is_not() -> None:
    assert is_data_module("data_parts.Digits")
    assert not is_data_module("graft.data.sources.digits.load")
    with pytest.raises(ConfigError, match="Did you mean floats"):
        check_source("data_parts.Digits", {"float": True})
