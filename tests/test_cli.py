"""What happens before a task begins: the command line, help, and mistakes that need no torch."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from graft.cli import TASKS, explain
from graft.config import conf_dir
from graft.config.schema import SCHEMAS


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
        "predict source=nowhere model=vgg16": "source=nowhere",
        "predict source=. model=vgg61": "Did you mean vgg",
    }.items(),
)
def test_help_and_mistakes_come_without_torch(words: str, answer: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("False"), "torch was imported"
    assert answer in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_in_plain_words() -> None:
    said = explain(OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.csv"))
    assert said is not None
    assert said.startswith("/runs/metrics.csv: cannot be written (No space left on device).\nMake room")
    assert explain(OSError(errno.EIO, "Input/output error")) is None
