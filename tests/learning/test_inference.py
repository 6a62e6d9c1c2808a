"""The views of test-time augmentation, their precision, and the most probable classes."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError
from graft.learning import views
from graft.learning.inference import Inference, most_probable
from graft.learning.restore import Restored
from graft.learning.views import mean_of_views, with_margin
from graft.models import Recipe
from graft.system.device import Device, inference_device

PREPROCESSING = Preprocessing(input_size=4, resize_size=6, mean=(0, 0, 0), std=(1, 1, 1))


class Sums(nn.Module):
    """A network that tells what it was shown: per channel the first and the last pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images[:, :1, 0, 0], images[:, :1, -1, -1]], 1) * 10


def built(*names: str) -> dict[str, views.View]:
    """The views of Graft with these names."""
    return {name: getattr(views, name) for name in names}


def variants(images: torch.Tensor, size: int, *names: str) -> list[torch.Tensor]:
    """What the network sees of `images` in these views."""
    seen: list[torch.Tensor] = []

    def logits_of(variant: torch.Tensor) -> torch.Tensor:
        seen.append(variant)
        return torch.zeros(len(variant), 2)

    mean_of_views(logits_of, images, built(*names), (size, size))
    return seen


def test_all_views_are_torchvisions_ten_crops() -> None:
    images = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    ours = variants(images, 4, "identity", "hflip", "corners", "hflip_corners")
    theirs = F.ten_crop(images, [4, 4])
    assert len(ours) == 10
    assert all(any(torch.equal(view, crop) for crop in theirs) for view in ours)
    assert len({view.numpy().tobytes() for view in ours}) == 10


def test_corner_crops_cover_the_resized_centre_and_need_a_margin() -> None:
    assert with_margin(PREPROCESSING, built("identity", "hflip")) == PREPROCESSING
    wide = with_margin(PREPROCESSING, built("identity", "corners"))
    assert (wide.input_size, wide.resize_size) == (6, 6)
    with pytest.raises(ConfigError, match="margin"):
        with_margin(Preprocessing(input_size=32, resize_size=32), built("corners"))


def test_the_softmax_of_several_views_is_the_mean_of_theirs() -> None:
    restored = Restored(Sums(), Recipe("vgg_mini"), ("a", "b"), PREPROCESSING, "")
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    infer = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False, views=built("identity", "hflip"))
    single = Inference(restored, Device("cpu", 1, "32-true"), channels_last=False)
    mean = (single(images).softmax(1) + single(images.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(infer(images).softmax(1), mean)
    assert not torch.allclose(mean, single(images).softmax(1))


def test_a_network_may_overwrite_its_earlier_output() -> None:
    """As one that replays a CUDA graph does."""
    output = torch.empty(2, 3)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return output.copy_(images.float().sum((2, 3)))

    images = torch.rand(2, 3, 4, 4)
    two = built("identity", "corners")
    fresh = mean_of_views(lambda seen: seen.float().sum((2, 3)), images, two, (4, 4))
    assert torch.equal(mean_of_views(logits_of, images, two, (4, 4)), fresh)


def test_inference_uses_the_options_of_training_unless_overridden() -> None:
    trained = {"accelerator": "cpu", "precision": "bf16-mixed", "channels_last": False, "devices": 4}
    nothing = {"accelerator": None, "precision": None, "channels_last": None}
    assert inference_device(trained, nothing) == (Device("cpu", 1, "bf16-mixed"), False)
    assert inference_device(trained, nothing | {"precision": "32-true"}) == (Device("cpu", 1, "32-true"), False)
    if not torch.cuda.is_available():
        device, _ = inference_device(trained | {"accelerator": "gpu"}, nothing)
        assert device.accelerator != "gpu", "a run of a GPU can be looked at without one"
        with pytest.raises(ConfigError, match="no GPU"):
            inference_device(trained, nothing | {"accelerator": "gpu"})


def test_a_training_only_precision_is_refused() -> None:
    restored = Restored(Sums(), Recipe("vgg_mini"), ("a", "b"), PREPROCESSING, "")
    with pytest.raises(ConfigError, match=r"trainer\.precision=64-true"):
        Inference(restored, Device("cpu", 1, "64-true"), channels_last=False)


def test_a_custom_view_is_averaged_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_views.py").write_text(
        "def rotations(images, turns=(1,)):\n    return [images.rot90(turn, (2, 3)) for turn in turns]\n\n\n"
        "def small(images):\n    return [images[..., :2, :2]]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    nodes = {
        "identity": {"_target_": "graft.learning.views.identity"},
        "rotations": {"_target_": "my_views.rotations", "turns": [1, 3]},
    }
    mine = views.build_views(True, nodes)
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean = mean_of_views(lambda seen: seen.float()[:, 0, 0, :2], images, mine, (4, 4)).softmax(1)
    turned = [images, images.rot90(1, (2, 3)), images.rot90(3, (2, 3))]
    torch.testing.assert_close(mean, sum(each.float()[:, 0, 0, :2].softmax(1) for each in turned) / 3)
    assert views.build_views(False, nodes) == views.IDENTITY
    with pytest.raises(ConfigError, match=r"views\.small: must return .*\[2, 3, 4, 4\]"):
        mean_of_views(
            lambda seen: seen, images, views.build_views(True, {"small": {"_target_": "my_views.small"}}), (4, 4)
        )


def test_of_equal_logits_the_class_that_accuracy_counts_comes_first() -> None:
    logits = torch.randint(0, 3, (500, 10), generator=torch.Generator().manual_seed(0)).float()
    probabilities, labels = most_probable(logits, 4)
    assert torch.equal(labels[:, 0], logits.argmax(1))
    assert torch.equal(probabilities, logits.softmax(1).gather(1, labels))
    assert (probabilities.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 4 for row in labels.tolist())


def test_topk_is_limited_to_the_number_of_classes() -> None:
    assert most_probable(torch.zeros(1, 2), 5)[1].tolist() == [[0, 1]]
