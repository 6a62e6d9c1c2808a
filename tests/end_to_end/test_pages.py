"""Files, targets, extras and links named in README.md, docs/ and other pages exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from commands import ROOT

import graft

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
EVERYWHERE = [*PAGES, *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "src").rglob("*.py"), *ROOT.glob("notebooks/*.ipynb")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?!legacy/)(?:[\w.-]+/)+\w+\.(?:py|yaml|toml|sh))`", page.read_text())
    plugin = ROOT / "examples" / "plugin"
    roots = (ROOT, ROOT / "src", ROOT / "src" / "graft", ROOT / "tests", plugin, plugin / "conf")
    missing = [name for name in named if "NAME" not in name and not any((root / name).exists() for root in roots)]
    assert missing == []


def test_every_link_between_the_pages_of_the_root_leads_to_a_file() -> None:
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_every_make_target_that_a_page_names_exists() -> None:
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for command in re.findall(r"`make ([\w -]+)[`…]|^make ([\w -]+)", page.read_text(), re.MULTILINE):
            for name in shlex.split(command[0] or command[1]):
                assert name in rules, f"{page.name}: make {name}"


def test_every_extra_that_is_named_is_one_of_the_distribution() -> None:
    extras = PROJECT["optional-dependencies"]
    for file in EVERYWHERE:
        for distribution, named in re.findall(r"pip install '([\w-]+)\[([\w,]+)\]'", file.read_text()):
            assert distribution == PROJECT["name"], file
            assert set(named.split(",")) <= set(extras), file


def test_the_citation_names_this_version_licence_and_address() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == graft.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]
