"""Training accuracy far below validation accuracy is put down to the augmentation, and only to that."""

import pytest

from graft.config.schema import AugmentConfig, CropConfig
from graft.tasks.fit import notes_on_underfitting

CROPS = AugmentConfig(random_resized_crop=CropConfig())


@pytest.mark.parametrize(
    ("augment", "trained", "validated", "noted"),
    [
        (CROPS, 0.71, 0.94, True),
        (CROPS, 0.90, 0.94, False),
        (AugmentConfig(), 0.71, 0.94, False),
        (AugmentConfig(random_resized_crop=CropConfig(), mixup=0.2), 0.71, 0.94, False),
        (CROPS, None, 0.94, False),
    ],
)
def test_a_note_blames_the_augmentation_for_a_low_training_accuracy(
    augment: AugmentConfig, trained: float | None, validated: float, noted: bool
) -> None:
    metrics = {"val/acc": validated} | ({} if trained is None else {"train/acc": trained})
    notes = notes_on_underfitting(augment, metrics)
    assert [("0.71" in note and "0.94" in note) for note in notes] == [True] * noted
