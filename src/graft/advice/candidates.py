"""What `graft advise` compares: networks whose weights are at hand, and how much of each to train."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.config import conf_dir
from graft.config.overrides import quoted_text
from graft.errors import ConfigError
from graft.models.configurations import BUNDLED
from graft.models.families import ours, timm, torchvision
from graft.models.published import torchvision_address
from graft.models.recipe import Recipe
from graft.models.registry import suggest_model, torchvision_name
from graft.system.files import why_unreadable

DEFAULT, BUNDLED_WEIGHTS = "default", "bundled"

POOLED = "model.classifier=pooled"

NOTHING = "none"
"""The cut of a candidate that trains every layer."""


@dataclass(frozen=True)
class Source:
    """A network and where its weights are.

    Attributes:
        name: of the network.
        weights: as in `model.weights`.
        overrides: of `graft train` that choose the network with these weights.
    """

    name: str
    weights: str
    overrides: tuple[str, ...]

    def with_override(self, override: str) -> "Source":
        """The same with one more override."""
        return Source(self.name, self.weights, (*self.overrides, override))

    def pooled(self, lacking: Sequence[str]) -> "Source | None":
        """The same with the classifier `pooled`, which has no linear layers besides the head.

        None if that does not help: the weights lack other layers than a VGG's linear ones, or it has that classifier.

        Args:
            lacking: names of the parameters that the weights lack.
        """
        linear = all(name.startswith("classifier.") for name in lacking)
        return self.with_override(POOLED) if linear and POOLED not in self.overrides else None


@dataclass(frozen=True)
class Candidate:
    """A way to train a network.

    Attributes:
        source: the network.
        strategy: "feature_extract" (a new head on frozen features) or "finetune".
        frozen: names of the frozen stages, from the input.
        stages: number of stages before the head.
    """

    source: Source
    strategy: str
    frozen: tuple[str, ...]
    stages: int

    @property
    def cut(self) -> str:
        """Name of the last frozen stage; "none" if there is none."""
        return self.frozen[-1] if self.frozen else NOTHING

    @property
    def unfrozen(self) -> float:
        """Fraction of the stages before the head that train."""
        return 1 - len(self.frozen) / self.stages

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of `graft train`, besides those of the data."""
        words = (*self.source.overrides, f"strategy={self.strategy}")
        if self.strategy == "feature_extract" or not self.frozen:
            return words
        return (*words, "freeze=custom", f"freeze.patterns=[{','.join(map(_in_list, self.frozen))}]")


def _in_list(name: str) -> str:
    return name if name.isidentifier() else quoted_text(name)


def candidates_of(source: Source, stages: Sequence[str]) -> list[Candidate]:
    """A new head on frozen features, and fine-tuning above three depths: the last stage, the upper half, everything.

    Args:
        source: the network.
        stages: names of its stages before the head, from input to output.
    """
    count = len(stages)
    depths = sorted({count - 1, count // 2, 0}, reverse=True)
    return [
        Candidate(source, "feature_extract", tuple(stages), count),
        *(Candidate(source, "finetune", tuple(stages[:depth]), count) for depth in depths),
    ]


def sources(
    models: Sequence[str] | None, weights: Mapping[str, str], *, download: bool = False
) -> tuple[list[Source], list[str]]:
    """(the networks to compare, the networks that Graft knows and whose weights are not at hand).

    Weights are at hand if `weights` gives them, Graft has them, or an earlier run has downloaded them.

    Args:
        models: names of the networks; None: all whose weights are at hand.
        weights: name of a network -> its weights, as in `model.weights`.
        download: whether the weights of `models` may be downloaded.

    Raises:
        ConfigError: no such network, no weights of a network in `models`, or none at all.
    """
    options = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
    known = [name for name in options if name in ours.NETWORKS or name in torchvision.NETWORKS]
    if download and not models:
        raise ConfigError("advise.download=true: which networks?\nGive their names: models=[resnet18,vgg16].")
    for name in {**dict.fromkeys(models or ()), **weights}:
        _require_known(name, options)
    for name, file in weights.items():
        if _is_file(file) and (reason := why_unreadable(Path(file).expanduser())):
            raise ConfigError(f"weights.{name}={file}: {reason}.\nGive a .pth, .safetensors or .ckpt file.")
    found, missing = [], []
    for name in dict.fromkeys([*weights, *(known if models is None else models)]):
        if models is not None and name not in models:
            continue
        given = weights.get(name) or _at_hand(name) or (DEFAULT if download else None)
        if given is None:
            missing.append(name)
        else:
            found.append(Source(name, given, _overrides(name, given, options)))
    if models is not None and missing:
        named = ", ".join(missing)
        raise ConfigError(f"models: the weights of {named} are not on this machine.\n{_way_out(missing[0])}")
    if not found:
        raise ConfigError(f"no pretrained weights are on this machine, of {', '.join(known)}.\n{_way_out('vgg16')}")
    return found, missing


def _way_out(name: str) -> str:
    return (
        f"Give a file, weights={{{name}: FILE}}, or models=[{name}] advise.download=true to download them; "
        "python train.py downloads the weights of its network, too."
    )


def _require_known(name: str, options: Sequence[str]) -> None:
    recipe = name in options or name in torchvision.classifiers() or name.partition(".")[0] in timm.architectures()
    if not recipe:
        raise ConfigError(f"models: there is no network {name}.{suggest_model(name, options)}")


def _is_file(weights: str) -> bool:
    """Whether weights are named by a path, not by a word such as `default`, a repository or a folder like one."""
    return bool(Path(weights).suffix) and not weights.startswith("hf://") and not Path(weights).expanduser().is_dir()


def _at_hand(name: str) -> str | None:
    """What `model.weights` is set to for weights on this machine; None if there are none."""
    address = None
    if name in ours.NETWORKS or name in torchvision.classifiers():
        published = torchvision_name(Recipe(name))
        address = None if published is None else torchvision_address(published, DEFAULT)
    if address is not None and address.local_copy() is not None:
        return DEFAULT
    return BUNDLED_WEIGHTS if (BUNDLED / f"{name}.safetensors").is_file() else None


def _overrides(name: str, weights: str, options: Sequence[str]) -> tuple[str, ...]:
    """The overrides that choose a network and its weights."""
    if name in options:
        words = [f"model={name}"]
    else:
        words = [f"model={'torchvision' if name in torchvision.classifiers() else 'timm'}", f"model.name={name}"]
    own = DEFAULT if name not in options or not (BUNDLED / f"{name}.safetensors").is_file() else BUNDLED_WEIGHTS
    if weights != own:
        words.append(
            f"model.weights={weights if weights in (DEFAULT, BUNDLED_WEIGHTS) else os.path.expanduser(weights)}"
        )
    return tuple(words)
