"""A checkpoint, a summary and a `.hydra` folder from a stranger are data: nothing that they name is run, resolved,
fetched, or written outside of its folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from commands import TINY
from hydra import compose, initialize_config_dir
from hypothesis import example, given, strategies
from PIL import Image

import graft
from graft.cli import refuse_recorded_options
from graft.config import conf_dir
from graft.config.commands import EvaluateConfig
from graft.config.registration import register, typed
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, DataError, GraftError, RecordError, TrainingError, WeightsError
from graft.learning.checkpoints import read_checkpoint
from graft.learning.restore import from_checkpoint
from graft.models import Recipe, build_network
from graft.models.weights import load_weights
from graft.models.weights.reading import read_file
from graft.system import downloads
from graft.system.files import safe_name
from graft.tasks import evaluation
from graft.tasks.export import export
from graft.tasks.predict import main as predict
from graft.tasks.recorded_data import summary_next_to
from graft.tasks.review import review
from graft.tasks.run import read_summary

RECIPE = Recipe("vgg_custom", table=(4, "M"), classifier="pooled", input_size=32)
DIGITS = tuple("0123456789")


def made(**changes: Any) -> dict[str, Any]:
    """What a checkpoint of a run on digits says of itself, with `changes` at dotted keys (a double underscore each)."""
    content: dict[str, Any] = {
        "recipe": RECIPE.to_dict(),
        "classes": list(DIGITS),
        "preprocessing": Preprocessing(32, 32, "squash").to_dict(),
        "config": {
            "seed": 0,
            "data": {"_target_": "graft.data.sources.digits.load", "name": "digits", "root": None},
            "paths": {"data": "data"},
            "trainer": {"accelerator": "cpu", "precision": "32-true"},
        },
        "metrics": {"val/acc": 0.5},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        section_of = content
        for section in sections:
            section_of = section_of[section]
        section_of[last] = value
    return content


def checkpoint(folder: Path, **changes: Any) -> Path:
    """A checkpoint whose description is changed as in `made`."""
    torch.manual_seed(0)
    tensors = build_network(RECIPE, 10).state_dict()
    content = {
        "state_dict": {f"network.{name}": tensor for name, tensor in tensors.items()},
        "graft": made(**changes),
        "global_step": 1,
        "epoch": 0,
    }
    file = folder / "run" / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def composed(task: str, *overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose(task, list(overrides))


def evaluate(file: Path, folder: Path, *words: str) -> None:
    overridden = frozenset(word.partition("=")[0] for word in words)
    config = typed(composed("evaluate", f"checkpoint={file}", *words), EvaluateConfig)
    evaluation.run(config, [file], overridden, folder / "evaluated")


def exported(file: Path, folder: Path, *words: str) -> list[str]:
    """The names of the files that `graft export` writes."""
    export(composed("export", f"checkpoint={file}", "format=state_dict", f"folder={folder}/exported", *words), ())
    return sorted(path.name for path in (folder / "exported").iterdir())


def looked(file: Path, folder: Path) -> None:
    review(file, "test")


USES: dict[str, Callable[[Path, Path], Any]] = {"evaluate": evaluate, "export": exported, "look": looked}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of these may ask for anything."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"asked for {arguments} {options}")

    for name in ("require_reachable", "download"):
        monkeypatch.setattr(downloads, name, refuse)


# What a name in a checkpoint leads to


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "name", ["torch.hub", "venv.__main__", "trap.inside", "graft.tasks.bundle", ".trap", "trap.a b"]
)
def test_no_module_that_a_checkpoint_names_is_imported(
    name: str, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"import os; os.mkdir({str(tmp_path / 'mark')!r})\n"
    photos, package = tmp_path / "photos", tmp_path / "packages" / "trap"
    for folder in (photos, package):
        folder.mkdir(parents=True)
    (photos / "hubconf.py").write_text(mark)
    for file in ("__init__.py", "inside.py"):
        (package / file).write_text(mark)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.chdir(tmp_path)
    data = {"name": name, "root": str(photos), "options": {"source": "local", "model": "m"}}
    file = checkpoint(tmp_path, config__data=data)
    with pytest.raises(ConfigError, match=r"best\.ckpt: data\._target_=.*not imported") as refused:
        USES[use](file, tmp_path)
    assert name in str(refused.value)
    assert not (tmp_path / "mark").exists()
    if name == "torch.hub":
        assert "trust=[torch]" in str(refused.value)


def own_sets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_sets").mkdir()
    (folder / "own_sets" / "scans.py").write_text("from graft.data.sources.digits import load\n")
    monkeypatch.syspath_prepend(folder)


def test_a_package_that_the_user_trusts_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_sets(tmp_path, monkeypatch)
    file = checkpoint(tmp_path, config__data={"name": "own_sets.scans", "root": None})
    for trust in ("[]", "[own]", "[own_sets.scan]", "[sets]", "[digits,torch]"):
        with pytest.raises(ConfigError, match=r"trust=\[own_sets\]"):
            evaluate(file, tmp_path, f"trust={trust}")
    evaluate(file, tmp_path, "trust=[own_sets]")
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["data"]["name"] == "scans"
    assert exported(file, tmp_path, "trust=[other,own_sets.scans]")
    assert review(file, "test", ["own_sets"]).per_class()


def test_a_target_on_the_command_line_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_sets(tmp_path, monkeypatch)
    file = checkpoint(tmp_path, config__data={"name": "torch.hub", "root": None})
    evaluate(file, tmp_path, "data=digits", "data._target_=own_sets.scans.load")
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["data"]["name"] == "scans"


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "torch.hub"},
        {"name": "hf-hub:somebody/model", "family": "timm"},
        {"name": "local-dir:.", "family": "timm"},
        {"name": "resnet18.a/../../x", "family": "timm"},
        {"name": "get_weight"},
        {"name": "fasterrcnn_resnet50_fpn"},
    ],
)
def test_a_network_is_looked_up_among_those_that_libraries_register(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"best\.ckpt: .*(no such network|no weights of that tag)"):
        from_checkpoint(checkpoint(tmp_path, recipe=recipe))


@pytest.mark.parametrize("key", ["data__root", "data__split_seed", "paths__data", "data___target_"])
@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "x${hydra:job.id}", "???", "${jobs_at_once:}"])
def test_no_interpolation_in_a_checkpoint_is_resolved(
    key: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    value = text
    with pytest.raises(
        RecordError, match=rf"best\.ckpt: config\.{key.replace('__', '.')}.*without interpolation"
    ) as refused:
        evaluate(checkpoint(tmp_path, **{f"config__{key}": value}), tmp_path)
    assert "hunter2" not in str(refused.value)


def test_training_options_of_a_checkpoint_are_ignored_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not needed is not looked at, be it an interpolation, a class or a path."""
    file = checkpoint(tmp_path)
    evaluate(file, tmp_path)
    before = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["metrics"]
    others = {"model": {"weights": "${oc.env:SECRET}", "_target_": "os.system"}, "resume": "/dev/zero", "logger": 3,
              "callbacks": {"_target_": "os.mkdir"}, "augment": "x", "search": {"storage": "sqlite:////x"},
              "optimizer": {"name": "${trainer.x}"}}  # fmt: skip
    evaluate(checkpoint(tmp_path, **{f"config__{key}": value for key, value in others.items()}), tmp_path)
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["metrics"] == before


def test_nothing_is_downloaded_to_a_folder_that_only_the_checkpoint_names(tmp_path: Path) -> None:
    data = {"name": "flowers", "root": str(tmp_path / "home" / "x"), "download": True}
    file = checkpoint(tmp_path, config__data=data)
    for use in USES.values():
        with pytest.raises(DataError, match=r"(?s)flowers.*data\.root=FOLDER"):
            use(file, tmp_path)
    assert not (tmp_path / "home").exists()
    for words in (f"data.root={tmp_path}/here", f"paths.data={tmp_path}"), ("data.download=true",):
        with pytest.raises(AssertionError, match="asked for"):
            evaluate(file, tmp_path, *words)


# How much it may ask for


BEYOND: dict[str, Any] = {
    "recipe__table": [400_000, "M"],
    "recipe__input_size": 10**9,
    "recipe__average_pool": 10**6,
    "recipe__dropout": float("nan"),
    "recipe__name": ["vgg16"],
    "recipe__batch_norm": "yes",
    "recipe__family": {"a": 1},
    "preprocessing__input_size": 1_000_000,
    "preprocessing__resize_size": 10**12,
    "preprocessing__mean": [0.5, float("inf"), 0.5],
    "preprocessing__std": [0, 0, 0],
    "preprocessing__interpolation": "eval",
    "classes": [],
    "metrics": {"val/acc": [0.1]},
    "config__seed": -1,
    "config__views": ["identity"] * 1000,
    "config__tta": "true",
    "config__data__name": "x" * 1000,
    "config__data__root": "x" * 100_000,
    "config__data__batch_size": 10**12,
    "config__data__num_workers": 100_000,
    "config__data__val_fraction": 2,
    "config__data__folds": 2**70,
    "config__trainer__accelerator": "tpu",
    "config__trainer__precision": "${oc.env:HOME}",
    "config__trainer__limit_test_batches": -1,
    "config__data": [1],
    "config": None,
}


@pytest.mark.parametrize("key", BEYOND)
def test_values_beyond_their_limits_are_refused_before_anything_is_built(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.learning.restore.build_network", lambda *_: pytest.fail("built"))
    with pytest.raises(RecordError, match=rf"best\.ckpt: {key.replace('__', '.')}.*Expected: "):
        from_checkpoint(checkpoint(tmp_path, **{key: BEYOND[key]}))


@pytest.mark.parametrize(
    "view",
    [
        "graft.learning.views.hflip",
        {"_target_": "os;system"},
        {"_target_": "graft.learning.views.hflip", "size": {"_target_": "os.system", "command": "true"}},
        {"_target_": "graft.learning.views.hflip", "size": [{"_target_": "os.system", "command": "true"}]},
        {"_target_": "graft.learning.views.hflip", "_args_": ["x"]},
        {"_target_": "graft.learning.views.hflip", "size": "${oc.env:HOME}"},
    ],
)
def test_a_recorded_view_is_one_target_with_plain_arguments(view: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"best\.ckpt: config\.views.*Expected: "):
        from_checkpoint(checkpoint(tmp_path, config__views={"mine": view}))


@pytest.mark.parametrize("target", ["my_views.turned", "graft.learning.views.inspect.os.system"])
def test_a_recorded_view_of_another_package_is_imported_only_if_trusted(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_views.py").write_text("def turned(images):\n    return [images.flip(2)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = checkpoint(tmp_path, config__tta=True, config__views={"mine": {"_target_": target}})
    package = target.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"views\.mine\._target_(.|\n)*trust=\[{package}\]"):
        evaluate(file, tmp_path)
    assert "my_views" not in sys.modules
    if package != "graft":
        evaluate(file, tmp_path, "trust=[my_views]")
        assert sys.modules["my_views"].__file__ == str(tmp_path / "my_views.py")


def test_the_views_of_an_older_checkpoint_are_grafts(tmp_path: Path) -> None:
    evaluate(checkpoint(tmp_path, config__tta=True, config__views=["identity", "hflip"]), tmp_path)
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["views"] == ["identity", "hflip"]


def nested(times: int) -> Any:
    value: Any = [1]
    for _ in range(times):
        value = [value] * 10
    return value


@pytest.mark.parametrize("options", [{"a": nested(4)}, {"a": {"b": nested(30)}}, {f"k{n}": n for n in range(20_000)}])
def test_too_many_or_too_deeply_nested_options_are_refused(options: Any, tmp_path: Path) -> None:
    """Lists that hold one another ten times over take 300 bytes in a file, and 10**30 values where they are copied."""
    with pytest.raises(RecordError, match=r"config\.data"):
        from_checkpoint(checkpoint(tmp_path, config__data__options=options))


HUGE: list[dict[str, Any]] = [
    {"name": "mine", "table": [65_536] * 900, "classifier": "pooled"},
    {"name": "mine", "table": [4] * 10, "average_pool": 64, "classifier": "vgg"},
    {"name": "regnet_y_128gf"},
    {"name": "vit_h_14", "input_size": 4088},
    {"name": "vit_giant_patch14_clip_224", "family": "timm"},
]
"""The last ones have gigabytes, which torch would initialise randomly before it reads the file."""


def test_a_network_larger_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    unset = dict.fromkeys(RECIPE.to_dict())
    files = [checkpoint(tmp_path / str(number), recipe=unset | recipe) for number, recipe in enumerate(HUGE)]
    program = (
        "import pathlib, resource, sys\n"
        "import timm, torchvision\n"
        "from graft.errors import WeightsError\n"
        "from graft.learning.restore import from_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n        from_checkpoint(pathlib.Path(file))\n"
        "    except WeightsError as error:\n        print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    words = [sys.executable, "-c", program, *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    *errors, megabytes = done.stdout.splitlines() or [done.stderr, "-1"]
    assert [error.partition(": ")[2][:25] for error in errors] == ["its network has more than"] * len(HUGE)
    assert 0 <= int(megabytes) < 800


def claims(kind: str) -> torch.Tensor:
    if kind == "expanded":
        return torch.zeros(1).expand(400_000, 400_000)
    if kind == "sparse":
        return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (400_000, 400_000))
    return torch.empty(400_000, 400_000, device="meta")


@pytest.mark.filterwarnings("ignore:.*parse.*invariant")
@pytest.mark.parametrize("kind", ["expanded", "sparse", "without memory"])
@pytest.mark.parametrize("key", ["state_dict", "callbacks", "optimizer_states"])
def test_tensors_that_the_file_does_not_contain_are_refused(kind: str, key: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    content = torch.load(file, weights_only=True)
    content.setdefault(key, {})["network.x"] = claims(kind)
    torch.save(content, file)
    with pytest.raises(WeightsError, match=r"best\.ckpt: (its tensors, (network.)?x of shape|(network.)?x is no)"):
        read_checkpoint(file)
    if key == "state_dict":
        torch.save(content[key], tmp_path / "weights.pth")
        with pytest.raises(
            WeightsError, match=r"weights\.pth: (its tensors, (network.)?x of shape|(network.)?x is no)"
        ):
            read_file(tmp_path / "weights.pth")


def test_a_compressed_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(TrainingError, match=r"bomb\.ckpt: damaged \(its records are compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_overlapping_records_are_not_read_repeatedly(tmp_path: Path) -> None:
    file = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10_000))
        (record,) = archive.infolist()
        archive.filelist += [record] * 10_000  # 100 MB to read, as many more as somebody likes
    assert file.stat().st_size < 1_000_000
    with pytest.raises(TrainingError, match=r"bomb\.ckpt: damaged \(its records are more than the file holds"):
        read_checkpoint(file)


def test_more_classes_than_a_confusion_matrix_can_count_are_refused(tmp_path: Path) -> None:
    count = 30_000
    file = checkpoint(tmp_path, classes=[str(number) for number in range(count)])
    content = torch.load(file, weights_only=True)
    for name, tensor in build_network(RECIPE, count).state_dict().items():
        content["state_dict"][f"network.{name}"] = tensor
    torch.save(content, file)
    assert len(from_checkpoint(file).classes) == count
    with pytest.raises(ConfigError, match=r"best\.ckpt: has 30,000 classes"):
        evaluate(file, tmp_path)


@pytest.mark.parametrize("content", ["state_dict", "graft", "epoch", "global_step"])
def test_a_checkpoint_of_other_types_is_refused_by_key(content: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    torch.save(torch.load(file, weights_only=True) | {content: ["x"]}, file)
    with pytest.raises(RecordError, match=rf"best\.ckpt: {content}=a list of 1 values: refused.*Expected"):
        read_checkpoint(file)


def test_the_input_size_recorded_in_a_checkpoint_has_a_limit(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, preprocessing__input_size=10**7)
    with pytest.raises(RecordError, match=r"best\.ckpt: preprocessing\.input_size=10000000: .*4,096"):
        load_weights(build_network(RECIPE, 10), RECIPE, str(file))


def test_an_ordinary_run_is_not_refused_by_any_limit(tmp_path: Path) -> None:
    restored = from_checkpoint(checkpoint(tmp_path))
    assert (restored.recipe, restored.classes, restored.metrics) == (RECIPE, DIGITS, {"val/acc": 0.5})
    assert restored.config == made()["config"]


# What it names is written nowhere else


NAMES = [
    "../../x", "/abs", "..", "...", "con", "CON.onnx", "a/b\\c", "x" * 200, "-rf", " ", "$(touch x)",
    "~/x", "%2e%2e/x", "é" * 100,
]  # fmt: skip


@given(strategies.text(max_size=300), strategies.integers(1, 120))
@example("a\0b", 80)
@example("\ud800/x", 80)
@example("LPT1.tar.gz", 80)
@example("nul", 3)
@example("हिन्दी", 80)
def test_any_text_becomes_a_valid_file_name(text: str, most: int) -> None:
    name = safe_name(text, most)
    assert 1 <= len(name.encode()) <= most
    assert name.isprintable()
    assert Path(name).name == name
    assert not set(name) & set("/\\:*?\"<>|'`$;&~ ")
    assert name[0] not in ".-"
    assert name[-1] != "."
    assert not PureWindowsPath(name).is_reserved()


def test_names_in_all_scripts_are_kept() -> None:
    for name in ("roses", "장미", "हिन्दी", "Müller-1.5", "vgg16_bn", "resnet50.a1_in1k"):
        assert safe_name(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_an_export_stays_in_its_folder_regardless_of_the_networks_name(name: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a" / "b", recipe=RECIPE.to_dict() | {"name": name})
    folder = tmp_path / "a" / "b" / "c"
    before = set(tmp_path.rglob("*"))
    first, *_ = written = exported(file, folder, "images=2")
    assert len(written) == 4
    assert set(tmp_path.rglob("*")) - before == {
        folder, folder / "exported", *(folder / "exported" / name for name in written)
    }  # fmt: skip
    stem = first.partition(".pth")[0]
    assert stem.isprintable()
    assert stem.split(".")[0].lower() != "con"
    assert stem[0] not in "-. "
    assert len(first.encode()) < 120


@pytest.mark.parametrize("name", ["a\0b", "\u202egnp.exe", "a\nb", "\x1b[2Ja"])
def test_a_network_s_name_with_control_characters_is_refused_and_escaped(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"recipe\.name='.*'") as refused:
        from_checkpoint(checkpoint(tmp_path, recipe=RECIPE.to_dict() | {"name": name}))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["../x", "/abs", "..", "con", "a/b"])
def test_an_export_name_that_is_not_a_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)name='.*folder=FOLDER"):
        exported(checkpoint(tmp_path), tmp_path, f"name={name}")
    assert not (tmp_path / "exported").exists()


def test_a_summary_cannot_name_a_checkpoint_outside_its_folder(tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    (tmp_path / "other.ckpt").write_bytes(file.read_bytes())
    summary = {"status": "finished", "checkpoint": "../other.ckpt", "metrics": {}, "classes": []}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="outside of this folder"):
        graft.FinishedRun(tmp_path / "run").review()


def test_a_resumed_run_removes_nothing_that_its_checkpoint_names(tmp_path: Path) -> None:
    """Lightning removes the best checkpoint before the new one, wherever the checkpoint says that it lies."""
    words = (*TINY, "trainer.max_epochs=1", "logger=none", "trainer.test=false", "trainer.baseline=false")
    run = graft.train(*words, folder=tmp_path / "run", echo=False).folder
    victim = tmp_path / "photos"
    victim.mkdir()
    (victim / "a.jpg").write_bytes(b"x")
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state.pop("dirpath", None)
            evil = f"local://{victim}"
            state |= {"best_model_path": evil, "kth_best_model_path": evil, "best_k_models": {evil: torch.tensor(-1.0)}}
    torch.save(content, tmp_path / "last.ckpt")
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path)
    graft.train(*words[:-4], "trainer.max_epochs=2", *words[-3:], f"resume={tmp_path}/last.ckpt",
                folder=tmp_path / "again", echo=False)  # fmt: skip
    assert (victim / "a.jpg").exists()


# Summaries and .hydra folders


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"metrics": ' * 50_000, "[]", '"text"', "{", "\xff\xfe", '{"checkpoint": [1], "metrics": [2]}',
     '{"data": 3, "checkpoint": "checkpoints/best.ckpt", "metrics": {"test/acc": "x", "test/loss": {}}}'],
)  # fmt: skip
def test_an_invalid_summary_does_not_stop_a_run(content: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    (tmp_path / "run" / "summary.json").write_text(content, encoding="latin-1")
    evaluate(file, tmp_path)
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["run"] == {}


def test_a_summary_that_is_a_fifo_endless_or_huge_is_not_read(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    os.mkfifo(summary)
    assert read_summary(tmp_path) == {}
    summary.unlink()
    summary.symlink_to("/dev/zero")
    assert read_summary(tmp_path) == {}
    summary.unlink()
    with summary.open("wb") as file:
        file.write(b"{}")
        file.truncate(2**40)
    assert read_summary(tmp_path) == {}
    assert summary_next_to(Path("best.ckpt")) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir", "{}/.hydra", "--config-name", "config"],
        ["--config-path={}/.hydra"],
        ["-cd", "{}/.hydra/"],
        ["-cp{}/.hydra"],
        ["--config-d={}/link"],
        ["hydra.searchpath=[file://{}/.hydra]"],
        ["--experimental-rerun", "{}"],
        ["--exp={}"],
    ],
)
def test_a_runs_folder_is_used_neither_as_options_nor_as_a_command(words: list[str], tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / ".hydra")
    with pytest.raises(ConfigError, match="names modules to import and folders to write to"):
        refuse_recorded_options([word.format(tmp_path) for word in words])
    refuse_recorded_options(
        ["--config-dir", str(tmp_path), f"hydra.run.dir={tmp_path}/.hydra", "-m", "seed=1", "-cn", "x"]
    )


def test_prediction_with_a_foreign_checkpoint_reads_no_other_files(tmp_path: Path) -> None:
    data = {"name": "torch.hub", "root": "/", "options": {"a": 1}}
    file = checkpoint(tmp_path, config__data=data)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    predict(composed("predict", f"checkpoint={file}", f"source={tmp_path}/a.png", f"output={tmp_path}/out.csv"))
    assert (tmp_path / "out.csv").exists()
    for trust in ("[../x]", "['a b']", "['']"):
        with pytest.raises(GraftError, match="not the name of a package"):
            predict(composed("predict", f"checkpoint={file}", f"source={tmp_path}/a.png", f"trust={trust}"))
