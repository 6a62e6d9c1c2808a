"""MkDocs hook: the pages of the repository's root join the site, and links to other files lead to the repository."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SITE_PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "README.md": "index.md",
}
"""Page of the site for each page of the repository's root."""

LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root that are not written a second time in `docs/`."""
    for source, page in SITE_PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each relative link to a page of the site, or else to the file in the repository.

    A link to a file that does not exist is left as it is, so that a strict build refuses it.
    """
    uri = page.file.src_uri
    source = next((ROOT / name for name, target in SITE_PAGES.items() if target == uri), ROOT / "docs" / uri)

    def replaced(link: re.Match[str]) -> str:
        opening, target, anchor = link[1], link[2], link[3] or ""
        name = os.path.relpath(source.parent / target, ROOT)
        on_site = SITE_PAGES.get(name) or name.removeprefix("docs/")
        if files.get_file_from_path(on_site) is not None:
            target = os.path.relpath(on_site, os.path.dirname(uri) or ".")
        elif (ROOT / name).exists():
            target = f"{config.repo_url}/{'tree' if (ROOT / name).is_dir() else 'blob'}/main/{name}"
        return f"{opening}{target}{anchor}"

    return LINK.sub(replaced, markdown)
