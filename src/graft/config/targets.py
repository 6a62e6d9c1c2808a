"""Builds objects named by `_target_`; their arguments are checked against the source text before any import."""

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from graft.errors import ConfigError, listed, nearest, pip_install

TARGET = "_target_"
PARTIAL = "_partial_"

OPTIONAL = ("schedulefree", "timm")
"""Modules that parts need and that an extra of the same name installs."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of a class or function.

    Attributes:
        names: parameters that can be passed by keyword, in order.
        required: those without a default.
        any: whether it has **kwargs.
        text: those annotated with str, and perhaps bool or None, but nothing else.
        defaults: the values of those whose default is a literal; only where they are read from source text.
    """

    names: tuple[str, ...]
    required: tuple[str, ...] = ()
    any: bool = False
    text: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)


def short_name(target: str) -> str:
    """The last part of a dotted path, as tables show it: "SGD" of "torch.optim.SGD"."""
    return target.rpartition(".")[2]


def arguments_of(target: str) -> Arguments | None:
    """The parameters of `target`, read from its source text without importing it.

    Args:
        target: dotted path of a class or function.

    Returns:
        None if the source text is not enough: no source file, a computed name, a dataclass, a metaclass.
    """
    found = _definition(target)
    return None if found is None else _arguments(*found)


def accepts(target: str, name: str) -> bool:
    """Whether `target` has a parameter `name`; Graft supplies some arguments only to targets that have them."""
    arguments = arguments_of(target) or _imported_arguments(target, TARGET)
    return name in arguments.names


def class_constant(target: str, name: str) -> object:
    """The literal value of attribute `name` of a class, its own or inherited, read from source text without importing.

    Returns:
        None if `target` is no class, has no such attribute, or its source text does not show the value.
    """
    found = _definition(target)
    value = None if found is None else _class_attribute(*found, name)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:  # computed
        return None


def has_methods(target: str, *names: str) -> bool:
    """Whether a class, or one of its bases, defines all of these methods; read from source text without importing."""
    found = _definition(target)
    return found is not None and all(_method(*found, name) for name in names)


def check_target(key: str, node: Mapping[str, Any], supplied: Collection[str] = (), positional: int = 0) -> None:
    """Check that a part can be built from its arguments, before long work begins.

    Args:
        key: key of the part in the configuration, e.g. "optimizer".
        node: `_target_` and its arguments; null arguments are not passed on.
        supplied: names of the arguments that Graft adds if they are not set.
        positional: number of arguments that Graft passes by position.

    Raises:
        ConfigError: no such target, an unknown argument (names the nearest), or a missing one.
    """
    target = node.get(TARGET)
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        raise ConfigError(
            f"{key}.{TARGET}={target}: must be the dotted path of a class or function, e.g. my_package.my_module.Name."
        )
    arguments = arguments_of(target) or _imported_arguments(target, f"{key}.{TARGET}")
    own = [name for name, value in node.items() if value is not None and name not in (TARGET, PARTIAL)]
    free = arguments.names[positional:]
    if not arguments.any:
        for name in own:
            if name not in free:
                usable = [each for each in free if each not in supplied]
                takes = f"It takes {listed(usable, 20)}." if usable else "It takes no arguments."
                hint = nearest(name, usable)
                remove = "" if hint or "[" in key else f"\nLeave it out; if a preset sets it, add ~{key}.{name}."
                raise ConfigError(
                    f"{key}.{name}={_shown(node[name])}: {target} has no such argument.{hint} {takes}{remove}"
                )
    missing = [name for name in arguments.required[positional:] if name not in own and name not in supplied]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: {target} requires it. Give {key}.{missing[0]}=….")
    for name in own:
        for path, part in parts_in(node[name], f"{key}.{name}"):
            check_target(path, part)


def parts_in(value: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (key, node) of the outermost mappings with a `_target_` in `value`, including itself."""
    if isinstance(value, Mapping):
        if TARGET in value:
            yield key, value
            return
        for name, each in value.items():
            yield from parts_in(each, f"{key}.{name}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, each in enumerate(value):
            yield from parts_in(each, f"{key}[{index}]")


def build(key: str, node: Mapping[str, Any], *args: Any, **supplied: Any) -> Any:
    """Import the target of `node` and call it.

    Args:
        key: key of the part in the configuration, e.g. "optimizer".
        node: `_target_` and its arguments, as plain values; null arguments are not passed on.
        args: positional arguments from Graft.
        supplied: keyword arguments from Graft.

    Raises:
        ConfigError: the target cannot be imported, or refuses its arguments (TypeError, ValueError).
    """
    return _called(key, node, bind(key, node), args, supplied)


def bind(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """Import the target of `node` and bind its arguments without calling it, as nested nodes with `_partial_` are.

    Check a configuration from an untrusted file with `graft.config.recorded.require_trusted` first.

    Raises:
        ConfigError: the target, or a nested one, cannot be imported or refuses its arguments.
    """
    target = _locate(node[TARGET], f"{key}.{TARGET}")
    given = {name: value for name, value in node.items() if value is not None and name not in (TARGET, PARTIAL)}
    return functools.partial(target, **{name: _built(f"{key}.{name}", value) for name, value in given.items()})


def _built(key: str, value: Any) -> Any:
    """Return `value` with all nodes in it built."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return bind(key, value) if value.get(PARTIAL) else build(key, value)
        return {name: _built(f"{key}.{name}", each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_built(f"{key}[{index}]", each) for index, each in enumerate(value)]
    return value


def find_package(name: str) -> ModuleSpec | None:
    """The top-level package or module `name`, not imported; None if there is none.

    One that is not installed is searched for in the working directory, which is then appended to sys.path: last, so
    that nothing in it replaces an installed module.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is None and (spec := PathFinder.find_spec(name, [os.getcwd()])) is not None:
            sys.path.append(os.getcwd())
    except (ImportError, OSError, ValueError):  # OSError: the working directory has been removed
        return None
    return spec


def _called(
    key: str, node: Mapping[str, Any], bound: Callable[..., Any], args: Iterable[Any], supplied: Mapping[str, Any]
) -> Any:
    try:
        return bound(*args, **supplied)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.{TARGET}={node[TARGET]}: cannot be built from its arguments ({error}).") from error


def _locate(target: str, key: str) -> Any:
    """Import the object that a dotted path names.

    Raises:
        ConfigError: no such module or name; names the nearest, or the package to install.
    """
    parts = target.split(".")
    find_package(parts[0])
    module: Any = None
    for depth in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:depth])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            missing = f"importing {name} needs the module {error.name}, which is missing"
            raise ConfigError(f"{key}={target}: {missing}.{_installing(str(error.name))}") from error
        found = module
        for depth_of, part in enumerate(parts[depth:], depth):
            if not hasattr(found, part):
                inside = ".".join(parts[:depth_of])
                raise ConfigError(f"{key}={target}: {inside} has no {part}.{nearest(part, dir(found))}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{key}={target}: is a {type(found).__name__}, not a class or function.")
        return found
    install = _installing(parts[0]) or " Install it, or start the command in the folder that holds it."
    raise ConfigError(f"{key}={target}: there is no module {parts[0]!a}.{install}")


def _installing(module: str) -> str:
    """ " Install it: …" if the module is one of Graft's optional dependencies."""
    extra = module.partition(".")[0]
    return f" Install it: {pip_install(extra)}" if extra in OPTIONAL else ""


def _imported_arguments(target: str, key: str) -> Arguments:
    located = _locate(target, key)
    try:
        parameters = list(inspect.signature(located).parameters.values())
    except (TypeError, ValueError):  # written in C
        return Arguments((), any=True)
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return Arguments(
        tuple(each.name for each in named),
        tuple(each.name for each in named if each.default is each.empty),
        any(each.kind is each.VAR_KEYWORD for each in parameters),
    )


# -- reading source text -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    """Top-level names in the source text of a module, and the modules of its star imports."""

    name: str
    package: str
    names: Mapping[str, ast.AST]
    stars: tuple[str, ...]


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definition(target: str, depth: int = 0) -> tuple[_Module, Definition] | None:
    """Find the definition of `target`, following imports."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:cut]))
        if module is not None:
            return _inside(module, parts[cut:], depth)
    return None


def _inside(module: _Module, parts: list[str], depth: int) -> tuple[_Module, Definition] | None:
    node = module.names.get(parts[0])
    if depth > 20:
        return None
    if node is None:
        return next(filter(None, (_definition(".".join([star, *parts]), depth + 1) for star in module.stars)), None)
    if isinstance(node, ast.ImportFrom):
        source = _absolute(module.package, node)
        name = next((each.name for each in node.names if (each.asname or each.name) == parts[0]), parts[0])
        return _definition(".".join([source, name, *parts[1:]]), depth + 1)
    if isinstance(node, ast.Name):
        return _inside(module, [node.id, *parts[1:]], depth + 1)
    for part in parts[1:]:
        body = node.body if isinstance(node, ast.ClassDef) else []
        node = next((each for each in body if isinstance(each, Definition) and each.name == part), None)
    return (module, node) if isinstance(node, Definition) else None


def _arguments(module: _Module, node: Definition, depth: int = 0) -> Arguments | None:
    if not isinstance(node, ast.ClassDef):
        return None if _is_method(module, node) else _parameters(node.args, skip=0)
    if node.decorator_list or node.keywords or depth > 20:
        return None
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    if "__init__" in methods:
        return _parameters(methods["__init__"].args, skip=1)
    if "__new__" in methods:
        return _parameters(methods["__new__"].args, skip=1)
    for base in node.bases:
        found = _definition(f"{module.name}.{ast.unparse(base)}")
        if found is None:
            return None
        arguments = _arguments(*found, depth=depth + 1)
        if arguments is not None:
            return arguments
    return None


def _class_attribute(module: _Module, node: Definition, name: str, depth: int = 0) -> ast.expr | None:
    """The expression that a class or the nearest of its bases assigns to an attribute."""
    if not isinstance(node, ast.ClassDef) or depth > 20:
        return None
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            return getattr(statement, "value", None)
    for base in node.bases:
        found = _definition(f"{module.name}.{ast.unparse(base)}")
        value = None if found is None else _class_attribute(*found, name, depth + 1)
        if value is not None:
            return value
    return None


def _method(module: _Module, node: Definition, name: str, depth: int = 0) -> bool:
    if not isinstance(node, ast.ClassDef) or depth > 20:
        return False
    bases = (_definition(f"{module.name}.{ast.unparse(base)}") for base in node.bases)
    return any(isinstance(each, ast.FunctionDef) and each.name == name for each in node.body) or any(
        _method(*base, name, depth + 1) for base in bases if base is not None
    )


def _is_method(module: _Module, node: ast.AST) -> bool:
    """Whether a function is a method of a class; `inspect` handles class methods and static methods."""
    return node not in module.names.values()


def _parameters(arguments: ast.arguments, skip: int) -> Arguments:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = len(arguments.defaults)
    required = [each.arg for each in (positional[:-defaults] if defaults else positional)]
    required += [
        each.arg for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    each = [*positional, *arguments.kwonlyargs][skip:]
    names, text = (each.arg for each in each), (each.arg for each in each if _is_text(each.annotation))
    values = zip([*positional[len(positional) - defaults :], *arguments.kwonlyargs],
                 [*arguments.defaults, *arguments.kw_defaults], strict=True)  # fmt: skip
    literals = {name.arg: value.value for name, value in values if isinstance(value, ast.Constant)}
    return Arguments(tuple(names), tuple(required[skip:]), arguments.kwarg is not None, tuple(text), literals)


def _is_text(annotation: ast.expr | None) -> bool:
    """Whether an annotation is str, or a union of str with bool or None."""
    kinds = set() if annotation is None else set(ast.unparse(annotation).replace(" ", "").split("|"))
    return "str" in kinds and kinds <= {"str", "bool", "None"}


def _module(name: str) -> _Module | None:
    file = _file(name)
    return None if file is None else _read(name, file)


@functools.cache
def _read(name: str, file: Path) -> _Module | None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names: dict[str, ast.AST] = {}
    stars: list[str] = []
    for node in _statements(tree.body):
        if isinstance(node, Definition):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names if alias.name != "*"}
            stars += [_absolute(package, node) for alias in node.names if alias.name == "*"]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            names |= {each.id: node.value for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Assign):
            names |= {each.id: node for each in node.targets if isinstance(each, ast.Name)}
    return _Module(name, package, names, tuple(stars))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the top-level statements of a module, including those in `if` and `try`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)
        else:
            yield node


def _file(name: str) -> Path | None:
    """Find the source file of a module without importing it: only the top-level package's finder is used."""
    top, *rest = name.split(".")
    if top in vars(builtins):
        return None
    spec = find_package(top)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    for part in rest:
        if file.name != "__init__.py":
            return None
        inner = file.parent / part / "__init__.py"
        file = inner if inner.is_file() else file.parent / f"{part}.py"
        if not file.is_file():
            return None
    return file if file.suffix == ".py" else None


def _absolute(package: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
