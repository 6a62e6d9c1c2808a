"""examples/cifar10_speed: its parts, and its recipe trained, resumed and evaluated by the commands of its README."""

import copy
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cifar10_speed.augment import AlternatingFlip
from cifar10_speed.lookahead import Lookahead
from cifar10_speed.network import SHIFT_GAIN, ShiftNorm, VGGSpeed, Whitening
from cifar10_speed.views import hflip_shifts, shifts
from commands import ROOT, Finished, command, succeeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import graft
from graft.data.augment import Augment
from graft.data.datasets import FileDataset, collate
from graft.data.decoding import decode_resident
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import ResidentDataset
from graft.errors import TrainingError
from graft.learning.checkpoint_writing import ResumePoint
from graft.models import Recipe, build_network
from graft.models.weights import default_preprocessing
from graft.transfer.stages import stages_of

EXAMPLE = ROOT / "examples" / "cifar10_speed"
RECIPE = Recipe("vgg_speed", target="cifar10_speed.network.VGGSpeed")


# -- the network ---------------------------------------------------------------------------------------------------


def photographs(count: int = 64) -> Tensor:
    """Neighbouring pixels and colours are alike, as in photographs."""
    smooth = F.avg_pool2d(torch.randn(count, 3, 34, 34), 3, stride=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True)


def test_whitened_patches_are_uncorrelated_and_come_with_their_negatives() -> None:
    torch.manual_seed(0)
    whitening, images = Whitening(), photographs()
    whitening.fit_to(images)
    out = whitening(images).detach().permute(1, 0, 2, 3).flatten(1).double()
    moments = out[:12] @ out[:12].T / out.shape[1]
    variances = torch.linalg.eigvalsh(F.unfold(images, 2).transpose(1, 2).flatten(0, 1).T.double().cov(correction=0))
    expected = variances.flip(0) / (variances.flip(0) + 5e-4)
    assert torch.allclose(moments, torch.diag(expected), atol=2e-2)
    assert torch.equal(whitening.weight[12:], -whitening.weight[:12])


def test_whitening_is_not_a_parameter_and_is_saved_in_the_state_dict() -> None:
    network, other = (build_network(RECIPE, 10) for _ in range(2))
    assert "features.whitening.weight" not in dict(network.named_parameters())
    network.fit_to(photographs())  # type: ignore[operator]
    other.load_state_dict(network.state_dict())
    images = photographs(2)
    assert torch.equal(network.eval()(images), other.eval()(images))


def test_each_convolution_is_initialised_as_the_identity() -> None:
    network: Any = VGGSpeed(10)
    for block in (network.features.block1, network.features.block2, network.features.block3):
        for name in ("conv1", "conv2"):
            layer = getattr(block, name)
            maps = torch.randn(1, layer.in_channels, 5, 5)
            assert torch.allclose(layer(maps)[:, : layer.in_channels], maps, atol=1e-6)


def test_the_network_accepts_images_of_nine_pixels_and_more() -> None:
    for side in (9, 32, 47):
        assert build_network(RECIPE, 7)(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_its_stages_cover_each_parameter_once_and_its_images_are_normalised_as_cifar10() -> None:
    network = build_network(RECIPE, 10)
    stages = stages_of(network)
    assert [stage.name for stage in stages] == ["block1", "block2", "block3", "head"]
    for name, _ in network.named_parameters():
        assert sum(stage.holds(name) for stage in stages) == 1, name
    preprocessing = default_preprocessing(RECIPE, None)
    assert (preprocessing.input_size, preprocessing.resize_size) == (32, 32)
    assert preprocessing.mean == (0.4914, 0.4822, 0.4465)


def test_a_shift_learns_as_a_batchnorm_bias_with_64_times_the_rate_and_a_64th_of_the_decay() -> None:
    torch.manual_seed(0)
    ours, theirs = ShiftNorm(4), nn.BatchNorm2d(4, momentum=0.4)
    theirs.weight.requires_grad_(False)
    usual: dict[str, Any] = {"lr": 0.01, "momentum": 0.85, "nesterov": True, "weight_decay": 0.1}
    ours_learns = torch.optim.SGD(ours.parameters(), **usual)
    theirs_learns = torch.optim.SGD([theirs.bias], **usual | {"lr": 0.64, "weight_decay": 0.1 / 64})
    for _ in range(5):
        maps, targets = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
        for norm, optimizer in ((ours, ours_learns), (theirs, theirs_learns)):
            optimizer.zero_grad()
            F.mse_loss(norm(maps), targets).backward()
            optimizer.step()
    assert torch.allclose(SHIFT_GAIN * ours.bias, theirs.bias, atol=1e-6)
    assert theirs.bias.abs().max() > 1e-3
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name)), name
    maps = torch.randn(2, 4, 3, 3)
    assert torch.allclose(ours.eval()(maps), theirs.eval()(maps), atol=1e-6)


# -- Lookahead -----------------------------------------------------------------------------------------------------


class Steps(Dataset[int]):
    """The numbers of the training steps, from 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index + 1


class Training(pl.LightningModule):
    """Trains `network` on `loss(network, step)`; `after` is called with the step after it, before any callback of it.

    Attributes:
        states: the network's state dict after each step, Lookahead's update included.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Any, int], Tensor],
        optimizer: Callable[[Any], torch.optim.Optimizer],
    ) -> None:
        super().__init__()
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.states: list[dict[str, Tensor]] = []

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.loss(self.network, int(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.network.parameters())


class Recorder(pl.Callback):
    """Appends the network's state to `module.states`; comes after Lookahead."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.states.append(copy.deepcopy(pl_module.network.state_dict()))


def fit(training: Training, steps: int, *callbacks: pl.Callback, **options: Any) -> list[dict[str, Tensor]]:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, Recorder()], **options,
    )  # fmt: skip
    trainer.fit(training, DataLoader(Steps(steps)))
    return training.states


class Parabola(nn.Module):
    """Half the sum of the squares of its weight."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return (self.weight**2).sum() / 2


def descent(steps: int, *callbacks: pl.Callback, **options: Any) -> list[float]:
    """The weight of a parabola after each batch of gradient descent at a learning rate of 0.4."""
    training = Training(Parabola(1.0), lambda parabola, _: parabola(), lambda weights: torch.optim.SGD(weights, lr=0.4))
    return [state["weight"].item() for state in fit(training, steps, *callbacks, **options)]


def test_lookahead_is_the_formula_of_its_source() -> None:
    fast, slow, expected = 1.0, None, []
    for step in range(1, 12):
        fast -= 0.4 * fast
        if step % 3 == 0 or step == 11:
            slow = fast if slow is None else slow
            decay = 0.95**3 * (step / 11) ** 3
            fast = slow = decay * slow + (1 - decay) * fast
        expected.append(fast)
    assert descent(11, Lookahead(every=3)) == pytest.approx(expected, rel=1e-5)
    assert descent(11)[-1] != pytest.approx(expected[-1], rel=1e-2)


def test_lookahead_averages_the_statistics_of_batch_norm_with_the_weights() -> None:
    """Otherwise the averaged weights would be used with the statistics of the others."""

    def loss(norm: nn.BatchNorm1d, step: int) -> Tensor:
        mean = 4.0 * step - 2  # 2, then 6
        return norm(torch.tensor([[mean - 1], [mean + 1]])).sum()

    training = Training(nn.BatchNorm1d(1, momentum=1.0), loss, lambda weights: torch.optim.SGD(weights, lr=0.1))
    first, second = fit(training, 2, Lookahead(every=1))
    decay = 0.95
    assert first["running_mean"].item() == pytest.approx(2.0)
    assert second["running_mean"].item() == pytest.approx(decay * 2 + (1 - decay) * 6)
    assert second["num_batches_tracked"] == 2


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_lookahead_leaves_frozen_layers_to_the_bit_and_includes_them_once_they_train(
    kind: Callable[..., torch.optim.Optimizer],
) -> None:
    network = nn.ModuleDict({"trained": nn.Linear(5, 1), "frozen": nn.BatchNorm1d(5), "later": nn.Linear(5, 1)})
    network["frozen"].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())

    def loss(network: nn.ModuleDict, step: int) -> Tensor:
        seen = network["frozen"].eval()(torch.randn(3, 5))
        return network["trained"](seen).sum() + (network["later"](seen).sum() if step > 4 else 0)

    training = Training(network, loss, lambda weights: kind(weights, lr=0.1, weight_decay=0.1))
    for step, state in enumerate(fit(training, 8, Lookahead(every=2)), start=1):
        changed = {name.partition(".")[0] for name in before if not torch.equal(state[name], before[name])}
        assert changed == ({"trained", "later"} if step > 4 else {"trained"}), step


def test_lookahead_does_nothing_in_a_batch_without_an_optimizer_step() -> None:
    weights = descent(4, Lookahead(every=1), accumulate_grad_batches=2)
    assert weights[0] == 1
    assert weights[1] == weights[2] != weights[3]


def test_lookahead_refuses_to_resume_a_training_of_another_length() -> None:
    lookahead = Lookahead(every=1)
    lookahead.load_state_dict({"steps": 5, "averages": {}})
    with pytest.raises(TrainingError, match="has 8 steps now and had 5"):
        descent(8, lookahead)


# -- flips and views -----------------------------------------------------------------------------------------------

SIZE = 12
SMALL = Preprocessing(input_size=SIZE, resize_size=SIZE)
FLIP = {"_target_": "cifar10_speed.augment.AlternatingFlip"}
AUGMENT = Augment(random_crop_padding=2, transforms=(FLIP,))


def images_in_memory(count: int = 40) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageSet([str(index) for index in range(count)], np.arange(count) % 3, pixels=pixels)


def in_files(augment: Augment) -> FileDataset:
    return FileDataset(images_in_memory(), SMALL, augment=augment, seed=3)


def in_a_block(augment: Augment, device: torch.device | None = None) -> ResidentDataset:
    images = images_in_memory()
    pixels = decode_resident(images, SMALL)
    return ResidentDataset(pixels, images.labels, SMALL, augment=augment, seed=3, device=device)


def of_epoch(dataset: FileDataset | ResidentDataset, epoch: int) -> Tensor:
    batch: Any = dataset.__getitems__([(epoch, index) for index in range(len(dataset))])
    return (collate(batch) if isinstance(dataset, FileDataset) else batch).images


def test_two_epochs_show_each_image_from_both_sides() -> None:
    first, second, third = (of_epoch(in_a_block(Augment(transforms=(FLIP,))), epoch) for epoch in range(3))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    plain = torch.from_numpy(images_in_memory().pixels).permute(0, 3, 1, 2)
    assert 10 <= (first == plain).flatten(1).all(1).sum() <= 30, "half of them begin mirrored"


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_images_flipped_singly_and_in_batches_are_equal_to_the_bit(device: torch.device | None) -> None:
    for epoch in range(3):
        one_by_one, batch = of_epoch(in_files(AUGMENT), epoch), of_epoch(in_a_block(AUGMENT, device), epoch)
        assert torch.equal(one_by_one, batch)
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_flip_depends_on_seed_epoch_and_index_alone() -> None:
    images = torch.from_numpy(images_in_memory().pixels).permute(0, 3, 1, 2)
    indices, flip = np.arange(40), AlternatingFlip()
    whole = flip.batch(images, seed=1, epoch=5, indices=indices)
    part = flip.batch(images[30:], seed=1, epoch=5, indices=indices[30:])
    assert torch.equal(whole[30:], part)
    assert not torch.equal(whole, flip.batch(images, seed=2, epoch=5, indices=indices))


def test_shifts_are_crops_of_the_reflected_border() -> None:
    """As in the source: padded by a pixel, cropped at both ends of the diagonal."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    padded = F.pad(images, [1] * 4, mode="reflect")
    theirs = [padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
    assert all(torch.equal(one, other) for one, other in zip(shifts(images), theirs, strict=True))
    assert all(torch.equal(one, other.flip(3)) for one, other in zip(hflip_shifts(images), theirs, strict=True))
    columns = torch.arange(224).expand(1, 3, 224, 224)
    assert [view[0, 0, 0, 100].item() for view in shifts(columns)] == [93, 107]


# -- the recipe ----------------------------------------------------------------------------------------------------

PRESET = (
    f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]", "experiment=cifar10_speed", "data=faces", "data.batch_size=8",
    "data.shots=20", "trainer=cpu", "trainer.max_epochs=3", "logger=csv",
    "callbacks.lookahead.every=2", "callbacks.progress=none",
)  # fmt: skip
VIEWS = ["identity", "hflip", "shifts", "hflip_shifts"]


class Killed(BaseException):
    """Ends a run as kill -9 does, as far as the disk is concerned."""


def train(folder: Path, *words: str) -> graft.FinishedRun:
    return graft.train(*PRESET, *words, folder=folder, echo=False)


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> graft.FinishedRun:
    """The recipe, for three epochs of five steps each."""
    return train(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    "words", [(), pytest.param(("data.resident_gb=0", "data.num_workers=0"), marks=pytest.mark.slow)]
)
def test_the_recipe_killed_and_resumed_equals_an_uninterrupted_run_to_the_bit(
    words: Sequence[str], whole: graft.FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it reads its images one by one."""
    usual = ResumePoint.on_train_batch_end

    def die(self: ResumePoint, trainer: Any, *others: Any) -> None:
        usual(self, trainer, *others)
        if trainer.global_step == 7:
            raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(ResumePoint, "on_train_batch_end", die)
        killing.setattr(ResumePoint, "_is_due", lambda *_: True)
        with pytest.raises(Killed):
            train(tmp_path / "run", "callbacks.checkpoint_every_n_steps=1", *words)
    resumed = train(tmp_path / "run", "callbacks.checkpoint_every_n_steps=1", *words, "resume=auto")
    expected, got = saved(whole.folder), saved(resumed.folder)
    assert all(torch.equal(tensor, got["state_dict"][name]) for name, tensor in expected["state_dict"].items())
    averages, resumed_averages = (state["callbacks"]["Lookahead"]["averages"] for state in (expected, got))
    assert averages
    assert all(torch.equal(tensor, resumed_averages[name]) for name, tensor in averages.items())
    assert resumed.metrics == whole.metrics


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `graft` command as it is installed: a script in a separate folder."""
    file = tmp_path_factory.mktemp("bin") / "graft"
    file.write_text("from graft.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    return file


def in_folder(cwd: Path, script: Path, *words: str, fresh: bool = False, **environment: str) -> Finished:
    """`graft WORDS` in the working directory `cwd`."""
    return command(cwd / "any", str(script), *words, fresh=fresh, **environment)


def test_a_checkpoint_of_the_recipe_is_evaluated_in_its_views_if_the_package_is_trusted(
    whole: graft.FinishedRun, script: Path, tmp_path: Path
) -> None:
    words = ("evaluate", f"checkpoint={whole.folder}", f"hydra.run.dir={tmp_path / 'out'}")
    refused = in_folder(EXAMPLE, script, *words)
    assert refused.code == 1
    assert "trust=[cifar10_speed]" in refused.err
    succeeded(in_folder(EXAMPLE, script, *words, "trust=[cifar10_speed]"))
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["views"] == VIEWS
    for name in ("test/acc", "test/loss"):
        assert result["metrics"][name] == whole.metrics[name]


def readme_commands() -> list[tuple[Path, list[str]]]:
    """(working directory, words) of each command in the example's README."""
    found: list[tuple[Path, list[str]]] = []
    cwd = ROOT
    for block in re.findall(r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["cd"]:
                cwd = ROOT / words[1]
            elif words:
                found.append((cwd, words))
    return found


def test_the_commands_of_the_readme_train_and_evaluate(script: Path, tmp_path: Path) -> None:
    few = ("data=faces", "data.batch_size=16", "trainer.limit_train_batches=1", "trainer=cpu",
           "trainer.max_epochs=1", "logger=none")  # fmt: skip
    run, tasks = tmp_path, []
    for number, (cwd, words) in enumerate(readme_commands()):
        start = words.index("graft") + 1
        tasks.append(words[start])
        folder = tmp_path / str(number)
        run = folder if words[start] == "train" else run
        own = [word.replace("RUN_FOLDER", str(run)) for word in words[start:]]
        own += [f"hydra.run.dir={folder}", *(few if words[start] == "train" else ())]
        variables = dict(assignment.split("=") for assignment in words[: start - 1])
        if variables:
            variables["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'src'}"
        succeeded(in_folder(cwd, script, *own, **variables))
    assert tasks == ["train", "train", "evaluate", "evaluate"]


def test_a_run_whitens_by_its_training_images_and_a_transferred_network_keeps_the_whitening(tmp_path: Path) -> None:
    words = ("model=vgg_speed", "strategy=scratch", "optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0.85",
             "optimizer.nesterov=true", "scheduler=onecycle", "augment=none", "data=digits", "data.batch_size=64",
             "data.shots=40", "trainer.max_epochs=4", "tta=false")  # fmt: skip
    run = train(tmp_path / "run", *words)
    assert run.metrics["test/acc"] > 0.8
    kernels = saved(run.folder)["state_dict"]["network.features.whitening.weight"]
    assert not torch.equal(kernels[:12].flatten(1), torch.eye(12)), "as it was built, not fitted"
    words = (*words, "data=faces", "data.shots=5", "strategy=feature_extract", "trainer.max_epochs=1")
    transferred = train(tmp_path / "faces", *words, f"model.weights={run.folder / 'checkpoints' / 'last.ckpt'}")
    kept = saved(transferred.folder)["state_dict"]["network.features.whitening.weight"]
    assert torch.equal(kept, kernels), "the weights were trained with this whitening"
