"""Faces with and without masks: person folders ID_SEX_RACE_AGE of seven images, labelled by file name."""

import re
from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.layout import class_folders, image_files
from graft.data.sources.base import Source
from graft.errors import ConfigError, DataError

CLASSES = ("normal", "mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask")

PERSON = re.compile(r"(?P<id>\d+)(?:-\d+)?_[^_]+_[^_]+_[^_]+")
"""`000020_male_Asian_25`, and the irregular `000020-1_male_Asian_25`, which is the same person."""

LAYOUT = (
    "Expected: folders ID_SEX_RACE_AGE (000020_male_Asian_25), with images whose names contain normal, mask1 … "
    "mask5 or incorrect_mask."
)
LAYOUT_HELP = (
    "There is no public address for this set: put its person folders there, or give data.root=FOLDER.\n" + LAYOUT
)


def load(root: Path, *, train_max_id: int = 500, val_min_id: int = 1000, val_max_id: int = 1050) -> Source:
    """The masks: persons with id < `train_max_id` train, `val_min_id` < id < `val_max_id` validate and test.

    Nothing is renamed on disk. The ranges must not overlap, so that no person is both trained and tested on.

    Raises:
        ConfigError: the ranges overlap.
        DataError: no person folders, a range without images, or an image whose name contains no class.
    """
    if val_min_id + 1 < train_max_id:
        raise ConfigError(
            f"data.train_max_id={train_max_id} and data.val_min_id={val_min_id} disagree: "
            f"persons {val_min_id + 1} to {min(train_max_id, val_max_id) - 1} would train and validate.\n"
            f"Set data.val_min_id={train_max_id - 1} or more."
        )
    folders = class_folders(root)
    persons = {name: PERSON.fullmatch(name) for name in folders}
    ids = {name: int(match["id"]) for name, match in persons.items() if match}
    if not ids:
        raise DataError(
            f"data.root={root}: no person folders.\n{LAYOUT}\nFor images of your own use data=folder data.root={root}."
        )
    train = _images({name: folders[name] for name in ids if ids[name] < train_max_id})
    val = _images({name: folders[name] for name in ids if val_min_id < ids[name] < val_max_id})
    bounds = ((train, f"id < {train_max_id}"), (val, f"{val_min_id} < id < {val_max_id}"))
    for images, bound in bounds:
        if not len(images):
            raise DataError(
                f"data.root={root}: no images of persons with {bound} (ids here: "
                f"{min(ids.values())} to {max(ids.values())}).\n"
                f"Change data.train_max_id, val_min_id or val_max_id.\n{LAYOUT}"
            )
    notes = tuple(_notes(ids, persons.keys() - ids.keys(), train, val))
    return Source(CLASSES, train, val=val, notes=notes, group_of=_person)


def _person(name: str) -> str:
    """The id of the person in an image's name, PERSON_FOLDER/FILE."""
    match = PERSON.match(name)
    assert match is not None
    return str(int(match["id"]))


def _images(folders: dict[str, Path]) -> ImageSet:
    """The images of person folders (name → folder), labelled by file name."""
    rows = [
        (f"{person}/{name}", path, _label(path))
        for person, folder in folders.items()
        for name, path in image_files(folder)
    ]
    return ImageSet(
        names=[name for name, _, _ in rows],
        labels=np.array([label for _, _, label in rows], dtype=np.int64),
        paths=[path for _, path, _ in rows],
    )


def _label(path: Path) -> int:
    """The class that the name of a file contains, e.g. 1 for 001_mask1.jpg.

    Raises:
        DataError: it contains none, or several.
    """
    stem = path.stem.lower()
    found = [label for label, name in enumerate(CLASSES) if name in stem]
    if CLASSES.index("incorrect_mask") in found:  # incorrect_mask1.jpg is no mask1
        return CLASSES.index("incorrect_mask")
    if len(found) != 1:
        reason = " and ".join(CLASSES[label] for label in found) or "no class"
        raise DataError(
            f"{path}: its name contains {reason}; it must contain exactly one of {', '.join(CLASSES)}.\n"
            "Rename it, or move it to another folder."
        )
    return found[0]


def _notes(ids: dict[str, int], misnamed: set[str], train: ImageSet, val: ImageSet) -> list[str]:
    used = {name.split("/")[0] for name in (*train.names, *val.names)}
    unused = sorted(set(ids) - used)
    notes = []
    if unused:
        notes.append(f"{len(unused)} person folders are outside the id ranges or contain no images: {unused[0]}, …")
    if misnamed:
        notes.append(f"{len(misnamed)} folders are not named ID_SEX_RACE_AGE and are ignored: {min(misnamed)}, …")
    return notes
