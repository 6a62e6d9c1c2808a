"""The stages of a network contain every parameter exactly once, from input to output."""

import pytest
import torch
import torchvision

from graft.models import Recipe, build_network
from graft.models.heads import head_modules
from graft.transfer.stages import stages_of

GROUPS = {
    "vgg16": ["features", "classifier", "head"],
    "vgg11_bn": ["features", "classifier", "head"],
    "vgg_mini": ["features", "head"],
    "vgg16_cifar": ["features", "classifier", "head"],
    "alexnet": ["features", "classifier", "head"],
    "squeezenet1_0": ["features", "head"],
    "squeezenet1_1": ["features", "head"],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    "densenet121": ["stem", "denseblock1", "denseblock2", "denseblock3", "denseblock4", "head"],
    "inception_v3": ["stem", "Mixed_5", "Mixed_6", "aux", "Mixed_7", "head"],
    "googlenet": ["stem", "inception3", "inception4", "aux", "inception5", "head"],
    "mobilenet_v3_small": ["stage1", "stage2", "stage3", "stage4", "stage5", "classifier", "head"],
    "efficientnet_b0": ["stage1", "stage2", "stage3", "stage4", "stage5", "head"],
    "mnasnet0_5": ["stage1", "stage2", "stage3", "stage4", "stage5", "head"],
    "convnext_tiny": ["stage1", "stage2", "stage3", "stage4", "classifier", "head"],
    "vit_b_16": ["stem", *(f"encoder_layer_{i}" for i in range(12)), "head"],
    "swin_t": ["stage1", "stage2", "stage3", "stage4", "head"],
    "maxvit_t": ["stem", "block1", "block2", "block3", "block4", "classifier", "head"],
    "shufflenet_v2_x0_5": ["stem", "stage2", "stage3", "stage4", "conv5", "head"],
    "regnet_y_400mf": ["stem", "block1", "block2", "block3", "block4", "head"],
}


def _network(name: str) -> torch.nn.Module:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return build_network(Recipe(name), 5)


@pytest.mark.parametrize("name", GROUPS)
def test_stages_hold_every_parameter_once_and_end_in_the_head(name):
    network = _network(name)
    stages = stages_of(network)
    names = [key for key, _ in network.named_parameters()]
    assert all(sum(stage.holds(key) for stage in stages) == 1 for key in names)
    assert len({stage.name for stage in stages}) == len(stages) > 1
    assert (stages[-1].name, stages[-1].group) == ("head", "head")
    assert all(stages[-1].holds(head) for head in head_modules(network))
    in_head = [key for key in names if stages[-1].holds(key)]
    assert all(key.rpartition(".")[0] in head_modules(network) for key in in_head)
    assert list(dict.fromkeys(stage.group for stage in stages)) == GROUPS[name]


@pytest.mark.parametrize("name", ["vgg16_bn", "alexnet", "squeezenet1_0", "densenet121", "vit_b_16"])
def test_stages_run_from_input_to_output(name):
    network = _network(name)
    stages = stages_of(network)
    order = [next(i for i, stage in enumerate(stages) if stage.holds(key)) for key, _ in network.named_parameters()]
    assert order == sorted(order)


def test_vgg_has_its_five_blocks_cut_behind_the_pools():
    stages = stages_of(_network("vgg16"))
    names = ["block1", "block2", "block3", "block4", "block5", "classifier.0", "classifier.3", "head"]
    assert [stage.name for stage in stages] == names
    assert stages[0].modules == tuple(f"features.{i}" for i in range(5))
    assert stages[5].modules == ("classifier.0", "classifier.1", "classifier.2")


def test_a_layer_without_parameters_belongs_to_the_stage_of_its_neighbour():
    stages = {stage.name: stage.modules for stage in stages_of(_network("squeezenet1_0"))}
    assert set(stages["head"]) == {f"classifier.{i}" for i in range(4)}
    assert "classifier.0" in stages_of(_network("efficientnet_b0"))[-1].modules
    assert "classifier.0" in {s.name: s.modules for s in stages_of(_network("alexnet"))}["classifier.1"]


def test_no_part_of_an_unknown_network_is_more_than_half_of_it():
    with torch.device("meta"):
        network = torchvision.models.video.r3d_18(weights=None, num_classes=5)
    stages = stages_of(network)
    sizes = [sum(p.numel() for key, p in network.named_parameters() if stage.holds(key)) for stage in stages]
    assert max(sizes) <= sum(sizes) / 2
    assert [stage.name for stage in stages] == [
        "stem", "layer1", "layer2", "layer3", "layer4.0", "layer4.1", "head"
    ]  # fmt: skip
