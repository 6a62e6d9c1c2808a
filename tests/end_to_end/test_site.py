"""The documentation site builds, and a broken link fails the build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the site is made of."""
    pytest.importorskip("mkdocs")
    for folder in ("docs", "src/graft/transfer", "notebooks", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    shutil.copy(ROOT / "src/graft/__init__.py", tmp_path / "src/graft")
    for file in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(file, tmp_path)
    return tmp_path


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    return subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False)


def test_the_site_has_pages_reference_and_the_pages_of_the_root(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    site = checkout / "build" / "site"
    assert "strategy=gradual" in (site / "strategies.html").read_text()
    assert "freeze" in (site / "reference" / "graft" / "transfer" / "freeze.html").read_text()
    changelog = (site / "project" / "changelog.html").read_text()
    assert 'href="security.html"' in changelog


@pytest.mark.parametrize("link", ["[x](no-such-page.md)", "[x](strategies.md#no-such-heading)", "[x](../no/such.file)"])
def test_a_broken_link_fails_the_build(checkout: Path, link: str) -> None:
    with (checkout / "docs" / "freezing.md").open("a") as page:
        page.write(f"\n{link}\n")
    done = build(checkout)
    assert done.returncode != 0
    assert "freezing.md" in done.stderr + done.stdout
