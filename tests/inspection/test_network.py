"""`graft inspect` of a network: the layers, their shapes and what trains."""

from pathlib import Path

import torch
from commands import command, succeeded
from torch import nn
from torchvision.models import get_model

from graft.inspection.network import layers_of


def test_the_layers_of_vgg11_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        network = get_model("vgg11")
    trains = [name for name, _ in network.named_parameters() if name.startswith("classifier.6")]
    layers = layers_of(network.to_empty(device="cpu"), (3, 224, 224), trains)
    assert (layers[0].name, layers[0].kind, layers[0].shape) == ("features.0", "Conv2d", (64, 224, 224))
    assert (layers[-1].name, layers[-1].shape, layers[-1].trainable) == ("classifier.6", (1000,), 4_097_000)
    assert sum(layer.parameters for layer in layers) == 132_863_336
    assert sum(layer.trainable for layer in layers) == 4_097_000


def test_a_parameter_outside_of_a_leaf_is_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images * self.scale)

    layers = layers_of(Scaled(), (3, 2, 2), ["scale"])
    assert [(layer.name, layer.parameters, layer.trainable) for layer in layers if layer.parameters] == [
        ("", 3, 3),
        ("head.1", 26, 0),
    ]


def test_a_run_and_a_model_are_shown_and_a_checkpoint_with_data_is_refused(digits_run: Path, tmp_path: Path) -> None:
    main = ("-m", "graft.cli", "inspect")
    run = succeeded(command(tmp_path / "run", *main, str(digits_run), "strategy=feature_extract"))
    assert "vgg_mini · 10 classes" in run.out
    assert "freeze=backbone" in run.out
    model = succeeded(command(tmp_path / "model", *main, "model=vgg_mini"))
    assert "1,000 classes" in model.out
    refused = command(tmp_path / "both", *main, f"checkpoint={digits_run}", "data=digits")
    assert refused.code == 1
    assert "data disagree" in refused.err
