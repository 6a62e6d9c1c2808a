"""Distillation: the teacher's probabilities as it computes them itself, learned by the student and stored nowhere."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import SMALL

import graft
from graft.config.schema import LossConfig
from graft.config.task import MULTI_LABEL, SINGLE_LABEL
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, TrainingError
from graft.learning.distillation import Teacher
from graft.learning.inference import Inference
from graft.learning.restore import from_checkpoint
from graft.models.normalise import Normalise
from graft.system.device import Device

STUDENT = (
    *SMALL, "model.batch_norm=false", "augment=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1", "trainer.test=false", "trainer.baseline=false", "review=none", "logger=csv",
    "callbacks.progress=none", "callbacks.checkpoint=last", "data.num_workers=0", "model.dropout=0",
)  # fmt: skip


def test_a_teacher_sees_the_images_in_its_own_normalisation_and_answers_in_the_students_order(digits_run: Path) -> None:
    restored = from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    size = restored.preprocessing.input_size
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    logits = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False)(images)
    ours = Preprocessing(size, size, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    classes = restored.classes[::-1]
    both = [restored, replace(restored, classes=restored.classes)]
    teacher = Teacher(both, SINGLE_LABEL, classes, ours, temperature=3.0, alpha=0.5)
    probabilities = teacher.probabilities(Normalise(ours)(images))
    torch.testing.assert_close(probabilities, (logits / 3).softmax(1).flip(1), rtol=1e-3, atol=1e-5)
    assert not restored.network.training

    student = torch.randn(4, len(classes))
    expected = 9 * (probabilities * (probabilities.log() - (student / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(teacher.loss(student, probabilities), expected)
    smaller = Teacher(both, SINGLE_LABEL, classes, replace(ours, input_size=size // 2), 1.0, 0.5)
    assert smaller.probabilities(torch.zeros(2, 3, size // 2, size // 2)).shape == (2, len(classes)), "resized for it"


def test_labels_are_learned_as_decisions_of_their_own(digits_run: Path) -> None:
    restored = replace(from_checkpoint(digits_run / "checkpoints" / "best.ckpt"), task=MULTI_LABEL)
    ours = restored.preprocessing
    images = torch.randn(4, 3, *ours.size)
    teacher = Teacher([restored], MULTI_LABEL, restored.classes, ours, temperature=2.0, alpha=0.5)
    probabilities = teacher.probabilities(images)
    with torch.no_grad():
        torch.testing.assert_close(probabilities, (restored.network(images) / 2).sigmoid(), rtol=1e-3, atol=1e-5)
    student = torch.randn(4, len(restored.classes))
    taught, own = torch.distributions.Bernoulli(probabilities), torch.distributions.Bernoulli(logits=student / 2)
    expected = 4 * torch.distributions.kl_divergence(taught, own).mean()
    torch.testing.assert_close(teacher.loss(student, probabilities), expected)
    with pytest.raises(ConfigError, match="is a multi-label network, and the data are single-label"):
        Teacher([restored], SINGLE_LABEL, restored.classes, ours, 1.0, 0.5)


def test_a_student_learns_from_both_and_its_checkpoint_does_not_contain_the_teacher(
    digits_run: Path, tmp_path: Path
) -> None:
    def trained(name: str, *words: str) -> dict[str, torch.Tensor]:
        run = graft.train(*STUDENT, *words, folder=tmp_path / name, echo=False)
        assert run.checkpoint is not None
        return torch.load(run.checkpoint, weights_only=True)["state_dict"]

    distill = ("loss=distill", f"loss.teacher={digits_run}")
    plain, labels = trained("plain"), trained("labels", *distill, "loss.alpha=0")
    assert labels.keys() == plain.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(labels[name], expected, msg=name)
    taught = trained("taught", *distill, "loss.alpha=0.75")
    assert any(not torch.allclose(taught[name], value) for name, value in plain.items())
    (rows,) = (list(csv.DictReader(file.open())) for file in (tmp_path / "taught").glob("metrics.csv"))
    for row in rows:
        if row["train/loss_step"]:
            main, distilled = float(row["train/loss_main"]), float(row["train/loss_distill"])
            assert float(row["train/loss_step"]) == pytest.approx(0.25 * main + 0.75 * distilled, rel=1e-5)

    copied = tmp_path / "teacher.ckpt"
    content = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save(content | {"epoch": 7}, copied)
    with pytest.raises(TrainingError, match="is not the teacher"):
        trained("more", "loss=distill", "loss.alpha=0.75", f"loss.teacher={copied}", f"resume={tmp_path / 'taught'}",
                "trainer.max_epochs=2")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loss.teacher=NOWHERE",), "loss.teacher=.*NOWHERE"),
        (("loss.teacher=RUN", "loss.temperature=0"), "loss.temperature=0"),
        (("loss.teacher=RUN", "data=faces"), "only in the teacher"),
        (("loss.teacher=RUN", "cache=features", "strategy=feature_extract", "model.weights=RUN/checkpoints/best.ckpt",
          "model=vgg_mini"), "cache=features"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_refused(
    words: tuple[str, ...], message: str, digits_run: Path, tmp_path: Path
) -> None:
    named = [word.replace("RUN", str(digits_run)).replace("NOWHERE", str(tmp_path / "NOWHERE")) for word in words]
    common = [word for word in STUDENT if word.partition("=")[0] not in ("strategy", "model")]
    student = STUDENT if "model=vgg_mini" not in words else [word for word in common if not word.startswith("model.")]
    with pytest.raises((ConfigError, TrainingError), match=message):
        graft.train(*student, "loss=distill", *named, folder=tmp_path / "run", echo=False)


def test_alpha_of_a_loss_without_a_teacher_is_its_own_argument() -> None:
    assert LossConfig("my.Loss", alpha=0.25).arguments() == {"_target_": "my.Loss", "alpha": 0.25}
    assert LossConfig("my.Loss", teacher="run", alpha=0.25).arguments() == {"_target_": "my.Loss"}
