"""Facts about networks that are read without building them and without importing torch."""

import subprocess
import sys

import pytest
import timm
import torchvision

from graft.errors import ConfigError
from graft.models.configurations import TABLES
from graft.models.families import timm as timm_family
from graft.models.families import torchvision as torchvision_family
from graft.models.recipe import Recipe
from graft.models.registry import facts_of, known_models, ours, torchvision_name


def test_recipes_and_configurations_import_without_torch():
    code = (
        "import sys, graft.models, graft.models.recipe as r; from graft.models.registry import facts_of;"
        "facts_of(r.Recipe('resnet50'));"
        "facts_of(r.Recipe('resnet50.a1_in1k', family='timm'));"
        "assert not {'torch', 'torchvision', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_classifiers_read_from_source_are_those_torchvision_registers():
    assert torchvision_family.classifiers() == set(torchvision.models.list_models(module=torchvision.models))


def test_the_architectures_read_from_source_are_those_timm_lists():
    assert timm_family.architectures() == set(timm.list_models())


def test_tables_equal_torchvisions_and_count_their_names():
    for letter, layers in [("A", 11), ("B", 13), ("D", 16), ("E", 19)]:
        assert list(TABLES[letter]) == torchvision.models.vgg.cfgs[letter]
        assert sum(layer != "M" for layer in TABLES[letter]) + 3 == layers


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "squeezenet1_1", "densenet121", "googlenet", "vgg16"])
def test_smallest_input_is_what_torchvision_says(name):
    assert facts_of(Recipe(name)).min_size == torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]


def test_a_recipe_survives_plain_types():
    recipe = Recipe("mine", table=(8, "M", 16), batch_norm=True, dropout=0.1, input_size=32)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["table"] == [8, "M", 16]


def test_explicit_recipe_values_override_the_known_ones():
    facts = facts_of(Recipe("vgg16", classifier="pooled", dropout=0.2, table=[64, "M"]))
    assert (facts.classifier, facts.dropout, facts.table, facts.min_size) == ("pooled", 0.2, (64, "M"), 2)
    assert facts_of(Recipe("vgg16_cifar")).fixed_size
    assert not facts_of(Recipe("vgg16")).fixed_size
    assert not facts_of(Recipe("vgg16_cifar", classifier="pooled")).fixed_size


@pytest.mark.parametrize(
    ("recipe", "weights_of"),
    [
        (Recipe("vgg16"), "vgg16"),
        (Recipe("vgg16", batch_norm=True), "vgg16_bn"),
        (Recipe("mine", table=TABLES["A"], batch_norm=False), "vgg11"),
        (Recipe("vgg16", table=[64, "M"]), None),
        (Recipe("vgg_mini"), None),
        (Recipe("resnet50"), "resnet50"),
        (Recipe("resnet50", family="timm"), None),
    ],
)
def test_torchvisions_weights_are_chosen_by_the_convolutions(recipe, weights_of):
    assert torchvision_name(recipe) == weights_of


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("vgg61"), ["model.name=", "vgg61", "vgg16"]),
        (Recipe("resnet19"), ["resnet18"]),
        (Recipe("resnet18", classifier="pooled"), ["model.classifier", "resnet18", "torchvision's own"]),
        (Recipe("resnet19", family="timm"), ["timm has no such network", "resnet18"]),
        (Recipe("resnetv2_50d_gn"), ["Did you mean model=timm model.name=resnetv2_50d_gn?"]),
        (Recipe("vgg16", family="timm", batch_norm=True), ["model.batch_norm", "timm's own"]),
        (Recipe("vgg16", classifier="poled"), ["model.classifier", "poled", "pooled"]),
        (Recipe("vgg16", input_size=31), ["model.input_size=31", "32"]),
        (Recipe("inception_v3", input_size=224), ["299"]),
        (Recipe("vgg16", dropout=1.0), ["model.dropout=1.0"]),
        (Recipe("vgg_custom", table=[]), ["model.table", "empty"]),
        (Recipe("vgg_custom", table=["M", 8]), ["begins with a pool"]),
        (Recipe("vgg_custom", table=[8, "X"]), ["entry 1", "'X'"]),
        (Recipe("vgg_custom", table=[8, 0]), ["entry 1", "0"]),
        (Recipe("vgg16", average_pool=-1), ["model.average_pool=-1"]),
        (Recipe("vgg_mini", hidden=64), ["model.hidden=64", "model.classifier=pooled"]),
        (Recipe("vgg_mini", average_pool=2), ["model.average_pool=2", "model.classifier=pooled"]),
    ],
)
def test_a_wrong_recipe_names_the_key_and_the_nearest(recipe, words):
    with pytest.raises(ConfigError) as error:
        facts_of(recipe)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r'model\.family="tim".*timm'):
        Recipe("vgg16", family="tim")


def test_a_wrong_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.batchnorm.*batch_norm"):
        Recipe.from_dict({"name": "vgg16", "batchnorm": True})


def test_ours_are_listed_before_the_rest():
    assert known_models()[: len(ours.NETWORKS)] == tuple(ours.NETWORKS)
    assert "convnext_tiny" in known_models()
