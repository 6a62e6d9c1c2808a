"""Every package that Graft imports is declared as a dependency."""

import ast
import re
import sys
import tomllib

from commands import ROOT

DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "hydra_plugins": "hydra-optuna-sweeper",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Packages that are imported under another name than they are installed."""


def test_every_import_of_the_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [*project["dependencies"], *(word for extra in project["optional-dependencies"].values() for word in extra)]
    declared = {re.split(r"[\[><=]", word)[0].lower().replace("-", "_") for word in words}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - {"graft", *sys.stdlib_module_names}:
                distribution = DISTRIBUTIONS.get(name, name).lower().replace("-", "_")
                assert distribution in declared, f"{file.relative_to(ROOT)} imports {name}"
