"""`graft inspect` of a network: the part that imports torch."""

from pathlib import Path

from rich.table import Table

from graft.config.commands import InspectConfig
from graft.config.schema import OptimizerConfig
from graft.data.preprocessing import pair
from graft.errors import ConfigError
from graft.inspection.network import layer_table, layers_of
from graft.learning.restore import from_file
from graft.models import build_network
from graft.models.configured import recipe_of
from graft.models.registry import facts_of
from graft.transfer import plan_transfer

CLASSES = 1000
"""Number of classes of a network that no data set and no checkpoint gives: ImageNet's."""


def network_table(config: InspectConfig, checkpoint: Path | None) -> Table:
    """The layers of a checkpoint's network, or of the configured one with random weights.

    Args:
        config: of the command; strategy and freeze decide what trains.
        checkpoint: a file; None for `config.model`.

    Raises:
        ConfigError: the freeze policy does not fit the network.
    """
    if checkpoint is None:
        recipe = recipe_of(config)
        network, classes, size = build_network(recipe, CLASSES), CLASSES, pair(facts_of(recipe).input_size)
    else:
        restored = from_file(checkpoint, config.trust, None)
        recipe, network = restored.recipe, restored.network
        classes, size = len(restored.classes), restored.preprocessing.size
    try:
        plan = plan_transfer(network, config.strategy, config.freeze, OptimizerConfig("torch.optim.SGD", lr=1.0), None)
    except ConfigError as error:
        raise ConfigError(f"model={recipe.name}: {error}") from error
    policy = config.freeze._target_ and config.freeze._target_.rpartition(".")[2]
    shape = (recipe.channels or 3, *size)
    title = f"{recipe.name} · {classes:,} classes · input {' × '.join(map(str, shape))}"
    title += f" · trainable in epoch 1 with strategy={config.strategy.name} (freeze={policy})"
    return layer_table(layers_of(network, shape, plan.trainable(0)), title)
