"""The command line before a task begins: parsing, help, and mistakes reported without importing torch."""

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import command

from graft.cli import TASKS, explain
from graft.config import conf_dir
from graft.config.registration import SCHEMAS


def test_every_task_has_a_module_a_schema_and_a_configuration() -> None:
    package = Path(__file__).resolve().parents[1] / "src" / "graft" / "tasks"
    for task in TASKS:
        assert (package / f"{task}.py").is_file()
        assert (conf_dir() / f"{task}.yaml").is_file()
        assert task in SCHEMAS


PROBE = """
import sys
from graft.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stdout)
"""


@pytest.mark.parametrize(
    ("words", "answer"),
    {
        "evaluate --help": "tta",
        "predict --help": "source",
        "predict --cfg job model=vgg16": "vgg16",
        "evaluate": "checkpoint is not set",
        "evaluate checkpoint=nowhere": "checkpoint=nowhere",
        "evaluate checkpoint=nowhere split=tset": "Did you mean test",
        "evaluate checkpoint=nowhere views=[hflip]": "tta=true",
        "evaluate checkpoint=nowhere data.preprocess.fit=crop": "preprocess.fit=",
        "export --help": "preprocess",
        "export checkpoint=nowhere format=onx": "Did you mean onnx",
        "advise --cfg job data=flowers": "minutes: 10",
        "advise models=[vgg61]": "Did you mean vgg",
        "advise strategy=finetune": "this is what graft advise compares",
        "predict source=nowhere model=vgg16": "source=nowhere",
        "predict source=. model=vgg61": "Did you mean vgg",
    }.items(),
)
def test_help_and_mistakes_do_not_import_torch(words: str, answer: str, tmp_path: Path) -> None:
    done = command(tmp_path / "run", "-c", PROBE, *words.split())
    assert done.out.strip().endswith("False"), "torch was imported"
    assert answer in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "task", ["evaluate checkpoint=nowhere", "train data=digits model=vgg_mini model.weights=WEIGHTS"]
)
def test_a_mistake_found_within_the_task_prints_its_message_and_nothing_else(task: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    words = [word.replace("WEIGHTS", str(weights)) for word in task.split()]
    done = command(tmp_path / "run", "-m", "graft.cli", *words, f"hydra.run.dir={tmp_path / 'run'}")
    key = words[-1]
    assert done.code == 1
    assert key.partition("=")[2] in done.err.splitlines()[0]
    assert "Error executing job" not in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("task", TASKS)
def test_a_full_disk_is_explained_for_each_command(task: str) -> None:
    explanation = explain(OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.csv"), task)
    assert explanation is not None
    assert explanation.startswith("/runs/metrics.csv: cannot be written (No space left on device).\nMake room")
    assert ("resume=auto" in explanation) is (task == "train")
    assert explain(OSError(errno.EIO, "Input/output error")) is None


OUTPUTS = {
    "train": "hydra.run.dir=OUT data=digits model=vgg_mini strategy=scratch",
    "evaluate": "hydra.run.dir=OUT checkpoint=x.jpg",
    "lr_find": "hydra.run.dir=OUT data=digits model=vgg_mini strategy=scratch",
    "advise": "folder=OUT data=digits models=[vgg_mini]",
    "export": "folder=OUT checkpoint=x format=state_dict",
    "inspect": "folder=OUT data=digits",
    "pack": "output=OUT data=faces",
    "predict": "output=OUT/x.csv source=. model=vgg16",
    "compare": "output=OUT runs=.",
}
REASONS = ("Not a directory", "File name too long", "Read-only|Permission denied")


@pytest.mark.parametrize("task", OUTPUTS)
def test_outputs_that_cannot_be_written_are_named_without_a_stack_trace_or_torch(
    task: str, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "x.jpg").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for output, reason in zip(("file/run", "x" * 300, f"{small_disk}/run"), REASONS, strict=True):
        words = OUTPUTS[task].replace("OUT", output).split()
        done = command(tmp_path / "run", "-c", PROBE, task, *words)
        assert done.code == 1
        assert "Traceback" not in done.err
        assert done.out.strip().endswith("False"), "torch was imported"
        assert re.search(rf"cannot be (opened or )?written \(({reason})", done.err), done.err


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_refused_path_is_found_behind_a_later_exception(number: int) -> None:
    error = ValueError("Unable to configure handler 'file'")
    error.__cause__ = OSError(number, os.strerror(number), "/runs/train.log")
    explanation = explain(error)
    assert explanation is not None
    assert explanation.startswith(
        f"/runs/train.log: cannot be opened or written ({os.strerror(number)}).\nGive another folder:"
    )
