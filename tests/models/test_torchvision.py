"""torchvision's networks with a head for other classes."""

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import nn
from torchvision.models.inception import InceptionOutputs

from graft.config import conf_dir
from graft.config.registration import register
from graft.errors import ConfigError
from graft.models import Recipe, build_network, fixed_input_size
from graft.models.families.torchvision import convert
from graft.models.heads import head_modules
from graft.models.weights import sized_by_weights

HEADS = {
    "resnet18": ("fc",),
    "alexnet": ("classifier.6",),
    "squeezenet1_0": ("classifier.1",),
    "squeezenet1_1": ("classifier.1",),
    "densenet121": ("classifier",),
    "inception_v3": ("fc", "AuxLogits.fc"),
    "googlenet": ("fc", "aux1.fc2", "aux2.fc2"),
    "resnet50": ("fc",),
    "mobilenet_v3_small": ("classifier.3",),
    "efficientnet_b0": ("classifier.1",),
    "convnext_tiny": ("classifier.2",),
    "vit_b_16": ("heads.head",),
    "swin_t": ("head",),
    "maxvit_t": ("classifier.5",),
    "shufflenet_v2_x0_5": ("fc",),
    "mnasnet0_5": ("classifier.1",),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_found_and_has_one_row_per_class(name):
    with torch.device("meta"):
        network = build_network(Recipe(name), 7)
    assert head_modules(network) == HEADS[name]
    assert all(len(network.get_submodule(head).weight) == 7 for head in HEADS[name])


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "squeezenet1_0", "densenet121"])
def test_the_network_is_torchvisions(name):
    torch.manual_seed(0)
    ours = build_network(Recipe(name), 1000).eval()
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.eval()(images))


def test_inception_equals_torchvisions_with_weights_and_trains_two_heads():
    torch.manual_seed(0)
    ours = build_network(Recipe("inception_v3"), 4).eval()
    theirs = torchvision.models.inception_v3(
        weights=None, num_classes=4, init_weights=False, transform_input=True
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 299, 299)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
        output = ours.train()(images)
    assert isinstance(output, InceptionOutputs)
    assert output.logits.shape == output.aux_logits.shape == (2, 4)


def test_a_new_head_is_initialised_like_a_new_layer():
    bound = 2048**-0.5
    weight = build_network(Recipe("inception_v3"), 10).fc.weight
    assert bound * 0.9 < weight.abs().max() <= bound


def test_dropout_is_set_in_every_dropout_layer():
    network = build_network(Recipe("alexnet", dropout=0.25), 2)
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.25}
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.25: resnet18"):
        build_network(Recipe("resnet18", dropout=0.25), 2)


def test_a_network_with_position_embeddings_is_built_for_the_size_of_its_weights():
    for name, weights, size in [
        ("vit_h_14", "default", 518),
        ("vit_b_16", "default", None),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384),
        ("vit_b_16", None, None),
        ("maxvit_t", "default", None),
        ("efficientnet_b3", "default", None),
        ("vgg16_cifar", None, None),
    ]:
        assert sized_by_weights(Recipe(name), weights).input_size == size
    assert sized_by_weights(Recipe("vit_h_14", input_size=224), "default").input_size == 224
    with torch.device("meta"):
        network = build_network(Recipe("vit_b_32", input_size=64), 2)
    assert network.encoder.pos_embedding.shape == (1, 5, 768)
    assert fixed_input_size(Recipe("vit_b_32", input_size=64)) == 64
    assert fixed_input_size(Recipe("resnet50", input_size=64)) is None


def test_a_size_that_a_network_cannot_be_built_for_is_refused():
    with torch.device("meta"), pytest.raises(ConfigError, match=r"model\.input_size=200: maxvit_t"):
        build_network(Recipe("maxvit_t", input_size=200), 2)


def test_position_embeddings_of_another_size_are_interpolated_in_order():
    with torch.device("meta"):
        network = build_network(Recipe("vit_b_32", input_size=160), 2)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 7), torch.linspace(0, 1, 7), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).reshape(1, 49, 2).repeat(1, 1, 384)
    token = torch.full((1, 1, 768), 9.0)
    found = convert(network, {"encoder.pos_embedding": torch.cat([token, grid], dim=1), "other": token})
    positions = found["encoder.pos_embedding"]
    assert positions.shape == network.encoder.pos_embedding.shape == (1, 26, 768)
    assert torch.equal(positions[:, :1], token)
    assert torch.equal(found["other"], token)
    patches = positions[0, 1:, :2].reshape(5, 5, 2)
    torch.testing.assert_close(patches[0, 0], torch.zeros(2))
    torch.testing.assert_close(patches[4, 2], torch.tensor([1.0, 0.5]))
    odd = {"encoder.pos_embedding": torch.zeros(1, 8, 768)}
    assert convert(network, odd) == odd, "unchanged, so that its shape is reported"


def _train_squeezenets_head(clip: float | None, seed: int) -> tuple[torch.Tensor, float, float]:
    """Forty steps of SGD 0.001, momentum 0.9, on features as large as a trained trunk's.

    Returns:
        logits [8, 2] at the end, norm of the head's gradient there, mean loss of the last five steps.
    """
    torch.manual_seed(seed)
    classifier = build_network(Recipe("squeezenet1_1"), 2).classifier.train()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.001, momentum=0.9)
    signature = torch.rand(2, 512)
    losses = []

    def step(labels: torch.Tensor) -> torch.Tensor:
        features = 3 * (torch.rand(8, 512, 5, 5) + signature[labels][:, :, None, None])
        optimizer.zero_grad()
        logits = classifier(features).flatten(1)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(classifier.parameters(), clip)
        losses.append(loss.item())
        return logits

    for _ in range(40):
        step((torch.rand(8) < 0.5).long())
        optimizer.step()
    logits = step(torch.arange(8) % 2)
    return logits.detach(), classifier[1].weight.grad.norm().item(), sum(losses[-6:-1]) / 5


@pytest.mark.parametrize("seed", range(3))
def test_clipped_gradients_keep_squeezenets_new_head_from_dying(seed):
    shut, _, _ = _train_squeezenets_head(clip=None, seed=seed)
    logits, gradient, loss = _train_squeezenets_head(clip=1.0, seed=seed)
    assert (shut == 0).float().mean() >= 0.5
    assert bool((logits > 0).any(1).all())
    assert gradient > 0
    assert loss < 0.6, "below ln 2, which a shut head gives"


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_squeezenets_configuration_clips(name):
    register()
    with initialize_config_dir(str(conf_dir())):
        assert compose("train", [f"model={name}"]).trainer.gradient_clip_val == 1.0
