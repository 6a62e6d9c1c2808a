"""Networks that a user brings: a class or function named by `model._target_`. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from graft.config.targets import TARGET, accepts, arguments_of, bind, build, check_target
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, nearest
from graft.models.configurations import Facts
from graft.models.families.base import VGG_OPTIONS, Constructor, ModelFamily, at_input_size, usual_preprocessing
from graft.models.layouts import HEAD, Stage, belongs, generic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.models.recipe import Recipe

KEY = "model"


class CustomNetwork(Protocol):
    """What a custom network may declare about itself; each attribute is optional.

    Its class or function is called with the arguments in `model`, with `num_classes`, and, if it has such arguments,
    with `input_size` (pixels) where model.input_size is set, and `in_channels` where the images are not of 3 channels.
    It takes images [B, C, H, W] and returns logits [B, num_classes]. An attribute of these names that is itself a
    module, such as `self.head = nn.Linear(…)`, declares nothing.

    Attributes:
        head: names of the modules that compute the logits, re-initialised for new classes; the main one first. By
            default the last Linear or Conv2d.
        stages: name -> names of its modules or parameters, from input to output: the parts that freezing and learning
            rates refer to. Each parameter is in one of them; the last, "head", may be omitted. By default the
            network's own containers.
        preprocessing: fields of `Preprocessing`, e.g. {"input_size": 32, "mean": (…), "std": (…)}, as an attribute of
            the class or function itself. By default ImageNet's mean and standard deviation at 224 pixels.
    """

    head: Sequence[str]
    stages: Mapping[str, Sequence[str]]
    preprocessing: Mapping[str, Any]

    def fit_to(self, images: "Tensor") -> None:
        """Compute what is not learned, such as whitening, from normalised training images [N, 3, H, W].

        Called once, before training from random weights.
        """


class Custom(ModelFamily):
    """Networks of other packages, described by their own optional attributes; see `CustomNetwork`."""

    def facts(self, recipe: "Recipe") -> Facts:
        """Only the input size; also checks the arguments against the target's signature, imported if need be.

        Raises:
            ConfigError: no such target, an argument that it does not take (names the nearest) or requires.
        """
        for key in (*VGG_OPTIONS, "dropout", "family"):
            if getattr(recipe, key) is not None:
                raise ConfigError(f"model.{key}: give it as one of the arguments of {recipe.target}.")
        supplied = self._supplied(recipe, 1)
        check_target(KEY, _node(recipe), supplied=tuple(supplied))
        known = arguments_of(_target(recipe))
        if recipe.channels is not None and not accepts(_target(recipe), "in_channels"):
            raise ConfigError(
                f"data.channels={recipe.channels} and {KEY}.{TARGET}={recipe.target} disagree: it does not take "
                "in_channels.\nAdd it as an argument, which Graft sets to the number of channels of the images."
            )
        if known is not None and not known.any and "num_classes" not in known.names:
            raise ConfigError(
                f"{KEY}.{TARGET}={recipe.target}: does not take num_classes, the number of logits. "
                "Add it as an argument, which Graft sets to the number of classes in the data."
            )
        return Facts() if recipe.input_size is None else Facts(input_size=recipe.input_size)

    def preprocessing(self, recipe: "Recipe") -> Preprocessing:
        """What the target's attribute `preprocessing` declares; imports the target."""
        declared = getattr(_located(recipe), "preprocessing", None)
        own = usual_preprocessing(Facts())
        if declared is not None:
            own = _declared_preprocessing(declared, recipe)
        return at_input_size(own, recipe.input_size)

    def foreign_code(self, recipe: "Recipe") -> Iterator[str]:
        """The target, unless torchvision or timm registers it; then the name of what it turned out to be.

        my_package.torch.hub.load, say, is reached through a package but is not defined in it.
        """
        if not _registered(recipe):
            target = _target(recipe)
            yield target
            located = _located(recipe)
            yield f"{getattr(located, '__module__', '')}.{getattr(located, '__qualname__', target)}"

    def build(self, recipe: "Recipe", num_classes: int) -> "nn.Module":
        from torch import nn

        self.facts(recipe)
        network = build(KEY, _node(recipe), **self._supplied(recipe, num_classes))
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"{KEY}.{TARGET}={recipe.target}: makes a {type(network).__name__}, not a torch.nn.Module."
            )
        return network

    def constructor(self, recipe: "Recipe", network: "nn.Module", num_classes: int) -> Constructor:
        """The target, called."""
        arguments = {**recipe.arguments, **self._supplied(recipe, num_classes)}
        call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        target = _target(recipe)
        return Constructor(target.partition(".")[0], f"{target}({call})", lambda: self.build(recipe, num_classes))

    def head(self, network: "nn.Module") -> tuple[str, ...]:
        declared = _declared(network, "head")
        if declared is None:
            return super().head(network)
        names = _names(declared, f"{type(network).__name__}.head")
        modules = dict(network.named_modules())
        for name in names:
            if name not in modules:
                raise ConfigError(
                    f"{type(network).__name__}.head={name}: the network has no such module.{nearest(name, modules)}"
                )
        return names

    def stages(self, network: "nn.Module") -> list[Stage]:
        declared = _declared(network, "stages")
        head = self.head(network)
        return generic(network, head) if declared is None else _declared_stages(network, declared, head)

    def _supplied(self, recipe: "Recipe", num_classes: int) -> dict[str, int]:
        """The arguments that Graft adds."""
        supplied = {"num_classes": num_classes}
        if recipe.input_size is not None and accepts(_target(recipe), "input_size"):
            supplied["input_size"] = recipe.input_size
        if recipe.channels is not None and "in_channels" not in recipe.arguments:
            supplied["in_channels"] = recipe.channels
        return supplied


LOADING = ("weights", "pretrained", "checkpoint", "cache")
"""First words of the arguments by which a library's builder reads files or downloads."""


def _registered(recipe: "Recipe") -> bool:
    """Whether the target is a network registered in torchvision or timm, called without reading files."""
    from graft.models.families import timm, torchvision

    names = {"torchvision.models": torchvision.classifiers, "timm.models": timm.architectures}
    module, _, name = _target(recipe).rpartition(".")
    loads = any(argument.startswith(LOADING) for argument in recipe.arguments)
    return module in names and name in names[module]() and not loads


def _target(recipe: "Recipe") -> str:
    assert recipe.target is not None
    return recipe.target


def _node(recipe: "Recipe") -> dict[str, Any]:
    return {TARGET: recipe.target, **recipe.arguments}


def _located(recipe: "Recipe") -> object:
    """The target itself, imported."""
    bound = bind(KEY, {TARGET: recipe.target})
    return getattr(bound, "func", bound)


def _declared(network: "nn.Module", name: str) -> Any:
    """The attribute `name` of a network, unless it is a module or something that is computed by a call."""
    from torch import nn

    value = getattr(network, name, None)
    return None if isinstance(value, nn.Module) or callable(value) else value


def _names(value: object, key: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key}={value!r}: must be a list of names of modules.")
    return tuple(names)


def _declared_stages(network: "nn.Module", declared: object, head: tuple[str, ...]) -> list[Stage]:
    owner = f"{type(network).__name__}.stages"
    if not isinstance(declared, Mapping) or not declared:
        raise ConfigError(f"{owner}={declared!r}: must map the name of each stage to names of modules.")
    stages = [Stage(str(name), str(name), _names(part, f"{owner}.{name}")) for name, part in declared.items()]
    if HEAD not in declared:
        stages.append(Stage(HEAD, HEAD, head))
    parameters = [name for name, _ in network.named_parameters()]
    known = {*parameters, *(name for name, _ in network.named_modules())}
    for stage in stages:
        for name in stage.modules:
            if name not in known:
                raise ConfigError(
                    f"{owner}.{stage.name}={name}: the network has no such module or parameter.{nearest(name, known)}"
                )
    for name in parameters:
        holders = [stage.name for stage in stages if stage.holds(name)]
        if len(holders) != 1:
            found = " and ".join(holders) or "no stage"
            raise ConfigError(f"{owner}: the parameter {name} is in {found}; each must be in exactly one.")
    if stages[-1].name != HEAD or not all(belongs(name, stages[-1].modules) for name in head):
        raise ConfigError(f"{owner}: the last stage must be {HEAD}, with {', '.join(head)}.")
    return stages


def _declared_preprocessing(declared: object, recipe: "Recipe") -> Preprocessing:
    owner = f"{recipe.target}.preprocessing"
    names = [field.name for field in fields(Preprocessing)]
    if not isinstance(declared, Mapping):
        raise ConfigError(f"{owner}: is a {type(declared).__name__}; must be a mapping of {', '.join(names)}.")
    for name in declared:
        if name not in names:
            raise ConfigError(f"{owner}.{name}: unknown.{nearest(str(name), names)} There are {', '.join(names)}.")
    checked = Preprocessing.from_dict(declared, owner)
    usual = usual_preprocessing(Facts(input_size=min(checked.size)))
    return replace(usual, **{name: getattr(checked, name) for name in declared})


FAMILY = Custom()
