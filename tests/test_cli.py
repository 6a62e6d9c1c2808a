"""What happens before a task begins: the command line, help, and mistakes that need no torch."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from graft.cli import TASKS, explain, literal_path
from graft.config import conf_dir
from graft.config.schema import SCHEMAS

AWKWARD = ("bée (1).jpg", "it's.jpg", "a\\'b;.jpg", "x[1].jpg", "tr(\\", "a&b=c.jpg", "one,two.jpg", "~x")


@pytest.mark.parametrize("name", AWKWARD)
def test_a_file_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert OverridesParser.create().parse_override(literal_path(f"source={name}")).value() == name


def test_home_is_found_behind_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    word = literal_path("data.root=~/photos")
    assert OverridesParser.create().parse_override(word).value() == f"{tmp_path}/photos"


@pytest.mark.parametrize(
    "word",
    ["tta=true", "seed=0,1", "source=[a,b]", "-m", "source=nowhere (1).jpg", "lr=interval(0,1)", "'a=(b)'", "x="],
)
def test_everything_else_is_hydras(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert literal_path(word) == word


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


@pytest.mark.parametrize("task", TASKS)
def test_a_full_disk_is_said_in_plain_words_that_fit_the_command(task: str) -> None:
    said = explain(OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.csv"), task)
    assert said is not None
    assert said.startswith("/runs/metrics.csv: cannot be written (No space left on device).\nMake room")
    assert ("resume=auto" in said) is (task == "train")
    assert explain(OSError(errno.EIO, "Input/output error")) is None
