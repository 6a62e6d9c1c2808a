"""A plain state dict can be used again: its classes are found next to it, or named, and its head can be kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command, succeeded
from hydra import compose, initialize_config_dir

import graft
from graft.config import conf_dir
from graft.config.registration import register
from graft.errors import ConfigError, GraftError, WeightsError
from graft.learning.restore import from_checkpoint
from graft.tasks.export import export

DIGITS = [str(digit) for digit in range(10)]
NAMED = ("model=vgg_mini", f"model.classes=[{','.join(DIGITS)}]")
TRAINING = ("model=vgg_mini", "data=digits", "logger=none", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def exported(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .pth file of the run, with its JSON file next to it."""
    folder = tmp_path_factory.mktemp("state_dict") / "exported"
    register()
    with initialize_config_dir(str(conf_dir())):
        export(compose("export", [f"checkpoint={digits_run}", "format=state_dict", f"folder={folder}"]))
    return folder / "vgg_mini.pth"


@pytest.fixture
def bare(exported: Path, tmp_path: Path) -> Path:
    """The same file alone."""
    return Path(shutil.copy(exported, tmp_path / "bare.pth"))


def probabilities(predictor: Any) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    images = graft.compose("data=digits").splits().test
    return [(each.classes, each.probabilities) for each in predictor.predict([images.load(i) for i in range(9)])]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_an_exported_state_dict_predicts_as_its_checkpoint_does(ending: str, exported: Path, digits_run: Path) -> None:
    assert probabilities(graft.load(exported.with_suffix(ending))) == probabilities(graft.load(digits_run))


def test_an_exported_state_dict_is_evaluated_as_its_checkpoint_is(
    exported: Path, digits_run: Path, tmp_path: Path
) -> None:
    main = ("-m", "graft.cli", "evaluate")
    runs = [
        succeeded(command(tmp_path / name, *main, f"checkpoint={file}", f"hydra.run.dir={tmp_path / name}"))
        for name, file in (("run", digits_run), ("file", exported))
    ]
    first, second = (json.loads((run.folder / "evaluation.json").read_text()) for run in runs)
    for key in ("data", "preprocessing", "metrics", "classes"):
        assert first[key] == second[key]
    assert (tmp_path / "run/predictions.csv").read_bytes() == (tmp_path / "file/predictions.csv").read_bytes()


@pytest.mark.parametrize("prefix", ["", "model.", "module.backbone."])
def test_a_state_dict_without_json_is_used_with_the_network_and_classes_of_the_command(
    prefix: str, bare: Path, digits_run: Path
) -> None:
    weights = torch.load(bare, weights_only=True)
    torch.save({f"{prefix}{name}": tensor for name, tensor in weights.items()}, bare)
    own = from_checkpoint(digits_run / "checkpoints/best.ckpt").preprocessing
    predictor = graft.load(bare, *NAMED, f"preprocess.resize_size={own.resize_size}", "trainer.precision=32")
    reference = graft.load(digits_run, "trainer.precision=32")
    assert [classes[0] for classes, _ in probabilities(predictor)] == [
        classes[0] for classes, _ in probabilities(reference)
    ]


def test_class_names_come_from_a_text_file_or_from_the_json_of_an_export(
    bare: Path, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(DIGITS) + "\n")
    listed = probabilities(graft.load(bare, *NAMED))
    for file in (tmp_path / "names.txt", Path(f"{exported}.json")):
        assert probabilities(graft.load(bare, "model=vgg_mini", f"model.classes={file}")) == listed


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        ((), r"names their network.\nName it and its classes: model=resnet18 model.classes="),
        (("model=vgg_mini",), "no head with named classes"),
        (("model=vgg_mini", "model.classes=[a,b,c]"), "the file's has 10 classes"),
        (("model=vgg_mini", "model.classes=[a,b,a]"), "classes 0 and 2 are both called 'a'"),
        (("model=vgg_mini", "model.classes=missing.txt"), "no readable file of names"),
        (("model=vgg11", f"model.classes=[{','.join(DIGITS)}]"), "does not fit model=vgg11"),
    ],
)
def test_what_a_state_dict_lacks_is_named(overrides: tuple[str, ...], answer: str, bare: Path) -> None:
    with pytest.raises(GraftError, match=answer):
        graft.load(bare, *overrides)


def test_a_json_that_describes_another_file_is_refused(exported: Path, tmp_path: Path) -> None:
    for suffix in (".pth", ".pth.json"):
        shutil.copy(exported.with_suffix(suffix), tmp_path)
    file = tmp_path / exported.name
    weights = torch.load(file, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, file)
    with pytest.raises(WeightsError, match="is not the file that"):
        graft.load(file)


def test_names_that_contradict_the_file_or_a_checkpoint_are_refused(exported: Path, digits_run: Path) -> None:
    reversed_names = f"model.classes=[{','.join(reversed(DIGITS))}]"
    with pytest.raises(ConfigError, match=r"another order \(class 0 is '0' in the weights, '9' in model.classes\)"):
        graft.load(exported, reversed_names)
    with pytest.raises(ConfigError, match="contains its network and its classes"):
        graft.load(digits_run, reversed_names)


# -- as the start of training ----------------------------------------------------------------------------------


def test_training_keeps_a_head_of_the_same_classes_on_request(exported: Path, tmp_path: Path) -> None:
    weights = torch.load(exported, weights_only=True)
    words = (*TRAINING, f"model.weights={exported}", f"paths.outputs={tmp_path}")
    kept, replaced = graft.build(*words, "model.keep_head=true").module, graft.build(*words).module
    name = next(name for name in weights if weights[name].shape[:1] == (10,))
    assert torch.equal(kept.network.state_dict()[name], weights[name])
    assert not torch.equal(replaced.network.state_dict()[name], weights[name])


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (None, "does not name the classes of its head"),
        (DIGITS[::-1], r"the same names in another order \(class 0 is '9' in the weights, '0' in the data\)"),
        (["zero", *DIGITS[1:]], "zero only in the weights, 0 only in the data"),
    ],
)
def test_a_head_of_other_classes_is_not_kept(names: list[str] | None, answer: str, bare: Path, tmp_path: Path) -> None:
    words = (*TRAINING, f"model.weights={bare}", "model.keep_head=true", f"paths.outputs={tmp_path}")
    named = () if names is None else (f"model.classes=[{','.join(names)}]",)
    with pytest.raises(WeightsError, match=answer):
        graft.build(*words, *named)


def test_keeping_the_head_contradicts_random_weights_and_rows_by_name(tmp_path: Path) -> None:
    for words in (("strategy=scratch",), ("model.weights=bundled", "model.head_from={'0': cat}")):
        with pytest.raises(ConfigError, match=r"model\.keep_head=true"):
            graft.build(*TRAINING, "model.keep_head=true", *words, f"paths.outputs={tmp_path}")


def test_a_head_that_is_not_loaded_is_logged(exported: Path, tmp_path: Path) -> None:
    run = graft.train(
        *TRAINING, f"model.weights={exported}", "trainer.limit_train_batches=1", "review=none", folder=tmp_path / "run"
    )
    (note,) = (note for note in run.summary["notes"] if "head" in note)
    assert "is not loaded" in note
    assert "model.keep_head=true keeps it" in note
    assert note in (run.folder / "train.log").read_text()
