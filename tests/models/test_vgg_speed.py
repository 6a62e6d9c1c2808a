"""The VGG for small pictures: what its first layer computes, how its others begin, how its shifts learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import succeeded, train
from torch import nn
from torch.nn import functional as F

from graft.models import Recipe, build_network
from graft.models.vgg_speed import SHIFT_GAIN, ShiftNorm, VGGSpeed, Whitening

RECIPE = Recipe("vgg_speed")


def pictures(count: int = 64) -> torch.Tensor:
    """Neighbouring pixels and colours are alike, as in photographs."""
    smooth = F.avg_pool2d(torch.randn(count, 3, 34, 34), 3, stride=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True)


def test_whitened_patches_are_uncorrelated_and_come_with_their_negatives() -> None:
    torch.manual_seed(0)
    whitening, images = Whitening(), pictures()
    whitening.fit_to(images)
    out = whitening(images).detach().permute(1, 0, 2, 3).flatten(1).double()
    moments = out[:12] @ out[:12].T / out.shape[1]
    variances = torch.linalg.eigvalsh(F.unfold(images, 2).transpose(1, 2).flatten(0, 1).T.double().cov(correction=0))
    expected = variances.flip(0) / (variances.flip(0) + 5e-4)
    assert torch.allclose(moments, torch.diag(expected), atol=2e-2)
    assert torch.equal(whitening.weight[12:], -whitening.weight[:12])


def test_whitening_is_no_parameter_and_travels_in_the_state_dict() -> None:
    network, other = (build_network(RECIPE, 10) for _ in range(2))
    assert "features.whitening.weight" not in dict(network.named_parameters())
    network.fit_to(pictures())
    other.load_state_dict(network.state_dict())
    images = pictures(2)
    assert torch.equal(network.eval()(images), other.eval()(images))


def test_each_convolution_begins_by_handing_on_its_input() -> None:
    network = VGGSpeed(10)
    for block in (network.features.block1, network.features.block2, network.features.block3):
        for name in ("conv1", "conv2"):
            layer = getattr(block, name)
            maps = torch.randn(1, layer.in_channels, 5, 5)
            assert torch.allclose(layer(maps)[:, : layer.in_channels], maps, atol=1e-6)


def test_it_takes_any_side_from_nine_pixels_on() -> None:
    for side in (9, 32, 47):
        assert build_network(RECIPE, 7)(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_a_shift_learns_as_a_batchnorm_whose_bias_has_64_times_the_rate_and_a_64th_of_the_decay() -> None:
    torch.manual_seed(0)
    ours, theirs = ShiftNorm(4), nn.BatchNorm2d(4, momentum=0.4)
    theirs.weight.requires_grad_(False)
    usual: dict[str, Any] = {"lr": 0.01, "momentum": 0.85, "nesterov": True, "weight_decay": 0.1}
    ours_learns = torch.optim.SGD(ours.parameters(), **usual)
    theirs_learns = torch.optim.SGD([theirs.bias], **usual | {"lr": 0.64, "weight_decay": 0.1 / 64})
    for _ in range(5):
        maps, wanted = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
        for norm, optimizer in ((ours, ours_learns), (theirs, theirs_learns)):
            optimizer.zero_grad()
            F.mse_loss(norm(maps), wanted).backward()
            optimizer.step()
    assert torch.allclose(SHIFT_GAIN * ours.bias, theirs.bias, atol=1e-6)
    assert theirs.bias.abs().max() > 1e-3
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name)), name
    maps = torch.randn(2, 4, 3, 3)
    assert torch.allclose(ours.eval()(maps), theirs.eval()(maps), atol=1e-6)


SETTINGS = ("data=digits", "model=vgg_speed", "optimizer=sgd", "logger.tensorboard=false", "review=none", "trainer=cpu")
FAST = ("optimizer.lr=1", "optimizer.momentum=0.85", "optimizer.nesterov=true", "data.batch_size=128", "augment=none")


def whitening_of(folder: Path) -> torch.Tensor:
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return saved["state_dict"]["network.features.whitening.weight"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows digits."""
    words = (*SETTINGS, *FAST, "strategy=scratch", "scheduler=onecycle", "trainer.max_epochs=4")
    return succeeded(train(tmp_path_factory.mktemp("learned") / "run", *words)).folder


def test_a_run_whitens_by_its_training_images_and_learns_digits_in_four_epochs(learned: Path) -> None:
    import graft

    assert graft.FinishedRun(learned).metrics["test/acc"] > 0.95
    kernels = whitening_of(learned)
    assert not torch.equal(kernels[:12].flatten(1), torch.eye(12)), "as it was built, not fitted"


def test_a_transferred_network_keeps_the_whitening_its_weights_were_trained_with(learned: Path, tmp_path: Path) -> None:
    words = (*SETTINGS, *FAST, "data=faces", "data.shots=10", "strategy=feature_extract", "trainer.max_epochs=1")
    run = succeeded(train(tmp_path / "run", *words, f"model.weights={learned / 'checkpoints' / 'best.ckpt'}"))
    assert torch.equal(whitening_of(run.folder), whitening_of(learned))
