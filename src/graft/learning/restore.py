"""A network ready for inference, from a checkpoint of Graft, a weight file or pretrained weights."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from graft.config.recorded import recorded_run, require_trusted
from graft.config.schema import ModelConfig
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, RecordError, WeightsError
from graft.learning.checkpoints import NotACheckpoint, read_checkpoint
from graft.models import Recipe, build_network, fixed_input_size
from graft.models.bounded import no_larger_than
from graft.models.class_names import class_names
from graft.models.configured import recipe_of_model
from graft.models.heads import auxiliary_modules
from graft.models.layouts import belongs
from graft.models.registry import family_of, require_input_size
from graft.models.weights import default_classes, load_weights, sized_by_weights
from graft.models.weights.reading import read_file
from graft.system.values import Check, any_number, mapping, read_values, sequence, text, tree

PREFIX = "network."
"""Prefix of the network's parameter names in the TransferModule's state dict."""

GRAFT: dict[str, Check] = {
    "recipe": mapping,
    "classes": sequence(text(1000), 1_000_000, least=1),
    "preprocessing": mapping,
    "config": mapping,
    "metrics": tree(any_number, 3_000_000, depth=1),
}
"""What a checkpoint records under "graft"."""


@dataclass(frozen=True)
class Restored:
    """A network with everything that inference needs.

    Attributes:
        network: in evaluation mode, on the CPU, in float32: normalised images [B, 3, H, W] to logits [B, C].
        recipe: how it is built.
        classes: names of the C classes.
        preprocessing: of an image, before the network.
        source: for messages: the checkpoint's file, or the origin of the weights.
        config: what `recorded_run` reads of the run's configuration; empty without a run.
        metrics: those of the checkpoint.
        notes: for the user, one sentence each.
    """

    network: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def prepared(self, changes: Mapping[str, Any]) -> "Restored":
        """The same network with its preprocessing changed by the keys of `preprocess`; null keys change nothing.

        Raises:
            ConfigError: the network does not take images of that size.
        """
        changed = self.preprocessing.changed(changes, "preprocess")
        if changed.input_size != self.preprocessing.input_size:
            require_input_size(self.recipe, changed.input_size, "preprocess.input_size", fixed_input_size(self.recipe))
        return replace(self, preprocessing=changed)


def from_file(path: Path, trust: Sequence[str] = (), model: ModelConfig | None = None) -> Restored:
    """The network in a file: a checkpoint of Graft, or a state dict with a description or with `model`.

    Args:
        path: the file.
        trust: packages that may be imported where the file names a custom network.
        model: the network of a state dict, and the names of its classes; None, or without a target: as the JSON file
            next to it, or its own metadata, says.

    Raises:
        ConfigError: `model` for a checkpoint, which contains its network; a state dict whose network or classes are
            unknown; a custom network of a package that is not trusted.
        TrainingError, RecordError, WeightsError: as `from_checkpoint` and `from_pretrained`.
    """
    named = model is not None and (model._target_ is not None or model.classes is not None)
    try:
        restored = from_checkpoint(path, trust)
    except NotACheckpoint:
        if path.suffix == ".ckpt" and not named:
            raise
        return from_weights(path, trust, model)
    if named:
        raise ConfigError(f"{path}: contains its network and its classes.\nLeave model and model.classes out.")
    return restored


def from_weights(path: Path, trust: Sequence[str] = (), model: ModelConfig | None = None) -> Restored:
    """The network of a state dict; see `from_file`."""
    source, limit = read_file(path), None
    if model is not None and model._target_ is not None:
        recipe = recipe_of_model(model)
    elif source.recipe is not None:
        recipe = Recipe.from_dict(source.recipe, str(path))
        for name in family_of(recipe).foreign_code(recipe):
            require_trusted("model._target_", name, str(path), trust)
        limit = no_larger_than(source.tensors, path)
    else:
        raise ConfigError(
            f"{path}: holds weights alone, and neither it nor a {path.name}.json next to it names their network.\n"
            "Name it and its classes: model=resnet18 model.classes=[ants,bees], or model.classes=FILE with a name per "
            "line."
        )
    names = None if model is None else class_names(model.classes)
    restored = from_pretrained(recipe, str(path), names, limit)
    return replace(restored, config=recorded_run(source.run or {}, str(path)))


def from_checkpoint(path: Path, trust: Sequence[str] = ()) -> Restored:
    """The network of a run as it was when `path` was saved.

    Args:
        path: the checkpoint.
        trust: packages that may be imported where the checkpoint names a custom network.

    Raises:
        ConfigError: a custom network of a package that is not trusted or cannot be imported.
        NotACheckpoint: no checkpoint of Graft.
        TrainingError: a damaged one.
        RecordError: a recorded value is of another type or beyond its limit; names the key, the value and the limit.
        WeightsError: its weights do not fit its own recipe.
    """
    content, source = read_checkpoint(path), str(path)
    made = read_values(content["graft"], GRAFT, source)
    for key in GRAFT:
        if key not in made:
            raise RecordError(f"{path}: records no {key}, as a checkpoint of graft train does.")
    recipe, classes = Recipe.from_dict(made["recipe"], source), made["classes"]
    preprocessing = Preprocessing.from_dict(made["preprocessing"], source)
    config = recorded_run(made["config"], source)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if isinstance(tensor, Tensor) and name.startswith(PREFIX)
    }
    try:
        for name in family_of(recipe).foreign_code(recipe):
            require_trusted("model._target_", name, source, trust)
        with no_larger_than(weights, path):
            network = build_network(recipe, len(classes))
        network.load_state_dict(weights)
    except ConfigError as error:
        raise error if str(error).startswith(source) else ConfigError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise WeightsError(f"{path}: its weights do not fit its network {recipe.name} ({error}).") from error
    return Restored(network.eval(), recipe, classes, preprocessing, source, config, made["metrics"])


def from_pretrained(
    recipe: Recipe,
    weights: str | None,
    names: Sequence[str] | None = None,
    limit: AbstractContextManager[None] | None = None,
) -> Restored:
    """A network with the classes it was pretrained for, ImageNet's 1,000 as a rule.

    Args:
        recipe: the network.
        weights: the source, as in `model.weights`.
        names: names of the classes of a file that does not contain them.
        limit: a context for building the network, which limits its size where an untrusted file describes it.

    Raises:
        WeightsError: no weights, or weights without a head whose classes have names.
        ConfigError: the weights have other names.
        NotAvailable: the weights are not on this machine and cannot be downloaded.
    """
    classes = default_classes(recipe, weights, names)
    if classes is None:
        raise WeightsError(
            f"{weights or 'model.weights=null'}: has no head with named classes.\nName them: "
            "model.classes=[ants,bees], or model.classes=FILE with a name per line.\n"
            "For ImageNet's 1,000 classes: model.weights=default."
        )
    recipe = sized_by_weights(recipe, weights)
    with limit or nullcontext():
        network = build_network(recipe, len(classes))
    report = load_weights(network, recipe, weights, keep_head=True, names=names)
    random = [name for name in report.random if not belongs(name, auxiliary_modules(network))]
    if random:
        reason = " ".join(note for note in report.notes if "random" in note)
        raise WeightsError(
            f"{weights}: {', '.join(random[:4])} would stay random, because the weights are not those of "
            f"model={recipe.name} with {len(classes):,} classes. {reason}\n"
            + ("Name as many classes as the head has." if names else "Leave out what departs from the known network.")
        )
    assert report.preprocessing is not None
    return Restored(network.eval(), recipe, classes, report.preprocessing, source=report.source, notes=report.notes)
