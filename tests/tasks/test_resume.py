"""Resuming a run in any folder: changed options are applied, or refused by name before anything is written."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY

import graft
from graft.config.resuming import compare
from graft.errors import ConfigError, DataError, TrainingError
from graft.learning.checkpoint_writing import ResumePoint

WORDS = (
    *TINY, "seed=1", "optimizer.lr=0.2", "scheduler=none", "trainer.max_epochs=4", "trainer.baseline=false",
    "trainer.log_every_n_steps=1", "logger.tensorboard=false", "callbacks.progress=none",
)  # fmt: skip


class Killed(BaseException):
    """As good as kill -9 to what is on disk."""


def train(folder: Path, *words: str) -> graft.FinishedRun:
    return graft.train(*words, folder=folder, echo=False)


def killed(folder: Path, *words: str, after: int = 3, step: int | None = None) -> Path:
    """A run that was killed at the end of epoch `after`, or after optimizer step `step`."""
    with pytest.MonkeyPatch.context() as patch:
        name = "on_train_epoch_end" if step is None else "on_train_batch_end"
        usual: Callable[..., None] = getattr(ResumePoint, name)

        def die(self: ResumePoint, trainer: Any, *others: Any) -> None:
            usual(self, trainer, *others)
            if trainer.current_epoch + 1 == after if step is None else trainer.global_step == step:
                raise Killed

        patch.setattr(ResumePoint, name, die)
        patch.setattr(ResumePoint, "_is_due", lambda *_: True)  # however long it takes on a busy machine
        with pytest.raises(Killed):
            train(folder, *words)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> graft.FinishedRun:
    """Four epochs, of which the first is the best."""
    run = train(tmp_path_factory.mktemp("whole") / "run", *WORDS)
    _, accuracies = run.curve("val/acc")
    assert accuracies.index(max(accuracies)) == 0
    return run


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed(tmp_path_factory.mktemp("killed") / "run", *WORDS)


@pytest.fixture
def part(killed_once: Path, tmp_path: Path) -> Path:
    """The same run, killed after its third epoch."""
    return Path(shutil.copytree(killed_once, tmp_path / "part"))


def require_the_same(one: graft.FinishedRun, other: graft.FinishedRun) -> None:
    assert one.metrics == other.metrics
    assert (one.folder / "metrics.csv").read_bytes() == (other.folder / "metrics.csv").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        expected, got = (torch.load(run.folder / "checkpoints" / name, weights_only=True) for run in (one, other))
        assert expected["global_step"] == got["global_step"]
        assert all(torch.equal(tensor, got["state_dict"][key]) for key, tensor in expected["state_dict"].items())


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def rates(folder: Path) -> list[float]:
    return torch_groups(folder / "checkpoints" / "last.ckpt", "lr")


def torch_groups(file: Path, key: str) -> list[float]:
    return [group[key] for group in torch.load(file, weights_only=True)["optimizer_states"][0]["param_groups"]]


# -- where the run lies --------------------------------------------------------------------------------------


def test_a_run_resumed_in_a_new_folder_equals_an_uninterrupted_one(
    whole: graft.FinishedRun, part: Path, tmp_path: Path
) -> None:
    before = contents(part)
    require_the_same(whole, train(tmp_path / "new", *WORDS, f"resume={part}"))
    assert contents(part) == before, "the run it came from is left as it was"


@pytest.mark.parametrize("how", ["moved", "copied", "another mount"])
def test_a_moved_run_keeps_its_best_checkpoint(how: str, whole: graft.FinishedRun, part: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.parent.mkdir()
    {"moved": shutil.move, "copied": shutil.copytree, "another mount": lambda old, new: new.symlink_to(old)}[how](
        part, elsewhere
    )
    require_the_same(whole, train(elsewhere, *WORDS, "resume=auto"))


def test_checkpoints_with_an_absolute_path_to_the_best_one_are_read(whole: graft.FinishedRun, part: Path) -> None:
    last = part / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    (best,) = [saved for saved in content["callbacks"].values() if saved.get("monitor")]
    old = "/gone/checkpoints/best.ckpt"
    best |= {"dirpath": "/gone/checkpoints", "best_model_path": old, "kth_best_model_path": old}
    best |= {"best_k_models": dict.fromkeys([old], *best["best_k_models"].values()), "last_model_path": ""}
    torch.save(content, last)
    require_the_same(whole, train(part, *WORDS, "resume=auto"))


def test_a_run_killed_between_its_last_epoch_and_its_test_resumes_with_the_test(
    whole: graft.FinishedRun, tmp_path: Path
) -> None:
    killed(tmp_path / "part", *WORDS, after=4)
    require_the_same(whole, train(tmp_path / "new", *WORDS, f"resume={tmp_path / 'part'}"))
    require_the_same(whole, train(tmp_path / "part", *WORDS, "resume=auto"))


def test_a_missing_best_checkpoint_is_detected_before_the_run_resumes(part: Path, tmp_path: Path) -> None:
    (part / "checkpoints" / "best.ckpt").unlink()
    before = contents(part)
    for folder, resume in ((part, "auto"), (tmp_path / "new", str(part))):
        with pytest.raises(TrainingError, match=r"best\.ckpt: missing\. last\.ckpt says .* with val/acc=0\.\d+, is in"):
            train(folder, *WORDS, f"resume={resume}")
    assert contents(part) == before
    assert not (tmp_path / "new").exists()


def test_a_best_checkpoint_of_another_run_is_detected(part: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", *WORDS, "trainer.max_steps=2")
    shutil.copy(other.checkpoint, part / "checkpoints" / "best.ckpt")
    with pytest.raises(TrainingError, match=r"it is of step 2, and last\.ckpt says that .* saved at step 6"):
        train(part, *WORDS, "resume=auto")


def test_after_a_resume_within_an_epoch_its_time_counts_from_the_resume(tmp_path: Path) -> None:
    words = (*WORDS, "callbacks.progress=lines", "callbacks.checkpoint_every_n_steps=2")
    killed(tmp_path, *words, step=8)
    train(tmp_path, *words, "resume=auto")
    seconds = re.findall(r"^epoch \d/4 .* ([\d.]+) s$", (tmp_path / "train.log").read_text(), re.MULTILINE)
    assert len(seconds) == 4
    assert all(float(each) < 1000 for each in seconds), "and not from the start of the machine"


# -- what has changed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["none", "cosine", "onecycle", "plateau"])
def test_an_overridden_learning_rate_is_used(scheduler: str, tmp_path: Path) -> None:
    words = (*WORDS, f"scheduler={scheduler}")
    part = killed(tmp_path / "part", *words, after=2)
    then = rates(part)
    resumed = train(tmp_path / "new", *words, f"resume={part}", "optimizer.lr=0.002", "trainer.log_every_n_steps=1")
    first = {row["step"]: row for row in resumed.table}[13]
    assert first["lr/head"] == pytest.approx(then[-1] / 100), "of the step after the checkpoint's"
    note = "resume: optimizer.lr: 0.2 in the checkpoint, 0.002 now: every learning rate, and its schedule, is scaled"
    assert any(entry.startswith(note) for entry in resumed.summary["notes"])


def test_an_overridden_weight_decay_is_used(part: Path) -> None:
    train(part, *WORDS, "resume=auto", "optimizer.weight_decay=0.25", "strategy.decay_norm_and_bias=true")
    assert set(torch_groups(part / "checkpoints" / "last.ckpt", "weight_decay")) == {0.25}


def test_a_learning_rate_that_differs_without_an_override_is_refused(part: Path) -> None:
    words = [word for word in WORDS if not word.startswith("optimizer.lr")]
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0\.2 continues as before, optimizer\.lr=0\.01 changes it"):
        train(part, *words, "resume=auto")


def test_more_epochs_equal_those_of_a_run_planned_that_way(tmp_path: Path) -> None:
    words = (*WORDS, "scheduler=cosine")
    longer = train(tmp_path / "longer", *words, "trainer.max_epochs=6")
    short = train(tmp_path / "short", *words, "trainer.max_epochs=3")
    resumed = train(tmp_path / "resumed", *words, f"resume={short.folder}", "trainer.max_epochs=6")
    planned = {row["step"]: row["lr/head"] for row in longer.table if "lr/head" in row}
    found = {row["step"]: row["lr/head"] for row in resumed.table if "lr/head" in row}
    assert found.keys() == planned.keys()
    assert [step for step in found if step > 18 and found[step] != planned[step]] == []
    assert any("the cosine schedule follows the new length" in note for note in resumed.summary["notes"])


def test_another_batch_size_changes_between_epochs_and_the_schedule_still_ends_with_the_run(tmp_path: Path) -> None:
    words = (*WORDS, "scheduler=cosine", "trainer.limit_train_batches=1.0", "data.batch_size=256")
    part = killed(tmp_path / "part", *words, after=2)
    resumed = train(part, *words, "resume=auto", "data.batch_size=128")
    assert rates(part)[0] == pytest.approx(0, abs=1e-9), "a cosine ends at 0 after the last step"
    assert resumed.summary["epochs"] == 4
    killed(tmp_path / "within", *words, "callbacks.checkpoint_every_n_steps=2", step=2)
    with pytest.raises(
        ConfigError, match=r"data\.batch_size: 256 .*, 128 now\n.*only change between epochs, .* within epoch 1"
    ):
        train(tmp_path / "within", *words, "resume=auto", "data.batch_size=128")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer=adamw", "optimizer._target_: torch.optim.SGD in the checkpoint, torch.optim.AdamW now"),
        ("optimizer.momentum=0.5", "optimizer.momentum"),
        ("model.table=[8,M,32,M]", "model.table"),
        ("scheduler=step", "scheduler._target_: null in the checkpoint, torch.optim.lr_scheduler.StepLR now"),
        ("augment=none", "augment.random_crop_padding"),
        ("loss.label_smoothing=0.1", "loss.label_smoothing: 0.0 in the checkpoint, 0.1 now"),
        ("callbacks.ema=0.9", "callbacks.ema: null in the checkpoint, 0.9 now"),
        ("optimized_metric=val/loss", "optimized_metric"),
        ("data.split_seed=9", "data.split_seed"),
        ("data.shots=20", "data.shots"),
        ("seed=8", "seed: 1 in the checkpoint, 8 now"),
        ("trainer.limit_val_batches=1", "trainer.limit_val_batches"),
    ],
)
def test_a_key_that_cannot_change_is_refused_by_name_and_nothing_is_written(word: str, key: str, part: Path) -> None:
    before = contents(part)
    with pytest.raises(ConfigError) as refusal:
        train(part, *WORDS, word, "resume=auto")
    assert f"\n  {key}" in str(refusal.value)
    assert "model.weights=" in str(refusal.value), "the way out"
    assert contents(part) == before


def test_a_key_that_cannot_change_is_refused_in_a_new_folder(part: Path, tmp_path: Path) -> None:
    before = contents(part)
    with pytest.raises(ConfigError, match=r"optimizer\._target_: torch\.optim\.SGD in .*, torch\.optim\.AdamW now"):
        train(tmp_path / "new", *WORDS, "optimizer=adamw", f"resume={part}")
    assert contents(part) == before
    assert not (tmp_path / "new").exists()


def test_onecycle_refuses_another_length(tmp_path: Path) -> None:
    words = (*WORDS, "scheduler=onecycle")
    killed(tmp_path, *words, after=2)
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs: 4 .*, 8 now\n +graft.*onecycle plans its whole"):
        train(tmp_path, *words, "trainer.max_epochs=8", "resume=auto")


def test_a_changed_key_without_a_rule_is_refused() -> None:
    fixed: dict[str, Any] = {"scheduler": {"_target_": None}}
    how: dict[str, Any] = {"epochs": 1, "within_epoch": False, "resume": "x", "way_out": ""}
    with pytest.raises(ConfigError, match=r"future\.key: 1 in the checkpoint, 2 now\n +not known to be safe"):
        compare(fixed | {"future": {"key": 1}}, fixed | {"future": {"key": 2}}, ["future.key"], **how)
    with pytest.raises(ConfigError, match=r"future\.key: \(not set\) in the checkpoint, 2 now"):
        compare(fixed, fixed | {"future": {"key": 2}}, (), **how)
    views = [{"views": {name: {"_target_": f"my_views.{name}"}}} for name in ("turned", "mirrored")]
    assert len(compare(fixed | views[0], fixed | views[1], (), **how)[0]) == 2, "of the test alone"
    assert compare(fixed | {"paths": {"data": "a"}}, fixed | {"paths": {"data": "b"}}, (), **how)[0] == []


# -- nothing to resume, or nothing left ------------------------------------------------------------------------


def test_a_complete_run_names_the_key_to_raise(whole: graft.FinishedRun, tmp_path: Path) -> None:
    before = contents(whole.folder)
    message = r"the run has reached trainer\.max_epochs=4; raise it to continue"
    with pytest.raises(ConfigError, match=message):
        train(whole.folder, *WORDS, "resume=auto")
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "new", *WORDS, f"resume={whole.folder}")
    with pytest.raises(ConfigError, match=r"reached trainer\.max_steps=20 \(24 done\); raise it"):
        train(tmp_path / "new", *WORDS, f"resume={whole.folder}", "trainer.max_epochs=9", "trainer.max_steps=20")
    assert contents(whole.folder) == before


def test_early_stopping_that_has_ended_a_run_can_be_raised(tmp_path: Path) -> None:
    words = (*WORDS, "callbacks.early_stopping=1")
    stopped = train(tmp_path / "run", *words)
    assert stopped.summary["epochs"] == 2
    with pytest.raises(ConfigError, match=r"callbacks\.early_stopping=1 has ended the run after epoch 2; raise it"):
        train(tmp_path / "run", *words, "resume=auto")
    assert train(tmp_path / "run", *words, "callbacks.early_stopping=9", "resume=auto").summary["epochs"] == 4


def test_a_best_checkpoint_holds_nothing_to_resume_from(part: Path, tmp_path: Path) -> None:
    best = part / "checkpoints" / "best.ckpt"
    with pytest.raises(
        TrainingError, match=r"(?s)no state of the optimizer.*resume=\S+last\.ckpt continues the run, or"
    ):
        train(tmp_path / "new", *WORDS, f"resume={best}")
    for name in ("last.ckpt", "previous.ckpt"):
        (part / "checkpoints" / name).unlink(missing_ok=True)
    with pytest.raises(TrainingError, match=r"holds best\.ckpt and no last\.ckpt"):
        train(tmp_path / "new", *WORDS, f"resume={part}")


def test_a_malformed_checkpoint_is_named(part: Path, tmp_path: Path) -> None:
    last = part / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for change in ({"loops": 7}, {"graft": {"config": 1}}, {"graft": {}}, {"callbacks": 3}):
        torch.save(content | change, tmp_path / "strange.ckpt")
        with pytest.raises(TrainingError, match=r"strange\.ckpt: not a checkpoint that a run can continue"):
            train(tmp_path / "new", *WORDS, f"resume={tmp_path / 'strange.ckpt'}")


# -- other data ------------------------------------------------------------------------------------------------


def test_a_run_of_an_older_version_is_refused_with_what_can_be_done_with_it(part: Path) -> None:
    checkpoint = part / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    config = content["graft"]["config"]
    config["optimizer"] = {"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}
    config["freeze"] = {"policy": "none", "schedule": None, "train": []}
    torch.save(content, checkpoint)
    with pytest.raises(TrainingError, match="older version") as refused:
        train(part, *WORDS, "resume=auto")
    message = str(refused.value)
    assert "optimizer.name and freeze.policy" in message
    best = part / "checkpoints" / "best.ckpt"
    assert f"graft evaluate checkpoint={best}" in message
    assert f"model.weights={best}" in message


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    root = tmp_path / "photos"
    for shade, name in enumerate(("ant", "bee", "cat")):
        for number in range(12):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (80 * shade, 5 * number, 0)).save(root / name / f"{number}.png")
    return root


def delete_half(photos: Path) -> None:
    for file in sorted(photos.rglob("*.png"))[::2]:
        file.unlink()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class that was renamed": (
        lambda photos: (photos / "ant").rename(photos / "dog"),
        r"added: dog; removed: ant",
    ),
    "an added class": (lambda photos: shutil.copytree(photos / "cat", photos / "dog"), r"added: dog"),
    "half of the images": (delete_half, r"the images are not those of the checkpoint"),
    "a file that moved to another class": (
        lambda photos: (photos / "ant" / "3.png").rename(photos / "bee" / "x.png"),
        r"the images are not those of the checkpoint",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused_and_nothing_is_written(change: str, photos: Path, tmp_path: Path) -> None:
    words = (*WORDS, "data=folder", f"data.root={photos}", "data.batch_size=4")
    part = killed(tmp_path / "part", *words, after=2)
    alter, message = CHANGES[change]
    alter(photos)
    before = contents(part)
    with pytest.raises(DataError, match=message):
        train(part, *words, "resume=auto")
    assert contents(part) == before


def test_the_same_images_in_another_folder_are_the_same_data(photos: Path, tmp_path: Path) -> None:
    words = (*WORDS, "data=folder", "data.batch_size=4")
    part = killed(tmp_path / "part", *words, f"data.root={photos}", after=2)
    photos.rename(tmp_path / "moved")
    assert train(part, *words, f"data.root={tmp_path / 'moved'}", "resume=auto").summary["epochs"] == 4
