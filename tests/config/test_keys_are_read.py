"""Every key of the schema has an effect: code reads it, or an option of Graft takes it as an argument."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import graft
from graft.config import conf_dir
from graft.config.fields import Part, keys_of, node_type
from graft.config.registration import SCHEMAS
from graft.config.targets import accepts
from graft.models.configured import OPTIONS

SOURCE = Path(graft.__file__).parent
DEFINITIONS = {SOURCE / "config" / "schema.py", SOURCE / "config" / "commands.py"}


def names_read() -> set[str]:
    """Attributes and constant subscripts read by code outside of the schema, and keys that the schema or an option
    interpolates as the value of another."""
    names = set()
    for file in conf_dir().glob("*/*.yaml"):
        names |= set(re.findall(r"^\w+: \$\{\w+\.(\w+)\}", file.read_text(), re.MULTILINE))
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "II":
                names.add(ast.literal_eval(node.args[0]).rpartition(".")[2])
            if file in DEFINITIONS:
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(str(node.slice.value))
    return names


READ = names_read()


def part_of(schema: Any, key: str) -> type | None:
    """The schema of the node that holds `key`, if that node has a `_target_` with arguments."""
    *nodes, _ = key.split(".")
    for name in nodes:
        schema = node_type(get_type_hints(schema)[name])
    return schema if issubclass(schema, Part) else None


def options_of(group: str) -> Iterator[dict[str, Any]]:
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        if isinstance(content, dict) and "${" not in (content.get("_target_") or "${"):
            yield content


@pytest.mark.parametrize(("task", "key"), [(task, key) for task in SCHEMAS for key, _, _ in keys_of(SCHEMAS[task])])
def test_every_key_is_read_or_is_an_argument_of_one_of_grafts_options(task: str, key: str) -> None:
    group, _, name = key.rpartition(".")
    part = part_of(SCHEMAS[task], key)
    if part is None or name in part.own or name == "_target_":
        assert name in READ, f"{task}: no code reads {key}"
    elif group == "model":
        assert name in OPTIONS, f"{task}: no network of Graft takes {key}"
    else:
        assert any(accepts(option["_target_"], name) for option in options_of(group)), f"{task}: nothing takes {key}"


def test_the_fields_that_graft_keeps_from_a_part_are_fields_of_it() -> None:
    for schema in SCHEMAS.values():
        for hint in get_type_hints(schema).values():
            if isinstance(hint, type) and issubclass(hint, Part):
                assert set(hint.own) <= {field.name for field in dataclasses.fields(hint)}
