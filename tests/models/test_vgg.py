"""Graft's VGGs compared with torchvision's, and their additional options."""

import gc

import pytest
import torch
import torchvision
from torch import nn

from graft.errors import ConfigError
from graft.models import Recipe, build_network
from graft.models.families.ours import TORCHVISION_VGGS
from graft.models.registry import facts_of
from graft.models.vgg import VGG


@pytest.mark.parametrize("name", TORCHVISION_VGGS)
def test_vgg_equals_torchvision_to_the_bit(name):
    """The same names, the same shapes, and with the same tensors the same logits."""
    ours = build_network(Recipe(name), 1000).eval()
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    del ours, theirs
    gc.collect()


def operations(tensor):
    """Names of the gradients that lead to a tensor."""
    pending, found = [tensor.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending += [before for before, _ in node.next_functions]
    return {node.name() for node in found}


def test_at_its_native_size_the_network_uses_no_nondeterministic_pooling():
    """A GPU has no deterministic gradient of an adaptive pool; at 224 pixels it would be the identity."""
    ours = build_network(Recipe("vgg11"), 10).eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg11(num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(1, 3, 224, 224)
    logits, expected = ours(images), theirs(images)
    assert torch.equal(logits, expected)
    assert not any("Adaptive" in name for name in operations(logits))
    assert any("Adaptive" in name for name in operations(expected))
    assert any("Adaptive" in name for name in operations(ours(torch.randn(1, 3, 96, 96)))), "other sizes are pooled"


def test_the_same_seed_initialises_torchvisions_tensors(monkeypatch):
    """Without the layers' own initialisation, which torchvision overwrites and we skip."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: None)
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: None)
    torch.manual_seed(0)
    expected = torchvision.models.vgg11_bn().state_dict()
    torch.manual_seed(0)
    ours = build_network(Recipe("vgg11_bn"), 1000).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.items())


def test_statistics_of_a_trained_vgg_bn_are_used_as_torchvision_uses_them():
    ours, theirs = build_network(Recipe("vgg11_bn"), 1000), torchvision.models.vgg11_bn()
    with torch.no_grad():
        for module in ours.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_initialisation_is_kaiming_normal_and_small_normal():
    torch.manual_seed(0)
    network = VGG([64, 128, "M", 256], num_classes=1000, batch_norm=True, classifier="linear", average_pool=4)
    convolution, linear = network.features[3], network.classifier[1]
    assert convolution.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in (convolution, linear, network.features[4]))
    assert bool((network.features[4].weight == 1).all())
    assert bool((network.features[4].running_var == 1).all())
    assert network.features[4].num_batches_tracked.item() == 0


def test_every_tensor_is_initialised():
    torch.manual_seed(0)
    first = build_network(Recipe("vgg_mini"), 10).state_dict()
    torch.manual_seed(0)
    second = build_network(Recipe("vgg_mini"), 10).state_dict()
    assert all(torch.equal(first[key], second[key]) and torch.isfinite(first[key]).all() for key in first)


@pytest.mark.parametrize(
    ("recipe", "head", "layers"),
    [
        (Recipe("vgg11"), ("classifier.6",), [25088, 4096, 4096, 7]),
        (Recipe("vgg11", classifier="linear"), ("classifier.1",), [25088, 7]),
        (Recipe("vgg11", classifier="pooled"), ("classifier.0", "classifier.2"), [512, 7]),
        (Recipe("vgg16_cifar"), ("classifier.6",), [512 * 4 * 4, 4096, 4096, 7]),
        (Recipe("vgg_mini"), ("classifier.0", "classifier.2"), [256, 7]),
        (Recipe("vgg_custom"), ("classifier.6",), [256 * 49, 4096, 4096, 7]),
        (Recipe("mine", table=[8, "M", 16, "M"], classifier="linear", average_pool=0, input_size=50),
         ("classifier.1",), [16 * 12 * 12, 7]),
    ],
)  # fmt: skip
def test_the_classifier_can_be_chosen(recipe, head, layers):
    with torch.device("meta"):
        network = build_network(recipe, 7)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == layers
    assert network.head == head
    size = facts_of(recipe).input_size
    assert network.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


def test_vgg_mini_has_about_two_million_parameters():
    parameters = sum(parameter.numel() for parameter in build_network(Recipe("vgg_mini"), 10).parameters())
    assert 1.7e6 < parameters < 2.5e6


def test_dropout_defaults_to_torchvisions():
    with torch.device("meta"):
        networks = {p: build_network(Recipe("vgg11", dropout=p), 2) for p in (None, 0.1)}
    rates = {p: [m.p for m in network.modules() if isinstance(m, nn.Dropout)] for p, network in networks.items()}
    assert rates == {None: [0.5, 0.5], 0.1: [0.1, 0.1]}


def test_an_input_too_small_for_the_pooling_layers_is_refused():
    with pytest.raises(ConfigError, match=r"model\.input_size=4.*8 pixels"):
        VGG([8, "M", 8, "M", 8, "M"], num_classes=2, average_pool=None, input_size=4)
