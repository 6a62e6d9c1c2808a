"""A sequence of many strings in two blocks of memory.

A list of a million names takes several times as much memory, and every worker process that reads it ends up with a copy
of its own, because reading a Python object writes its reference count.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

_CODING = ("utf-8", "surrogateescape")  # any name that a file system gives


class Packed(Sequence[T], Generic[T]):
    """An immutable sequence of strings, or of objects made from them on access.

    Args:
        text: all strings, concatenated; a memoryview of a mapped file stays on disk until it is read.
        ends: end of each string in `text`, int64 [N].
        kind: makes an element from its string, e.g. `str` or `Path`.
    """

    def __init__(self, text: bytes | memoryview, ends: npt.NDArray[np.int64], kind: Callable[[str], T]) -> None:
        self.text, self.ends, self.kind = text, ends, kind

    @classmethod
    def of(cls, strings: Iterable[str], kind: Callable[[str], T]) -> "Packed[T]":
        """Pack `strings`."""
        coded = [string.encode(*_CODING) for string in strings]
        return cls(b"".join(coded), np.cumsum(list(map(len, coded)), dtype=np.int64), kind)

    @classmethod
    def joined(cls, parts: Sequence["Packed[T]"]) -> "Packed[T]":
        """Concatenate `parts`, at least one."""
        begins = np.cumsum([0, *(len(part.text) for part in parts[:-1])], dtype=np.int64)
        ends = [part.ends + begin for part, begin in zip(parts, begins, strict=True)]
        return cls(b"".join(part.text for part in parts), np.concatenate(ends), parts[0].kind)

    def select(self, indices: npt.NDArray[np.int64]) -> "Packed[T]":
        """The elements at `indices`, in that order."""
        indices = np.where(indices < 0, indices + len(self), indices)
        ends = self.ends[indices]
        begins = np.where(indices > 0, self.ends[indices - 1], 0)
        text = self.text
        chosen = b"".join([text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
        return Packed(chosen, np.cumsum(ends - begins, dtype=np.int64), self.kind)

    def strings(self) -> Iterator[str]:
        """Iterate over the strings of the elements."""
        begin, text = 0, self.text
        for end in self.ends.tolist():
            yield str(text[begin:end], *_CODING)
            begin = end

    def __reduce__(self) -> "tuple[type[Packed[T]], tuple[bytes, npt.NDArray[np.int64], Callable[[str], T]]]":
        return Packed, (bytes(self.text), self.ends, self.kind)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Packed[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Packed[T]":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = operator.index(index)
        position = position + len(self) if position < 0 else position
        if not 0 <= position < len(self):
            raise IndexError(f"{index} of {len(self)}")
        begin = self.ends[position - 1] if position else 0
        return self.kind(str(self.text[begin : self.ends[position]], *_CODING))

    def __iter__(self) -> Iterator[T]:
        return map(self.kind, self.strings())

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Packed({list(self)!r})"


def selected(values: Sequence[T], indices: npt.NDArray[np.int64]) -> Sequence[T]:
    """The elements at `indices`, in that order; packed if `values` are."""
    return values.select(indices) if isinstance(values, Packed) else [values[index] for index in indices]


def joined(first: Sequence[T], second: Sequence[T]) -> Sequence[T]:
    """The elements of both; packed if both are."""
    if isinstance(first, Packed) and isinstance(second, Packed):
        return Packed.joined([first, second])
    return [*first, *second]
