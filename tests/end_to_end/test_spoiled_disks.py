"""Whole runs whose disk fills up, or spoils what it keeps."""

from pathlib import Path

import pytest
import torch
from commands import QUICK, command, train

import graft

SMALL = (*QUICK, "trainer.baseline=false", "review=none", "logger.tensorboard=false")


def test_a_run_goes_on_from_the_checkpoint_before_a_spoiled_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "scheduler=none", "trainer.max_epochs=3")
    whole = graft.train(*words, folder=tmp_path / "whole")
    part = graft.train(*words, "trainer.max_epochs=2", folder=tmp_path / "part")
    # as if it had been killed after its last epoch, and the disk had then lost a bit
    last = part.folder / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("previous.ckpt"))
    content = torch.load(whole.folder / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content, last)
    spoiled = bytearray(last.read_bytes())
    spoiled[len(spoiled) // 2] ^= 8
    last.write_bytes(spoiled)
    resumed = graft.train(*words, "resume=auto", folder=part.folder)
    said = "last.ckpt was damaged (the checksum of last/data/"
    assert f"note  {said}" in capsys.readouterr().out
    assert any(note.startswith(said) for note in resumed.summary["notes"])
    after = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], values) for name, values in content["state_dict"].items())
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_keeps_its_last_checkpoint_and_says_so(small_disk: Path) -> None:
    run = train(small_disk / "run", *SMALL, "trainer.max_epochs=9")
    assert run.code == 1
    assert "the checkpoint cannot be written (No space left on device)" in run.err
    assert "resume=auto" in run.err
    assert "Traceback" not in run.err
    assert run.summary["status"] == "failed"
    kept = run.folder / "checkpoints"
    assert {file.name for file in kept.iterdir()} <= {"best.ckpt", "last.ckpt", "previous.ckpt"}
    for file in kept.iterdir():
        done = command(run.folder, "-m", "graft.cli", "evaluate", f"checkpoint={file}", timeout=120)
        assert done.code == 0, done.err
