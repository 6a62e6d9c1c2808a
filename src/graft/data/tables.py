"""Reading tables in CSV, TSV and Parquet as text: no value is converted, so that the label 01 stays 01.

The csv module of the standard library gives text and nothing else; pandas would infer numbers, booleans and missing
values (01 -> 1, NA -> NaN) and is no dependency otherwise. Parquet is read with pyarrow, an extra.
"""

import codecs
import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from graft.errors import ConfigError, DataError, pip_install

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
PARQUET = (".parquet", ".pq")
TABLES = (*DELIMITED, *PARQUET)
"""Endings of table files, in lower case."""

DELIMITERS = (",", ";", "\t", "|")
SAMPLED = 50
"""Number of rows by which the delimiter is recognised."""

Cell = str | tuple[str, ...]
"""The text of a value, "" for a missing one; of a list in Parquet the texts of its values."""


@dataclass(frozen=True)
class Columns:
    """Some columns of a table.

    Attributes:
        cells: column name -> its cells, one for each row.
        rows: where each row is in the file, e.g. "line 5".
    """

    cells: Mapping[str, Sequence[Cell]]
    rows: Sequence[str]


class Table(Protocol):
    """A table whose columns are read when they are asked for.

    Attributes:
        path: of the file.
        names: of the columns, in order.
    """

    path: Path
    names: tuple[str, ...]

    def read(self, names: Sequence[str]) -> Columns:
        """The cells of some columns; raises DataError for a damaged file."""


def open_table(path: Path, *, delimiter: str | None = None, encoding: str = "utf-8", header: bool = True) -> Table:
    """Open a table and read the names of its columns.

    Args:
        path: of the file; its ending decides the format.
        delimiter: of a text file; None: a tab in .tsv and .tab, else recognised by the first rows.
        encoding: of a text file; a byte order mark at its beginning overrides it.
        header: whether the first row has the names of the columns; without it they are called 1, 2, ….

    Raises:
        ConfigError: another ending, an unknown encoding or a delimiter of several characters; pyarrow is missing.
        DataError: there is no such file, or it cannot be decoded.
    """
    ending = path.suffix.lower()
    if path.is_dir():
        raise ConfigError(f"data.table={path}: is a folder.\nFor class folders use data=folder data.root={path}.")
    if not path.is_file():
        raise DataError(f"data.table={path}: there is no such file.")
    if ending in PARQUET:
        return ParquetTable(path)
    if ending not in DELIMITED:
        raise ConfigError(f"data.table={path}: must end in {', '.join(TABLES)}.\nSave it as one of these.")
    if delimiter is None and ending in (".tsv", ".tab"):
        delimiter = "\t"
    return TextTable(path, delimiter, encoding, header)


def require_text_options(delimiter: str | None, encoding: str) -> None:
    """Raise ConfigError for a delimiter or an encoding that does not exist."""
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigError(f"data.delimiter={delimiter!r}: must be a single character, e.g. ';'.")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ConfigError(f"data.encoding={encoding}: there is no such encoding; e.g. utf-8, latin-1.") from error


class TextTable:
    """A table in a text file; see `open_table` for the arguments."""

    def __init__(self, path: Path, delimiter: str | None, encoding: str, header: bool) -> None:
        require_text_options(delimiter, encoding)
        self.path, self._header = path, header
        self._text = decoded(path, encoding)
        self._delimiter = delimiter or _delimiter_of(self._text)
        first = next(self._rows(), None)
        if first is None:
            raise DataError(f"data.table={path}: is empty.")
        cells = first[1]
        self.names = tuple(cell.strip() for cell in cells) if header else tuple(map(str, range(1, len(cells) + 1)))

    def read(self, names: Sequence[str]) -> Columns:
        indices = [_index(self, name) for name in names]
        lines: list[str] = []
        columns: list[list[Cell]] = [[] for _ in names]
        width = len(self.names)
        for number, cells in itertools.islice(self._rows(), int(self._header), None):
            if any(cell.strip() for cell in cells[width:]):
                raise DataError(
                    f"data.table={self.path}: line {number} has {len(cells)} cells, but there are {width} columns "
                    f"(delimiter {self._delimiter!r}).\nQuote a cell that contains the delimiter, or set "
                    "data.delimiter."
                )
            lines.append(f"line {number}")
            for column, index in zip(columns, indices, strict=True):
                column.append(cells[index].strip() if index < len(cells) else "")
        return Columns(dict(zip(names, columns, strict=True)), lines)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of each row that is not blank."""
        reader = _reader(self._text, self._delimiter)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"data.table={self.path}: line {reader.line_num} cannot be read ({error}).") from error


def decoded(path: Path, encoding: str) -> str:
    """The text of a file without its byte order mark.

    Raises:
        DataError: the file has another encoding; names the first line that shows it.
    """
    content = path.read_bytes()
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), encoding)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"data.table={path}: line {line} is not {encoding} (byte 0x{content[error.start]:02x}).\n"
            "Save the file as UTF-8, or name its encoding, e.g. data.encoding=latin-1 or data.encoding=cp1252."
        ) from error


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _delimiter_of(text: str) -> str:
    """The delimiter that divides each of the first rows into the same number of cells, the largest number."""
    widths = {delimiter: _widths(text, delimiter) for delimiter in DELIMITERS}
    regular = [delimiter for delimiter, found in widths.items() if len(set(found)) == 1 and found[0] > 1]
    return max(regular or DELIMITERS, key=lambda delimiter: max(widths[delimiter][:1], default=0))


def _widths(text: str, delimiter: str) -> list[int]:
    try:
        return [len(cells) for cells in itertools.islice(_reader(text, delimiter), SAMPLED) if cells]
    except csv.Error:
        return []


class ParquetTable:
    """A table in a Parquet file."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(
                f"data.table={path}: Parquet is read with pyarrow, which is not installed: {pip_install('table')}\n"
                "Or save the table as CSV."
            ) from error
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"data.table={path}: is not a Parquet file, or damaged ({error}).") from error
        self.names = tuple(self._file.schema_arrow.names)

    def read(self, names: Sequence[str]) -> Columns:
        import pyarrow

        for name in names:
            _index(self, name)
        try:
            columns = self._file.read(columns=list(names))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"data.table={self.path}: damaged ({error}).") from error
        cells = {name: [self._cell(name, value) for value in columns[name].to_pylist()] for name in names}
        return Columns(cells, [f"row {number}" for number in range(1, columns.num_rows + 1)])

    def _cell(self, name: str, value: object) -> Cell:
        if isinstance(value, list | tuple):
            return tuple(text for each in value if isinstance(text := self._cell(name, each), str) and text)
        if isinstance(value, bytes | dict):
            raise DataError(
                f"data.table={self.path}: column {name} has values of type {type(value).__name__}, no text or number.\n"
                "The images must be files, named in a column of text."
            )
        return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def _index(table: Table, name: str) -> int:
    count = table.names.count(name)
    if count != 1:
        found = "no" if not count else f"{count} columns, not one,"
        raise DataError(f"data.table={table.path}: has {found} column {name}; it has {', '.join(table.names)}.")
    return table.names.index(name)
