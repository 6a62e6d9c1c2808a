"""Finds files by the names that a table gives them."""

import os
import posixpath
import unicodedata
from pathlib import Path

from graft.data.layout import is_folder
from graft.data.reading import EXTENSIONS
from graft.errors import DataError, listed

LISTED = 10
"""Number of files that a message names."""


class NamedFiles:
    """Finds the files of a table; each folder is listed once.

    Args:
        root: folder that relative paths start from.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._absolute = os.path.abspath(root)
        self._listed: dict[str, dict[str, str]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, cell: str) -> tuple[str, str | None]:
        """(name, path) of the image that a cell names; path None: there is no such file.

        Backslashes separate folders too, unless there is a file of that name; the ending may be missing.
        """
        name, path = self._find(cell.replace("\\", "/"))
        if path is None and "\\" in cell:
            literal, path = self._find(cell)
            name = name if path is None else literal
        return name, path

    def _find(self, cell: str) -> tuple[str, str | None]:
        relative = posixpath.normpath(unicodedata.normalize("NFC", cell))
        if relative.startswith(f"{self._absolute}/"):
            relative = relative.removeprefix(f"{self._absolute}/")
        folder, base = posixpath.split(relative)
        files = self._files(folder)
        name = base if base in files else self._with_ending(folder, base)
        if name is None:
            return relative, None
        return posixpath.join(folder, name), files[name]

    def _with_ending(self, folder: str, base: str) -> str | None:
        """The image in `folder` that is called `base` without its ending.

        Raises:
            DataError: there are several.
        """
        if base.lower().endswith(EXTENSIONS):
            return None
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for name in self._files(folder):
                if name.lower().endswith(EXTENSIONS):
                    stems.setdefault(posixpath.splitext(name)[0], []).append(name)
            self._stems[folder] = stems
        found = self._stems[folder].get(base, [])
        if len(found) > 1:
            raise DataError(
                f"{posixpath.join(folder, base)}: {listed(found, LISTED, counted=False)} may be meant.\n"
                "Write the ending into the table."
            )
        return found[0] if found else None

    def _files(self, folder: str) -> dict[str, str]:
        """Name in composed Unicode -> path of each file in a folder; empty if it does not exist."""
        if folder not in self._listed:
            path = self._folder(folder)
            self._listed[folder] = {} if path is None else _entries(path, folders=False)
        return self._listed[folder]

    def _folder(self, folder: str) -> str | None:
        """The path of a folder, whose name on disk may be in decomposed Unicode; None if it does not exist."""
        path = os.path.join(self._root, folder)
        try:
            if os.path.isdir(path):
                return path
        except ValueError:  # a null byte
            return None
        parent, base = posixpath.split(folder)
        above = self._folder(parent) if parent != folder else None
        return None if above is None else _entries(above, folders=True).get(base)


def _entries(folder: str, *, folders: bool) -> dict[str, str]:
    """Name in composed Unicode -> path of the files, or of the folders, in a folder."""
    with os.scandir(folder) as entries:
        return {
            unicodedata.normalize("NFC", each.name): os.path.join(folder, each.name)
            for each in entries
            if is_folder(each) == folders
        }
