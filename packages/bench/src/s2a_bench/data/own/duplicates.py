"""Images that are the same or look the same, so that they can be kept in one part.

Two images are *near-duplicates* if their perceptual hashes differ in at most ``THRESHOLD`` of ``BITS`` bits. The hash
(``imagehash.phash``) compares the 16 x 16 lowest frequencies of the grey image with their median: it survives another
size, compression, brightness, a small watermark or border, but neither a crop nor a mirror image.

``THRESHOLD`` was chosen on Caltech101 (9,144 photographs and drawings), by looking at pairs: up to 24 bits nearly all
are one picture, compressed, coloured or framed otherwise; from 30 bits on, different motorbikes of one model and other
things photographed alike are among them. The usual 8 x 8 hash does not tell these apart: at a distance of 4 of 64 bits
most pairs are different motorbikes and airplanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SIDE = 16
BITS = SIDE * SIDE
THRESHOLD = 24

_FLATTEST = 2.0
"""Standard deviation of grey values up to which an image shows nothing: its hash would be chance, or everybody's."""
_BANDS = THRESHOLD // 2 + 1
_CHUNK = 1 << 20
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def compute_hash(image: Image.Image) -> bytes | None:
    """The perceptual hash of an image: ``BITS`` bits; ``None``: it is of one colour and looks like any other of those.

    Args:
        image: Decoded, of any mode.
    """
    import imagehash  # here, since it brings scipy and pywavelets

    grey = image.convert("L")
    side = 4 * SIDE  # to which phash resizes; large photographs get there in two steps, the first of them cheap
    if factor := min(grey.width, grey.height) // (4 * side):
        grey = grey.reduce(factor)
    if np.asarray(grey).std() <= _FLATTEST:
        return None
    return np.packbits(imagehash.phash(grey, SIDE).hash).tobytes()


def connect_near(hashes: np.ndarray) -> np.ndarray:
    """Which hashes are connected by pairs that differ in at most ``THRESHOLD`` bits, directly or in a chain.

    The bits are dealt out to ``_BANDS = THRESHOLD // 2 + 1`` bands. If two hashes differed in two bits or more in each
    band they would differ in ``2 * _BANDS > THRESHOLD``; so near ones differ in at most one bit of some band. Only
    such pairs, which are found by sorting, are compared in full (multi-index hashing, Norouzi et al., 2012), and only
    if they are not connected yet. Tens of thousands of photographs take seconds.

    Args:
        hashes: ``(N, BITS / 8)`` uint8, all different.

    Returns:
        ``(N,)``: the same number for connected ones.
    """
    bits = np.unpackbits(hashes, axis=1)
    words = np.ascontiguousarray(hashes).view(np.uint16)
    component = np.arange(len(hashes))
    for band in range(_BANDS):
        own = bits[:, band::_BANDS].astype(np.int64)
        values = 1 << np.arange(own.shape[1], dtype=np.int64)
        keys = own @ values
        order = np.argsort(keys, kind="stable")
        buckets, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        for flip in (0, *values):
            # The bucket of each hash's key with one bit changed, unless it is empty or all connected to it already.
            bucket = np.minimum(np.searchsorted(buckets, keys ^ flip), len(buckets) - 1)
            lowest = np.minimum.reduceat(component[order], starts)[bucket]
            highest = np.maximum.reduceat(component[order], starts)[bucket]
            open_ones = (buckets[bucket] == keys ^ flip) & ((lowest != component) | (highest != component))
            for left, right in _expand(starts[bucket], np.where(open_ones, sizes[bucket], 0)):
                right = order[right]
                new = component[left] != component[right]
                left, right = left[new], right[new]
                distance = _ONES[words[left] ^ words[right]].sum(axis=1, dtype=np.int64)
                near = distance <= THRESHOLD
                if near.any():
                    component = _join(component, component[left[near]], component[right[near]])
    return component


def _join(component: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Components after some have been joined in pairs."""
    n = len(component)
    edges = coo_matrix((np.ones(len(left), dtype=bool), (left, right)), shape=(n, n))
    return connected_components(edges, directed=False)[1][component]


def _expand(first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``(i, j)`` for every ``i`` and ``j`` in ``first[i] : first[i] + counts[i]``, about ``_CHUNK`` at a time."""
    rows = np.nonzero(counts)[0]
    ends = np.cumsum(counts[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        part = rows[start:stop]
        left = np.repeat(part, counts[part])
        offsets = np.arange(len(left)) - np.repeat(ends[start:stop] - counts[part] - done, counts[part])
        yield left, first[left] + offsets
        start = stop


class Groups:
    """Disjoint sets of the numbers below ``n``: each is alone at first (union-find with path halving)."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        """The smallest number in the set of ``i``."""
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Makes one set of those of ``i`` and ``j``."""
        one, other = sorted((self.find(i), self.find(j)))
        self._parent[other] = one

    def join_equal(self, values: Sequence[object]) -> None:
        """Joins all numbers whose values are equal; ``None`` equals nothing."""
        first: dict[object, int] = {}
        for i, value in enumerate(values):
            if value is not None:
                self.join(first.setdefault(value, i), i)

    def labels(self) -> list[int]:
        """For each number the smallest of its set."""
        return [self.find(i) for i in range(len(self._parent))]


def group_near_duplicates(digests: Sequence[str], hashes: Sequence[bytes | None]) -> list[int]:
    """For each image the first image of its group; groups are what near-duplicates connect, directly or in a chain.

    Args:
        digests: sha256 of each file; the same file is a duplicate whatever it shows.
        hashes: As ``compute_hash``.
    """
    groups = Groups(len(digests))
    groups.join_equal(digests)
    groups.join_equal(hashes)
    first: dict[bytes, int] = {}
    for i, value in enumerate(hashes):
        if value is not None:
            first.setdefault(value, i)
    if len(first) > 1:
        component = connect_near(np.frombuffer(b"".join(first), dtype=np.uint8).reshape(len(first), -1))
        where = list(first.values())
        earliest: dict[int, int] = {}
        for i, each in zip(where, component.tolist(), strict=True):
            groups.join(earliest.setdefault(each, i), i)
    return groups.labels()
