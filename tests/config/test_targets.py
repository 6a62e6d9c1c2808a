"""Parts named by `_target_`: which are refused, with which message, and what is imported for the check."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from graft.config.targets import arguments_of, bind, build, check_target
from graft.errors import ConfigError

PACKAGE = '''
import dataclasses
from .layers import Base, Small as Net
from .layers import *

class Derived(Base):
    """Inherits its arguments."""

@dataclasses.dataclass
class Options:
    width: int
    depth: int = 2

def fails(x):
    raise ValueError(f"x={x} is negative")

LIMIT = 3
'''
LAYERS = """
class Base:
    def __init__(self, gamma, *, scale=1.0): self.gamma, self.scale = gamma, scale

class Small(Base):
    def __init__(self, width=8, **others): ...

def starred(first, second=None): return first, second
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with parts, on the path; its name."""
    folder = tmp_path / "parts_of_a_stranger"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "layers.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


@pytest.mark.parametrize(
    "target",
    [
        torch.optim.SGD,
        torch.optim.AdamW,
        torch.nn.CrossEntropyLoss,
        torch.nn.Linear,
        torch.optim.lr_scheduler.OneCycleLR,
        v2.GaussianBlur,
        torch.nn.functional.cross_entropy,
        torchvision.models.vgg16,
    ],
)
def test_arguments_read_from_source_are_those_of_the_imported_object(target):
    public = "torchvision.transforms.v2" if "torchvision.transforms" in target.__module__ else target.__module__
    read = arguments_of(f"{public}.{target.__name__}")
    parameters = inspect.signature(target).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    assert read is not None
    assert read.names == tuple(each.name for each in named)
    assert read.required == tuple(each.name for each in named if each.default is each.empty)
    assert read.any == any(each.kind is each.VAR_KEYWORD for each in parameters)


def test_names_are_followed_through_imports_stars_and_base_classes(parts):
    net, derived, starred = (arguments_of(f"{parts}.{name}") for name in ("Net", "Derived", "starred"))
    assert net is not None
    assert (net.names, net.any) == (("width",), True)
    assert derived is not None
    assert (derived.names, derived.required) == (("gamma", "scale"), ("gamma",))
    assert starred is not None
    assert starred.names == ("first", "second")
    assert parts not in sys.modules


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": "{}.Derived", "gama": 2}, ["part.gama=2", "Did you mean gamma?", "It takes gamma, scale."]),
        ({"_target_": "{}.Derived"}, ["part.gamma", "requires it"]),
        ({"_target_": "{}.Options", "width": 1, "dept": 2}, ["part.dept=2", "Did you mean depth?"]),
        ({"_target_": "{}.Derivd", "gamma": 1}, ["has no Derivd", "Did you mean Derived?"]),
        ({"_target_": "{}.LIMIT"}, ["is a int, not a class or function"]),
        ({"_target_": "no_such_package.Thing"}, ["no module 'no_such_package'", "Install it"]),
        ({"_target_": "Derived"}, ["must be the dotted path"]),
        ({"_target_": None}, ["must be the dotted path"]),
        ({"_target_": "{}.Derived", "gamma": [{"_target_": "{}.Derived", "x": 1}]}, ["part.gamma[0].x=1"]),
    ],
)
def test_a_part_that_cannot_be_built_is_refused_by_name(parts, node, words):
    with pytest.raises(ConfigError) as error:
        check_target("part", _named(node, parts))
    assert all(word in str(error.value) for word in words), str(error.value)


def _named(node, package):
    if isinstance(node, dict):
        return {key: _named(value, package) for key, value in node.items()}
    if isinstance(node, list):
        return [_named(each, package) for each in node]
    return node.format(package) if isinstance(node, str) else node


def test_null_arguments_are_left_to_the_target(parts):
    check_target("part", {"_target_": f"{parts}.Derived", "gamma": 1, "unknown": None})
    assert build("part", {"_target_": f"{parts}.Derived", "gamma": 2, "scale": None}).scale == 1.0


def test_nested_parts_are_built_first_and_their_errors_name_the_key(parts):
    inner = {"_target_": f"{parts}.Derived", "gamma": 3}
    assert build("part", {"_target_": f"{parts}.Derived", "gamma": inner}).gamma.gamma == 3
    with pytest.raises(ConfigError, match=r"part\._target_=.*x=-1 is negative"):
        build("part", {"_target_": f"{parts}.fails", "x": -1})
    with pytest.raises(ConfigError, match=r"part.gamma\._target_=.*x=-1 is negative"):
        build("part", {"_target_": f"{parts}.Derived", "gamma": {"_target_": f"{parts}.fails", "x": -1}})


def test_a_bound_part_passes_objects_unchanged():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = bind("optimizer", {"_target_": "torch.optim.SGD", "lr": 0.1})([{"params": [parameter], "name": "a"}])
    assert optimizer.param_groups[0]["params"][0] is parameter
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_mistake_in_a_part_of_torch_is_answered_without_importing_it():
    code = """
import sys
from graft.config.targets import check_target
from graft.errors import ConfigError
try:
    check_target("optimizer", {"_target_": "torch.optim.SGD", "momentun": 0.9}, supplied=("params",))
except ConfigError as error:
    print(error)
assert "torch" not in sys.modules
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Did you mean momentum?" in out.stdout, out.stderr


def test_a_part_in_the_working_directory_is_found_after_the_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part_of_mine.py").write_text("def double(width):\n    return 2 * width\n")
    (tmp_path / "json.py").write_text("def loads(width):\n    return width\n")
    with pytest.raises(ConfigError, match=r"part_of_mine\.double has no such argument\. Did you mean width"):
        check_target("model", {"_target_": "part_of_mine.double", "widht": 3})
    assert build("model", {"_target_": "part_of_mine.double", "width": 3}) == 6
    assert build("model", {"_target_": "json.loads", "s": "[1]"}) == [1]
    assert sys.path[-1] == str(tmp_path)


def test_a_missing_target_leaves_the_search_path_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    with pytest.raises(ConfigError, match="there is no module 'no_part_of_mine'"):
        check_target("model", {"_target_": "no_part_of_mine.double"})
    assert sys.path == before
