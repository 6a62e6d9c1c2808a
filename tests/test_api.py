"""The Python API gives the results of the commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import graft
from graft.errors import ConfigError, DataError

WORDS = (
    "model=vgg_mini", "data=digits", "augment=none", "optimizer.lr=0.02", "data.split_seed=3",
    "trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.baseline=false",
)  # fmt: skip
"""The overrides of `digits_run`."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> graft.FinishedRun:
    """The same run from Python, as in a notebook: whose kernel asks for coloured output."""
    folder = tmp_path_factory.mktemp("api") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        return graft.train(*WORDS, "logger.tensorboard=false", folder=folder)


def test_importing_and_composing_load_no_torch() -> None:
    code = (
        "import sys, graft; assert 'hydra' not in sys.modules\n"
        "graft.compose('experiment=quickstart'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_from_python_is_the_run_of_the_command(run: graft.FinishedRun, digits_run: Path) -> None:
    theirs = graft.FinishedRun(digits_run)
    for key in ("config", "identity", "classes", "data", "parameters", "metrics", "epochs", "weights"):
        assert run.summary[key] == theirs.summary[key], key


def test_a_run_from_python_writes_the_files_of_the_command(run: graft.FinishedRun) -> None:
    assert "seed: 0" in (run.folder / ".hydra" / "config.yaml").read_text()
    assert "optimizer.lr=0.02" in (run.folder / ".hydra" / "overrides.yaml").read_text()
    log = (run.folder / "train.log").read_text()
    assert "epoch 1/1" in log
    assert "\x1b" not in log


def test_metrics_by_step_are_a_table(run: graft.FinishedRun, digits_run: Path) -> None:
    steps, values = run.curve("val/acc")
    assert (steps, values[-1]) == ([20], run.metrics["val/acc"])
    assert [row["val/acc"] for row in run.table if "val/acc" in row] == values
    with pytest.raises(ConfigError, match="val/acc"):
        run.curve("val/accuracy")
    with pytest.raises(DataError, match=r"metrics\.csv"):  # it was trained with logger=none
        graft.FinishedRun(digits_run).curve("val/acc")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_review_covers_every_image_of_its_split(run: graft.FinishedRun, part: str) -> None:
    seen = run.review(part)
    assert {name: images for name, (_, images) in seen.per_class().items()} == run.summary["data"]["counts"][part]
    right = sum(right for right, _ in seen.per_class().values())
    assert seen.accuracy == right / len(seen.predictions)
    if part != "train":
        assert seen.accuracy == pytest.approx(run.metrics[f"{part}/acc"], abs=1e-7)


def test_a_review_draws_its_figures(run: graft.FinishedRun) -> None:
    seen = run.review()
    assert seen.grid(10).size == seen.grid(10).size
    assert seen.grid(10).height < seen.grid(11).height, "five in a row"
    for picture in (seen.worst(5), seen.confusion(), seen.accuracies(), seen.calibration()):
        assert isinstance(picture, Image.Image)
    with pytest.raises(ConfigError, match="test"):
        run.review("tests")


def test_an_experiment_shows_its_images() -> None:
    picture = graft.compose(*WORDS).pictures(count=6, columns=3)
    assert len(picture.getcolors(2**24) or []) > 100, "photographs, not an empty sheet"


def test_augmented_pictures_show_one_image_per_row_and_differ_between_epochs() -> None:
    picture = np.asarray(graft.compose(*WORDS, "augment=imagenet").pictures(count=4, columns=2, augmented=True))
    plain = np.asarray(graft.compose(*WORDS, "augment=none").pictures(count=4, columns=2, augmented=True))
    assert picture.shape == plain.shape
    assert (picture != plain).any()
    with pytest.raises(ConfigError, match="only training images are augmented"):
        graft.compose(*WORDS).pictures("val", augmented=True)


def test_files_are_predicted(run: graft.FinishedRun, tmp_path: Path) -> None:
    seen, splits = run.review(), graft.compose(*WORDS).splits()
    for index in range(3):
        splits.test.load(index).save(tmp_path / f"{index} (é).png")
    predictions = graft.predict(tmp_path, f"checkpoint={run.folder}", "topk=3")
    assert [each.classes[0] for each in predictions] == [run.classes[i] for i in seen.predictions.predicted[:3]]
    assert [len(each.probabilities) for each in predictions] == [3, 3, 3]
    assert graft.predict([tmp_path / "1 (é).png"], f"checkpoint={run.folder}", "topk=3") == [
        type(predictions[1])(
            str(tmp_path / "1 (é).png"), predictions[1].classes, predictions[1].probabilities, predictions[1].indices
        )
    ]
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"broken\.png"):
        graft.predict(tmp_path, f"checkpoint={run.folder}")
    with pytest.raises(ConfigError, match="checkpoint or model"):
        graft.predict(tmp_path)


def test_a_real_cat_is_recognised_by_imagenet_classes(shared_weights: Path, tmp_path: Path) -> None:
    from skimage.data import chelsea

    Image.fromarray(chelsea()).save(tmp_path / "chelsea.png")
    weights = shared_weights / "squeezenet1_0-imagenet.safetensors"
    [prediction] = graft.predict(tmp_path / "chelsea.png", "model=squeezenet1_0", f"model.weights={weights}")
    assert {"tabby", "tiger cat", "Egyptian cat"} & set(prediction.classes[:3])
    known = {"tabby": "n02123045", "tiger cat": "n02123159", "Egyptian cat": "n02124075"}
    ids = dict(zip(prediction.classes, prediction.wordnet, strict=True))
    assert all(ids[name] == known[name] for name in known if name in ids)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("model=vgg61", "Did you mean vgg16 or vgg19"),
        ("optimizer.lrr=1", "Did you mean lr"),
        ("strategy.layer_decai=1", "strategy.layer_decai: there is no such key. Did you mean strategy.layer_decay"),
        ("seed=many", "Integer"),
        ("hydra.run.dir=elsewhere", "folder=PATH"),
    ],
)
def test_a_mistyped_override_gives_the_error_of_the_command_line(word: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        graft.train(word)


def test_an_experiment_can_be_varied_without_being_modified(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = graft.compose(*WORDS, "strategy=scratch", f"paths.outputs={tmp_path}", "data.shots=2", "logger=none")
    experiment.config.trainer.limit_val_batches = experiment.config.trainer.limit_test_batches = 1
    experiment.config.optimizer.lr = 0.25
    before = str(experiment)
    runs = [graft.train(experiment, echo=False) for _ in range(2)]
    assert capsys.readouterr().out == ""
    assert str(experiment) == before
    assert runs[0].summary["config"]["optimizer.lr"] == 0.25
    assert runs[0].folder.parent == runs[1].folder.parent == tmp_path / "train"
    assert runs[0].folder != runs[1].folder
    with pytest.raises(ConfigError, match="not both"):
        graft.train(experiment, "seed=1")


BUILT = ("model=vgg_mini", "model.weights=bundled", "data=faces", "data.shots=4", "data.batch_size=4", "augment=basic",
         "trainer.max_epochs=2", "trainer.limit_val_batches=2", "trainer.baseline=false", "trainer.test=false",
         "logger=csv", "review=none", "callbacks.checkpoint=last", "callbacks.progress=none")  # fmt: skip


def test_the_built_parts_train_to_the_bit_as_graft_train_does(tmp_path: Path) -> None:
    import torch

    module, data, trainer = graft.build(*BUILT, folder=tmp_path / "built")
    trainer.fit(module, datamodule=data)
    run = graft.train(*BUILT, folder=tmp_path / "trained", echo=False)
    ours, theirs = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "built", run.folder)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "built" / "metrics.csv").read_text() == (run.folder / "metrics.csv").read_text()
    trainer.test(module, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    assert 0 <= module.results["test/acc"] <= 1
    with pytest.raises(ConfigError, match=r"holds .*last\.ckpt"):
        graft.build(*BUILT, folder=tmp_path / "built")


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("resume=auto", "graft.build starts no run"),
        ("trainer.devices=2", "trainer.devices=1"),
        ("optimizer.lrr=1", "Did you mean lr"),
    ],
)
def test_an_experiment_that_cannot_be_built_is_refused_and_leaves_no_folder(
    override: str, answer: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=answer):
        graft.build(*BUILT, "trainer.accelerator=cpu", override, f"paths.outputs={tmp_path}")
    assert [*tmp_path.glob("build/*")] == []


def test_a_loaded_network_predicts_paths_images_and_arrays_alike(digits_run: Path, tmp_path: Path) -> None:
    import numpy as np

    image = graft.compose(*WORDS).splits().test.load(3)
    image.save(tmp_path / "three.png")
    predictor = graft.load(digits_run)
    array = np.asarray(image)
    predictions = predictor.predict([tmp_path / "three.png", image, array, array[..., 0]], topk=2)
    assert [each.image for each in predictions] == [str(tmp_path / "three.png"), "image 1", "image 2", "image 3"]
    assert len({(each.classes, each.probabilities) for each in predictions}) == 1
    assert predictor.predict(np.stack([array, array]), topk=2)[1].probabilities == predictions[0].probabilities
    assert graft.predict(image, f"checkpoint={digits_run}", "topk=2")[0].classes == predictions[0].classes
    for wrong in (array / 255, [array, 3], None):
        with pytest.raises(DataError, match="uint8 array"):
            predictor.predict(wrong)  # type: ignore[arg-type]


def test_the_public_functions_are_listed_by_dir() -> None:
    assert {"build", "compose", "load", "predict", "train"} <= set(dir(graft))


def test_opening_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run \(no summary\.json\)"):
        graft.FinishedRun(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(DataError, match="this run is failed"):
        graft.FinishedRun(tmp_path)


def test_metrics_of_classes_with_any_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"status": "finished"}))
    table = 'step,"test/acc/a,b\u2028c"\n3,0.5\n'  # str.splitlines would break the line within the name
    (tmp_path / "metrics.csv").write_text(table, encoding="utf-8")
    assert graft.FinishedRun(tmp_path).curve("test/acc/a,b\u2028c") == ([3], [0.5])
