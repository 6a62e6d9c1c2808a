"""The optimizers of torch and timm as options of the group `optimizer`, without an option file each; imports neither.

`optimizer=lion` is what an option file with timm's class, its learning rate and its weight decay would be. Hydra finds
these options on the command line, in sweeps and in the defaults lists of experiments, after those of option files.
"""

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from graft.config.targets import TARGET, arguments_of, find_package

GROUP = "optimizer"

UNSUITABLE = ("LBFGS", "SparseAdam", "Muon", "Optimizer")
"""Names in torch.optim that cannot train a network: one parameter group only, sparse gradients, matrices only; a base
class. Of Muon, timm's is offered."""

OURS = {"timm.optim.Muon": "graft.learning.muon.Muon"}
"""Class of a library -> Graft's subclass of it."""

LEARNING_RATE = 1e-3
"""Of an optimizer whose class has no default."""

MOMENTUM = 0.9
"""That timm gives to an optimizer whose class has 0 by default."""


@cache
def known_optimizers() -> Mapping[str, Mapping[str, Any]]:
    """Option -> target and the arguments that distinguish it from other options with that target.

    torch's are the names of its classes in lower case; timm's those that `timm.optim.list_optimizers` lists, without
    those of other packages, and none where timm is not installed. A name that both have is torch's.
    """
    return _of_timm() | _of_torch()


def _of_torch() -> dict[str, dict[str, Any]]:
    """The classes that torch.optim imports."""
    folder = _folder("torch")
    text = "" if folder is None else (folder / "optim" / "__init__.py").read_text(encoding="utf-8")
    names = re.findall(r"^from torch\.optim\.\w+ import ([A-Z]\w+) as", text, re.MULTILINE)
    return {name.lower(): {TARGET: f"torch.optim.{name}"} for name in names if name not in UNSUITABLE}


def _of_timm() -> dict[str, dict[str, Any]]:
    """The entries of timm's registry, except those that need second derivatives or another package."""
    folder = _folder("timm")
    file = None if folder is None else folder / "optim" / "_optim_factory.py"
    if file is None or not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public = (file.with_name("__init__.py")).read_text(encoding="utf-8")
    modules = {each.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for each in node.names}
    found: dict[str, dict[str, Any]] = {}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in calls:
        if ast.unparse(node.func) != "OptimInfo":
            continue
        entry = {keyword.arg: keyword.value for keyword in node.keywords}
        kind = entry.get("opt_class")
        if not isinstance(kind, ast.Name | ast.Attribute) or "second_order" in entry:
            continue
        target = ast.unparse(kind)
        if isinstance(kind, ast.Name):
            is_public = re.search(rf"\b{target}\b", public) is not None
            target = f"timm.optim.{target}" if is_public else f"timm.optim.{modules[target]}.{target}"
        defaults = ast.literal_eval(entry["defaults"]) if "defaults" in entry else {}
        name = ast.literal_eval(entry["name"])
        momentum = {"momentum": MOMENTUM} if "has_momentum" in entry and not _default(target, "momentum") else {}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
        found[name] = {TARGET: OURS.get(target, target), **momentum, **plain}
    for node in calls:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "register_alias":
            alias, name = map(ast.literal_eval, node.args)
            found[alias] = found[name]
    return found


def _folder(package: str) -> Path | None:
    spec = find_package(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def option(name: str) -> dict[str, Any]:
    """The content of an option: target, the class's own learning rate and weight decay, and what distinguishes it."""
    node = known_optimizers()[name]
    rate, decay = (_default(node[TARGET], key) for key in ("lr", "weight_decay"))
    return {"lr": rate or LEARNING_RATE, "weight_decay": decay, **node}


def _default(target: str, name: str) -> float:
    """The number that is the default of an argument; 0 if it has another default, or none."""
    arguments = arguments_of(target)
    value = None if arguments is None else arguments.defaults.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


SCHEME = "optimizers"
OPTIMIZERS = f"{SCHEME}://"


class OptimizerSource(ConfigSource):
    """Hydra's view of `known_optimizers`: each is a file optimizer/NAME.yaml. They are not listed in the help."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path == GROUP

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return group == GROUP and name in known_optimizers()

    def load_config(self, config_path: str) -> ConfigResult:
        node = option(config_path.removesuffix(".yaml").rpartition("/")[2])
        return ConfigResult(
            self.provider, f"{self.scheme()}://{config_path}", OmegaConf.create(node), {"package": None}
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class _OptimizersLast(list[Any]):
    """Hydra's search path with the optimizers behind every folder, so that an option file of the same name wins.

    Hydra adds --config-dir and hydra.searchpath after the plugins have run, and expects its schema at the end.
    """

    def append(self, element: Any) -> None:
        self.insert(len(self), element)

    def insert(self, index: Any, element: Any) -> None:
        super().insert(index, element)
        self.sort(key=lambda each: 2 * (each.provider == "schema") + (each.path == OPTIMIZERS))


class OptimizerSearchPath(SearchPathPlugin):
    """Adds the optimizers to the search path of every command, behind the folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.config_search_path = _OptimizersLast(search_path.get_path())  # type: ignore[attr-defined]
        search_path.append("graft", OPTIMIZERS)


def register() -> None:
    """Register the optimizers with Hydra."""
    for plugin in (OptimizerSource, OptimizerSearchPath):
        Plugins.instance().register(plugin)
