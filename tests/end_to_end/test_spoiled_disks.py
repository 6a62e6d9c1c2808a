"""Runs on a disk that is full or has flipped bits."""

import os
import struct
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from commands import QUICK, command, train
from hydra import compose, initialize_config_dir

import graft
from graft.cli import explain
from graft.config import conf_dir
from graft.config.registration import register
from graft.tasks.export import export
from graft.tasks.predict import main as predict

SMALL = (*QUICK, "trainer.baseline=false", "review=none", "logger.tensorboard=false")


def test_a_run_resumes_from_the_previous_checkpoint_if_the_last_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "scheduler=none", "trainer.max_epochs=3")
    whole = graft.train(*words, folder=tmp_path / "whole")
    part = graft.train(*words, "trainer.max_epochs=2", folder=tmp_path / "part")
    # as if it had been killed after its last epoch, and a bit on the disk had then flipped
    last = part.folder / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("previous.ckpt"))
    content = torch.load(whole.folder / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content, last)
    flip_bit_of_largest_tensor(last)
    resumed = graft.train(*words, "resume=auto", folder=part.folder)
    note_start = "last.ckpt was damaged (the checksum of last/data/"
    assert f"note  {note_start}" in capsys.readouterr().out
    assert any(note.startswith(note_start) for note in resumed.summary["notes"])
    after = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], values) for name, values in content["state_dict"].items())
    assert resumed.metrics == whole.metrics


def flip_bit_of_largest_tensor(file: Path) -> None:
    """Flip a bit of a tensor's data; the padding between the records of the archive has no checksum."""
    with ZipFile(file) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(file.read_bytes())
    lengths = content[record.header_offset + 26 : record.header_offset + 30]  # of name and extra field
    start = record.header_offset + 30 + sum(struct.unpack("<HH", lengths))
    content[start + record.file_size // 2] ^= 8
    file.write_bytes(content)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_is_reported(small_disk: Path) -> None:
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


def fill_up(disk: Path) -> None:
    """Leave 8 kB free."""
    usage = os.statvfs(disk)
    (disk / "fill").write_bytes(bytes(usage.f_bavail * usage.f_frsize - 8192))


@pytest.mark.parametrize("form", ["onnx", "torch_export", "state_dict"])
def test_an_export_to_a_full_disk_reports_the_way_out_and_leaves_no_files(
    form: str, digits_run: Path, small_disk: Path
) -> None:
    fill_up(small_disk)
    register()
    with initialize_config_dir(str(conf_dir())):
        config = compose("export", [f"checkpoint={digits_run}", f"format={form}", f"folder={small_disk}/out"])
    with pytest.raises(Exception) as raised:  # noqa: PT011
        export(config)
    explanation = explain(raised.value, "export")
    assert explanation is not None
    assert "No space left on device" in explanation
    assert "resume" not in explanation
    assert not list((small_disk / "out").glob("*"))


def test_predictions_to_a_full_disk_report_the_way_out_and_leave_no_files(digits_run: Path, small_disk: Path) -> None:
    from graft.data.loading import load_splits

    images = load_splits("digits", root=None, seed=0).test
    for number in range(200):
        images.load(0).save(small_disk / f"{number}{'x' * 100}.png")
    fill_up(small_disk)
    register()
    with initialize_config_dir(str(conf_dir())):
        words = [f"checkpoint={digits_run}", f"source={small_disk}", f"output={small_disk}/out.csv", "topk=10"]
        config = compose("predict", words)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        predict(config)
    explanation = explain(raised.value, "predict")
    assert explanation == (
        f"{small_disk}/out.csv: cannot be written (No space left on device).\nMake room; then run the command again.\n"
    )
    assert {file.suffix for file in small_disk.iterdir()} == {".png", ""}
