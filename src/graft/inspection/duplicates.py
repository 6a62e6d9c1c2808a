"""Pictures that come twice: the same pixels, or nearly the same to the eye."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

NEAR = 12
"""Near duplicates differ in at most so many of the 128 bits of their hashes.

Looked at: all 21 such pairs of the 3,670 flower photographs (recoloured, recompressed or recropped copies) and samples
of those of CIFAR-10's 60,000 and of the mask set are what they are said to be; hymenoptera has none. The first pairs
of different subjects come at 14 bits in CIFAR-10 and at 17 in the flowers."""

ALIKE = 0.85
"""And their grey miniatures correlate at least so much. Pictures that are mostly of one shade (stars, blots, signs on
paper) agree in most bits without being alike."""

SMALLEST = 16
"""Pictures with a side below so many pixels are left out: their few pixels are alike as soon as their subjects are."""

THUMB = 16
"""Side of the miniature, in pixels."""

_WORDS, _BITS = 8, 16  # a hash as words of as many bits
_PAIRS = 1_000_000
"""So many pairs are compared at a time."""

Index = npt.NDArray[np.int64]


def difference_hash(grey: Image.Image) -> bytes:
    """128 bits (16 bytes): whether it gets brighter from each of 8x8 fields to the next, across and then down.

    Resizing, recompressing and recolouring change few of them. Krawetz 2013, "Kind of Like That" (dHash), in both
    directions.
    """
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])
    return np.packbits(bits).tobytes()


def miniature(grey: Image.Image) -> bytes:
    """uint8 [THUMB, THUMB], row by row."""
    return grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def same_groups(digests: Sequence[bytes | None]) -> list[list[int]]:
    """The indices of equal digests, two or more at a time, in order; None is equal to nothing."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest is not None:
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(hashes: Sequence[bytes], thumbs: Sequence[bytes], most: int = NEAR) -> list[list[int]]:
    """Indices of pictures that are near duplicates of each other, directly or by way of others, two or more at a time.

    Args:
        hashes: as `difference_hash` gives them, N of them.
        thumbs: as `miniature` gives them, N of them.
        most: bits that the hashes of near duplicates may differ in, 0 to 15.
    """
    words = np.frombuffer(b"".join(hashes), dtype=np.uint16).reshape(-1, _WORDS)
    shades = _standardised(thumbs)
    group = np.arange(len(words))  # of each picture: the least index of those it belongs with
    for one, other in near_pairs(words, most):
        apart = group[one] != group[other]  # what is together already need not be compared
        one, other = one[apart], other[apart]
        alike = np.einsum("ij,ij->i", shades[one], shades[other]) >= ALIKE
        group = _merged(group, one[alike], other[alike])
    members: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(group.tolist()):
        members[number].append(index)
    return [found for found in members.values() if len(found) > 1]


def near_pairs(words: npt.NDArray[np.uint16], most: int = NEAR) -> Iterator[tuple[Index, Index]]:
    """All pairs i < j of rows that differ in at most `most` bits, some of them more than once, in blocks.

    Two hashes that differ in at most 15 bits differ in at most one bit of one of their eight words, so that looking
    up each word and its sixteen neighbours finds them all (Norouzi et al. 2012, "Fast Search in Hamming Space with
    Multi-Index Hashing").

    Args:
        words: uint16 [N, 8].
        most: 0 to 15.
    """
    halves = np.ascontiguousarray(words).view(np.uint64)  # [N, 2]
    probes = [0, *(1 << bit for bit in range(_BITS))] if most >= _WORDS else [0]
    for column in words.T:
        order = np.argsort(column, kind="stable")
        begins = np.searchsorted(column[order], np.arange(2**_BITS + 1))
        for probe in probes:
            wanted = (column ^ np.uint16(probe)).astype(np.int64)
            for one, place in _places(begins[wanted], begins[wanted + 1]):
                other = order[place]
                once = one < other
                one, other = one[once], other[once]
                near = np.bitwise_count(halves[one] ^ halves[other]).sum(axis=1) <= most
                if near.any():
                    yield one[near], other[near]


def _places(begin: Index, end: Index) -> Iterator[tuple[Index, Index]]:
    """(i, place) for every place of begin[i] … end[i] - 1 and every i, about `_PAIRS` at a time."""
    counts = end - begin
    total = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _PAIRS, side="right")) - 1)
        chosen = np.arange(start, stop)
        rows = np.repeat(chosen, counts[chosen])
        yield rows, np.arange(len(rows)) - (total[rows] - total[start]) + begin[rows]
        start = stop


def _standardised(thumbs: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Miniatures whose scalar product is their correlation, [N, THUMB²]; of one shade: zeros."""
    shades = np.frombuffer(b"".join(thumbs), dtype=np.uint8).reshape(-1, THUMB * THUMB).astype(np.float32)
    shades -= shades.mean(axis=1, keepdims=True)
    length = np.linalg.norm(shades, axis=1, keepdims=True)
    return np.divide(shades, length, out=shades, where=length > 0)


def _merged(group: Index, one: Index, other: Index) -> Index:
    """`group` with those of each pair together."""
    while len(one):
        low, high = np.minimum(group[one], group[other]), np.maximum(group[one], group[other])
        apart = low != high
        if not apart.any():
            break
        one, other, low, high = one[apart], other[apart], low[apart], high[apart]
        parent = np.arange(len(group))
        np.minimum.at(parent, high, low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
        group = parent[group]
    return group
