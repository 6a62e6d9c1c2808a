"""The views of test-time augmentation, their precision, and the most probable classes."""

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from graft.config import checks as validation
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError
from graft.learning.inference import Inference, most_probable
from graft.learning.restore import Restored
from graft.learning.views import VIEWS, mean_of_views, with_margin
from graft.models import Recipe
from graft.system.device import Device, as_trained

PREPROCESSING = Preprocessing(input_size=4, resize_size=6, mean=(0, 0, 0), std=(1, 1, 1))


class Sums(nn.Module):
    """A network that tells what it was shown: per channel the first and the last pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images[:, :1, 0, 0], images[:, :1, -1, -1]], 1) * 10


def test_all_views_are_torchvisions_ten_crops() -> None:
    images = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    four = ("identity", "hflip", "corners", "hflip_corners")
    ours = [view for name in four for view in VIEWS[name](images, 4)]
    theirs = F.ten_crop(images, [4, 4])
    assert len(ours) == 10
    assert all(any(torch.equal(view, crop) for crop in theirs) for view in ours)
    assert len({view.numpy().tobytes() for view in ours}) == 10


def test_shifts_are_crops_of_the_mirrored_border() -> None:
    """As in the source: padded by a pixel, cropped at both ends of the diagonal."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    padded = F.pad(images, [1], padding_mode="reflect")
    theirs = [padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
    ours = VIEWS["shifts"](images, 32)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    mirrored = VIEWS["hflip_shifts"](images, 32)
    assert all(torch.equal(one, other.flip(3)) for one, other in zip(mirrored, theirs, strict=True))
    further = VIEWS["shifts"](torch.arange(224).expand(1, 3, 224, 224), 224)
    assert [view[0, 0, 0, 100].item() for view in further] == [93, 107]


def test_corners_see_the_whole_resized_centre_and_need_a_margin() -> None:
    assert with_margin(PREPROCESSING, ["identity", "hflip"]) == PREPROCESSING
    wide = with_margin(PREPROCESSING, ["identity", "corners"])
    assert (wide.input_size, wide.resize_size) == (6, 6)
    with pytest.raises(ConfigError, match="margin"):
        with_margin(Preprocessing(input_size=32, resize_size=32), ["corners"])


def test_the_softmax_of_several_views_is_the_mean_of_theirs() -> None:
    restored = Restored(Sums(), Recipe("vgg_mini"), ("a", "b"), PREPROCESSING, "")
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    infer = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False, views=["identity", "hflip"])
    single = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False)
    mean = (single(images).softmax(1) + single(images.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(infer(images).softmax(1), mean)
    assert not torch.allclose(mean, single(images).softmax(1))


def test_a_network_may_overwrite_what_it_gave_before() -> None:
    """As one that replays a CUDA graph does."""
    given = torch.empty(2, 3)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return given.copy_(images.float().sum((2, 3)))

    images = torch.rand(2, 3, 4, 4)
    images[:, :, 0] *= 5  # what the shifts mirror differs from what they lose
    views = ("identity", "shifts")
    fresh = mean_of_views(lambda seen: seen.float().sum((2, 3)), images, views, 4)
    assert torch.equal(mean_of_views(logits_of, images, views, 4), fresh)


def test_what_training_had_is_kept_unless_asked_otherwise() -> None:
    trained = {"accelerator": "cpu", "precision": "bf16-mixed", "channels_last": False, "devices": 4}
    nothing = {"accelerator": None, "precision": None, "channels_last": None}
    assert as_trained(trained, nothing) == (Device("cpu", 1, "bf16-mixed"), False)
    assert as_trained(trained, nothing | {"precision": "32-true"}) == (Device("cpu", 1, "32-true"), False)
    if not torch.cuda.is_available():
        device, _ = as_trained(trained | {"accelerator": "gpu"}, nothing)
        assert device.accelerator != "gpu", "a run of a GPU can be looked at without one"
        with pytest.raises(ConfigError, match="no GPU"):
            as_trained(trained, nothing | {"accelerator": "gpu"})


def test_a_precision_for_training_alone_is_refused() -> None:
    restored = Restored(Sums(), Recipe("vgg_mini"), ("a", "b"), PREPROCESSING, "")
    with pytest.raises(ConfigError, match=r"trainer\.precision=64-true"):
        Inference(restored, Device("cpu", 1, "64-true"), channels_last=False)


def test_every_view_can_be_asked_for() -> None:
    """The configuration names them without importing torch."""
    assert tuple(VIEWS) == validation.VIEWS


def test_of_equal_logits_the_class_that_accuracy_counts_comes_first() -> None:
    logits = torch.randint(0, 3, (500, 10), generator=torch.Generator().manual_seed(0)).float()
    probabilities, labels = most_probable(logits, 4)
    assert torch.equal(labels[:, 0], logits.argmax(1))
    assert torch.equal(probabilities, logits.softmax(1).gather(1, labels))
    assert (probabilities.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 4 for row in labels.tolist())


def test_no_more_classes_than_there_are() -> None:
    assert most_probable(torch.zeros(1, 2), 5)[1].tolist() == [[0, 1]]
