"""Duplicate images: identical pixels, or near duplicates by perceptual hash and thumbnail."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

NEAR = 12
"""Most bits of 128 in which the hashes of near duplicates differ.

All 21 such pairs of the 3,670 flower photographs (recoloured, recompressed or recropped copies) and samples of those of
CIFAR-10 and of the mask set were checked by eye and are duplicates; hymenoptera has none. The first pairs of different
subjects differ in 14 bits in CIFAR-10 and in 17 in the flowers."""

ALIKE = 0.85
"""Least correlation of the grey thumbnails of near duplicates. Images that are mostly of one shade (stars, drawings on
paper) have similar hashes without being alike."""

SMALLEST = 16
"""Least side, in pixels, of images that are compared: smaller images are alike as soon as their subjects are."""

THUMB = 16
"""Side of a thumbnail, in pixels."""

_WORDS, _BITS = 8, 16  # a hash is 8 words of 16 bits
_PAIRS = 1_000_000
"""Pairs that are compared at a time."""

Index = npt.NDArray[np.int64]


def difference_hash(grey: Image.Image) -> bytes:
    """Perceptual hash of 128 bits (16 bytes): whether each of 8x8 cells is darker than the next, horizontally, then
    vertically.

    Resizing, recompressing and recolouring change few of its bits. Krawetz 2013, "Kind of Like That" (dHash), in both
    directions.
    """
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])
    return np.packbits(bits).tobytes()


def thumbnail(grey: Image.Image) -> bytes:
    """Grey thumbnail, uint8 [THUMB, THUMB], as bytes in row order."""
    return grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def same_groups(digests: Sequence[bytes | None]) -> list[list[int]]:
    """Groups of two or more indices with equal digests, in order; None equals nothing."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest is not None:
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(hashes: Sequence[bytes], thumbs: Sequence[bytes], most: int = NEAR) -> list[list[int]]:
    """Groups of two or more indices of images that are near duplicates, directly or through others in the group.

    Args:
        hashes: from `difference_hash`, length N.
        thumbs: from `thumbnail`, length N.
        most: bits that the hashes of near duplicates may differ in, 0 to 15.
    """
    words = np.frombuffer(b"".join(hashes), dtype=np.uint16).reshape(-1, _WORDS)
    shades = _standardised(thumbs)
    group = np.arange(len(words))  # smallest index in the group of each image
    for one, other in near_pairs(words, most):
        separate = group[one] != group[other]  # pairs in one group need not be compared
        one, other = one[separate], other[separate]
        alike = np.einsum("ij,ij->i", shades[one], shades[other]) >= ALIKE
        group = _merged(group, one[alike], other[alike])
    members: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(group.tolist()):
        members[number].append(index)
    return [found for found in members.values() if len(found) > 1]


def near_pairs(words: npt.NDArray[np.uint16], most: int = NEAR) -> Iterator[tuple[Index, Index]]:
    """All pairs i < j of rows that differ in at most `most` bits, in blocks; some pairs are repeated.

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
            keys = (column ^ np.uint16(probe)).astype(np.int64)
            for one, position in _ranges(begins[keys], begins[keys + 1]):
                other = order[position]
                ordered = one < other
                one, other = one[ordered], other[ordered]
                near = np.bitwise_count(halves[one] ^ halves[other]).sum(axis=1) <= most
                if near.any():
                    yield one[near], other[near]


def _ranges(begin: Index, end: Index) -> Iterator[tuple[Index, Index]]:
    """(i, position) for all i and all positions from begin[i] to end[i] - 1, about `_PAIRS` at a time."""
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
    """Thumbnails whose scalar products are their correlations, [N, THUMB²]; zeros for a single shade."""
    shades = np.frombuffer(b"".join(thumbs), dtype=np.uint8).reshape(-1, THUMB * THUMB).astype(np.float32)
    shades -= shades.mean(axis=1, keepdims=True)
    length = np.linalg.norm(shades, axis=1, keepdims=True)
    return np.divide(shades, length, out=shades, where=length > 0)


def _merged(group: Index, one: Index, other: Index) -> Index:
    """`group` with the groups of each pair merged."""
    while len(one):
        low, high = np.minimum(group[one], group[other]), np.maximum(group[one], group[other])
        separate = low != high
        if not separate.any():
            break
        one, other, low, high = one[separate], other[separate], low[separate], high[separate]
        parent = np.arange(len(group))
        np.minimum.at(parent, high, low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
        group = parent[group]
    return group
