"""Files that would run code when unpickled are refused by every command, and nothing is executed."""

import functools
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK
from torch import nn

import graft
from graft.errors import DataError, GraftError, TrainingError, WeightsError
from graft.learning.checkpoints import read_checkpoint
from graft.models import build_network
from graft.models.recipe import Recipe
from graft.models.weights import load_weights
from graft.models.weights.reading import RUN_CODE_OF, read_file
from graft.review.record import read_record


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class HidesIt(Calls):
    """Pickles as a harmless object with the call in its state."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"hidden": Calls(*self.call[:1], *self.call[1])}


TRAPS: dict[str, Callable[[str], Any]] = {
    "a command": lambda mark: Calls(os.system, f"touch '{mark}'"),
    "a function of os": lambda mark: Calls(os.mkdir, mark),
    "eval": lambda mark: Calls(eval, f"open({mark!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({mark!r}, 'w')"),
    "a partial": lambda mark: Calls(map, functools.partial(os.mkdir), [mark]),
    "an import": lambda mark: Calls(__import__, "this"),
    "torch's own loader": lambda mark: Calls(torch.hub.load, mark, "model"),
    "within a call": lambda mark: Calls(getattr, Calls(__import__, "os"), "mkdir"),
    "hidden in a state": lambda mark: HidesIt(os.mkdir, mark),
}

WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda content, file: torch.save(content, file),
    "legacy": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    "plain, protocol 2": lambda content, file: file.write_bytes(pickle.dumps(content, 2)) and None,
    "plain, protocol 4": lambda content, file: file.write_bytes(pickle.dumps(content, 4)) and None,
}


@pytest.fixture(params=TRAPS)
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A pickle's content with weights, what a checkpoint of ours says of itself, and the trap."""
    return {
        "state_dict": {"a": torch.zeros(1)},
        "graft": {"classes": []},
        "x": TRAPS[request.param](str(tmp_path / "mark")),
    }


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_and_checkpoints_that_would_run_code_are_refused_by_name(
    writer: str, trap: Any, tmp_path: Path
) -> None:
    file = tmp_path / "trap.ckpt"
    WRITERS[writer](trap, file)
    with pytest.raises(WeightsError, match=r"trap\.ckpt: (refused|cannot be read)"):
        read_file(file)
    with pytest.raises(TrainingError, match=r"trap\.ckpt: "):
        read_checkpoint(file)
    assert [path.name for path in tmp_path.iterdir()] == ["trap.ckpt"]


@pytest.mark.parametrize("words", ["resume={}", "model.weights={}", "resume=auto"])
def test_no_command_executes_malicious_weights(words: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "graft": {}, "x": TRAPS["a function of os"](str(tmp_path / "mark"))}, file)
    with pytest.raises(GraftError, match=r"last\.ckpt"):
        graft.train(*QUICK, words.format(file), folder=tmp_path / "run", echo=False)
    assert not (tmp_path / "mark").exists()


def test_a_review_record_loads_plain_arrays_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "review.npz", images=np.array([Calls(os.mkdir, str(tmp_path / "mark"))], dtype=object))
    with pytest.raises(DataError):
        read_record(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_within_an_archive_within_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w") as archive:
        archive.writestr("../../out", b"x")
    with pytest.raises(TrainingError, match=r"last\.ckpt"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


RECIPE = Recipe("vgg_custom", table=(8, "M"), classifier="pooled", input_size=32)


def test_an_old_file_of_a_trusted_author_is_read_when_that_very_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network: nn.Module = build_network(RECIPE, 3)
    old, other = tmp_path / "old.pth", tmp_path / "other.pth"
    for file in (old, other):
        torch.save({"epoch": 3, "model": network}, file)
    with pytest.raises(WeightsError, match=rf"old\.pth: refused(?s:.*){RUN_CODE_OF}={old}"):
        load_weights(build_network(RECIPE, 3), RECIPE, str(old))
    monkeypatch.setenv(RUN_CODE_OF, str(old))
    fresh = build_network(RECIPE, 3)
    assert not load_weights(fresh, RECIPE, str(old), keep_head=True).random
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in network.state_dict().items())
    assert "the code in this file is run" in caplog.text
    with pytest.raises(WeightsError, match=r"other\.pth: refused"):
        load_weights(build_network(RECIPE, 3), RECIPE, str(other))
