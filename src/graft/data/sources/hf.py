"""Data sets of the Hugging Face Hub, or in a folder that the `datasets` library reads."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graft.data.images import ImageSet
from graft.data.layout import NO_LABEL
from graft.data.packed import Packed
from graft.data.sources.base import Source, require_test_fraction
from graft.data.stored import Archive, StoredImages
from graft.data.table_columns import LABEL_COLUMNS, SPLIT_WORDS
from graft.errors import ConfigError, DataError, NotAvailable, listed, nearest, pip_install
from graft.system.files import read_regular

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = re.compile(r"hf:/+([^@]+?)/?(?:@(.+))?")
"""The address of a data set of the hub, `hf://ORG/NAME@REVISION`; `Path` has merged the slashes."""

LAYOUT_HELP = (
    "Give data.name=ORG/NAME of a data set of the hub, or data.root=FOLDER with Parquet files, class folders or "
    "another format that datasets.load_dataset reads."
)
LISTED = 10


def find(root: Path | None, arguments: Mapping[str, Any]) -> Path:
    """data.root, or the address of data.name on the hub.

    Raises:
        DataError: neither is given.
    """
    if root is not None:
        return root
    if arguments.get("repository") is None:
        raise DataError(f"data.name is not set, and data=hf needs a data set.\n{LAYOUT_HELP}")
    return Path(f"hf:/{arguments['repository']}")


def present(root: Path) -> bool:
    """Whether a folder has content; a data set of the hub is looked for when it is loaded."""
    return HUB.fullmatch(str(root)) is not None or (root.is_dir() and any(root.iterdir()))


def load(
    root: Path,
    *,
    repository: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Read a data set with the `datasets` library.

    Args:
        root: a folder, or an address of the hub.
        repository: of the hub, ORG/NAME; counts only without a folder.
        config: one of the data sets of a repository that has several.
        revision: branch, tag or commit; null: the newest, whose commit a note names.
        image_column, label_column: null: recognised by type and name.
        cache: folder for what `datasets` prepares; null: its own (HF_DATASETS_CACHE).
        test_fraction: fraction of each class to test on where there is neither a validation nor a test split.
        split_seed: seed of that draw.

    Raises:
        ConfigError: `datasets` is not installed, a column or config that does not exist, or a value out of range.
        DataError: no such data set, no images, no labels, or several labels of one image.
        NotAvailable: the hub cannot be reached.
    """
    require_test_fraction(test_fraction)
    _require_datasets()
    try:
        return _source(root, config, revision, cache, (image_column, label_column), (test_fraction, split_seed))
    except DataError as error:
        raise DataError(f"data.root={root}: {error}") from error


def _source(
    root: Path,
    config: str | None,
    revision: str | None,
    cache: str | None,
    columns: tuple[str | None, str | None],
    drawn: tuple[float, int],
) -> Source:
    """See `load`, with the columns of images and labels, and fraction and seed of the draw of test images."""
    found, notes, base = _loaded(root, config, revision, cache)
    splits = _splits(found, notes)
    first = next(iter(splits.values()))
    image = _image_column(first, columns[0], notes)
    label = _label_column(first, columns[1], image, notes)
    archive = HuggingFaceImages({name: _undecoded(part, image) for name, part in splits.items()}, image, str(root))
    parts, unused = {}, []
    classes, labels = _labels(splits, label)
    for name in splits:
        kept = np.flatnonzero(labels[name] >= 0)
        names = archive.names(name, base)
        unused += [(f"{names[row]}", NO_LABEL) for row in np.flatnonzero(labels[name] < 0).tolist()]
        if len(kept):
            parts[name] = ImageSet(names.select(kept), labels[name][kept], paths=archive.part(name, kept))
    if "train" not in parts:
        raise DataError(f"no labelled images to train on; it has {', '.join(parts) or 'none'}.")
    return Source(
        classes,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        notes=tuple(notes),
        test_fraction=drawn[0] if len(parts) == 1 else None,
        split_seed=drawn[1],
        test_on_rest=False,
        unused=tuple(unused),
        searched=(),
    )


class HuggingFaceImages(Archive):
    """The encoded images of the splits of a data set, whose tables are mapped into memory.

    Args:
        tables: split → its table, with images that are not decoded.
        column: of the images.
        address: of the data set, for messages.
    """

    def __init__(self, tables: "Mapping[str, Dataset]", column: str, address: str) -> None:
        self.tables, self.column, self.address = dict(tables), column, address
        self._begins = dict(zip(tables, np.cumsum([0, *map(len, tables.values())]).tolist(), strict=False))

    def read(self, number: int) -> bytes:
        name, row = self._row(number)
        cell = self.tables[name][row][self.column]
        if cell is None:
            return b""
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return read_regular(Path(cell["path"]))
        except OSError as error:
            raise DataError(f"{cell['path']}: cannot be read ({error.strerror}).") from error

    def describe(self, number: int) -> str:
        name, row = self._row(number)
        return f"{self.address}: row {row} of {name}"

    def part(self, name: str, rows: npt.NDArray[np.int64]) -> StoredImages:
        """The images at these rows of a split."""
        return StoredImages(self, self._begins[name] + rows)

    def names(self, name: str, base: str) -> Packed[str]:
        """The name of each image of a split: its path, where all have different ones, else the number of its row.

        Args:
            name: of the split.
            base: folder that paths become relative to.
        """
        import pyarrow.compute as compute

        table = self.tables[name]
        column = table.data.column(self.column) if table._indices is None else None
        paths: list[str | None] = [] if column is None else compute.struct_field(column, "path").to_pylist()
        relative = [os.path.relpath(path, base) if path and os.path.isabs(path) else path for path in paths]
        if relative and None not in relative and len(set(relative)) == len(relative):
            plain = [path for path in relative if path is not None]
            return Packed.of((path if path.startswith(f"{name}/") else f"{name}/{path}" for path in plain), str)
        return Packed.of((f"{name}/{row:08d}" for row in range(len(table))), str)

    def _row(self, number: int) -> tuple[str, int]:
        name = next(name for name, begin in reversed(self._begins.items()) if begin <= number)
        return name, number - self._begins[name]


def _require_datasets() -> None:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data=hf: needs datasets, which is not installed: {pip_install('hf')}") from error
    datasets.disable_progress_bars()


def _loaded(
    root: Path, config: str | None, revision: str | None, cache: str | None
) -> tuple["DatasetDict", list[str], str]:
    """(the splits, notes, folder that the paths of images are relative to)."""
    import datasets

    hub = HUB.fullmatch(str(root))
    options: dict[str, Any] = {"cache_dir": None if cache is None else str(Path(cache).expanduser())}
    notes = []
    if hub is None:
        if revision is not None:
            raise ConfigError(f"data.revision={revision}: data.root={root} is a folder.\nLeave it out.")
        address, base = os.path.abspath(root), os.path.abspath(root)
    else:
        address, base = hub[1], "/"
        options["revision"] = commit_of(address, revision or hub[2])
        notes.append(f"{address} at revision {options['revision']} (data.revision)")
    try:
        saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(address) if saved else datasets.load_dataset(address, config, **options)
    except ValueError as error:
        if "config" in str(error).lower():
            raise ConfigError(f"data.config={config}: {_line(error)}") from error
        raise DataError(_line(error)) from error
    except (OSError, RuntimeError) as error:  # a missing data set is a FileNotFoundError, a missing network too
        if hub is not None:
            raise NotAvailable(
                f"data set {address}", f"https://huggingface.co/datasets/{address}", _BY_HAND, _line(error)
            ) from error
        raise DataError(_line(error)) from error
    except Exception as error:  # its own errors, and those of the libraries that it reads files with
        raise DataError(f"cannot be read by datasets ({_line(error)}).") from error
    return found if isinstance(found, dict) else datasets.DatasetDict({"train": found}), notes, base


_BY_HAND = "a folder, and set data.root=FOLDER"


def commit_of(repository: str, revision: str | None) -> str:
    """The commit of a revision of a data set, so that a later run can name it; `revision` where the hub is offline.

    Raises:
        NotAvailable: the hub has no such data set or revision, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return revision or "main"
    try:
        return str(HfApi().dataset_info(repository, revision=revision).sha)
    except Exception as error:  # the hub's own, httpx's or requests', depending on its version
        url = f"{constants.ENDPOINT}/datasets/{repository}"
        raise NotAvailable(f"data set {repository}", url, _BY_HAND, _line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _splits(found: "DatasetDict", notes: list[str]) -> "dict[str, Dataset]":
    """train, val and test of a data set; a single split of another name is train.

    Raises:
        DataError: two splits for one, or several of unknown names and no train.
    """
    names: dict[str, str] = {}
    for name in found:
        split = SPLIT_WORDS.get(str(name).lower())
        if split in names:
            raise DataError(f"{names[split]} and {name} are both {split} splits.")
        if split is not None:
            names[split] = str(name)
    if not names and len(found) == 1:
        names["train"] = str(next(iter(found)))
    if "train" not in names:
        raise DataError(f"has no train split, only {listed(list(map(str, found)), LISTED)}.")
    others = [f"{name} ({len(found[name]):,} rows)" for name in found if name not in names.values()]
    if others:
        notes.append(f"splits that are not used: {listed(others, LISTED)}")
    return {split: found[names[split]] for split in ("train", "val", "test") if split in names}


def _image_column(table: "Dataset", chosen: str | None, notes: list[str]) -> str:
    from datasets import Image

    columns = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    columns = columns or [name for name, feature in table.features.items() if _is_encoded(feature)]
    return _one_column(table, "image", chosen, columns, notes)


def _is_encoded(feature: Any) -> bool:
    """Whether a column that is not marked as images has the files of some: bytes, or bytes and path."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(table: "Dataset", chosen: str | None, image: str, notes: list[str]) -> str:
    from datasets import ClassLabel

    others = {name: feature for name, feature in table.features.items() if name != image}
    labels = [name for name, feature in others.items() if isinstance(feature, ClassLabel)]
    usual = [name for name in others if re.sub(r"\W+", "_", name.lower()) in LABEL_COLUMNS[0]]
    both = [name for name in labels if name in usual]
    columns = both if len(both) == 1 else labels or usual or (list(others) if len(others) == 1 else [])
    return _one_column(table, "label", chosen, columns, notes)


def _one_column(table: "Dataset", kind: str, chosen: str | None, columns: Sequence[str], notes: list[str]) -> str:
    """The chosen column, or the only one of `columns`, which a note names.

    Raises:
        ConfigError: it does not exist, or there is not exactly one.
    """
    names = list(table.features)
    if chosen is not None:
        if chosen not in names:
            raise ConfigError(
                f"data.{kind}_column={chosen}: there is no such column.{nearest(chosen, names)} "
                f"There are {listed(names, LISTED)}."
            )
        return chosen
    if len(columns) != 1:
        kinds = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
        raise ConfigError(
            f"data.{kind}_column is not set, and {'several columns' if columns else 'no column'} may be the {kind}: "
            f"{listed(columns, LISTED) if columns else kinds}.\nChoose with data.{kind}_column=COLUMN."
        )
    notes.append(f"{kind} column: {columns[0]} (data.{kind}_column)")
    return columns[0]


def _undecoded(table: "Dataset", column: str) -> "Dataset":
    from datasets import Image

    feature = table.features[column]
    if not (isinstance(feature, Image) or _is_encoded(feature)):
        raise ConfigError(f"data.image_column={column}: its values are {type(feature).__name__}, not encoded images.")
    return table.select_columns([column]).cast_column(column, Image(decode=False))


def _labels(splits: "Mapping[str, Dataset]", column: str) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """(class names, split → class index of each row, -1 without a label).

    Raises:
        DataError: several labels of one image, or values that are no class; or splits that have other classes.
    """
    from datasets import ClassLabel

    features = {name: table.features.get(column) for name, table in splits.items()}
    values = {
        name: table.with_format(None)[column][:] if features[name] is not None else [None] * len(table)
        for name, table in splits.items()
    }
    known = next((feature for feature in features.values() if isinstance(feature, ClassLabel)), None)
    if known is not None:
        different = [name for name, feature in features.items() if feature is not None and feature != known]
        if different:
            raise DataError(f"column {column} of {different[0]} has other classes than that of train.")
        indices = {
            name: np.array([-1 if value is None else int(value) for value in column_of], dtype=np.int64)
            for name, column_of in values.items()
        }
        return tuple(known.names), indices
    kinds = Counter(type(value).__name__ for column_of in values.values() for value in column_of if value is not None)
    wrong = set(kinds) - {"str", "int", "bool"}
    if wrong:
        raise DataError(
            f"column {column} has values of type {min(wrong)}; an image has one class, a text or a whole number.\n"
            "Choose another with data.label_column=COLUMN."
        )
    ordered = _ordered({value for value in values["train"] if value is not None})
    index = {value: number for number, value in enumerate(ordered)}
    unknown = sorted(
        {str(value) for each in values.values() for value in each if value is not None and value not in index}
    )
    if unknown:
        raise DataError(f"class {listed(unknown, LISTED)}: not among the training images.")
    return tuple(map(str, ordered)), {
        name: np.array([-1 if value is None else index[value] for value in each], dtype=np.int64)
        for name, each in values.items()
    }


def _ordered(values: set[Any]) -> list[Any]:
    """Whole numbers in their order, all other values in that of their texts."""
    return sorted(values) if all(isinstance(value, int) for value in values) else sorted(values, key=str)
