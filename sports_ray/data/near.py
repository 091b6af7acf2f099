"""Perceptual hashes, and which images are nearly the same.

Measured on 1,217 photographs of ten sports: the seven re-encoded pairs lie within 4 bits, three more of the same scene
within 10, and no unrelated pair below 12. Unrelated pairs grow about fivefold with every two bits, and pairs of one
class are few beside all pairs, so within a class a larger distance is still trusted."""

from __future__ import annotations

from functools import cache

import numpy as np

SAME_CLASS_BITS = 10
OTHER_CLASS_BITS = 6
FLAT = 0
"""The hash of an image without structure; it is near to nothing."""

_CHANCE_BITS, _CHANCE_PAIRS = 12, 740_000
"""One pair of unrelated photographs in so many is as near as this, as measured above; fivefold with every two bits."""

_BLOCK = 2048
_MOST_PAIRS = 8
"""Pairs kept for each row compared. Ten thousand frames of one scene, all near to each other, would make 50 million."""


@cache
def _cosines() -> np.ndarray:
    """First eight rows of the 32-point DCT-II in units of 2^-12: integers, so that all machines agree on a hash."""
    row, column = np.mgrid[0:8, 0:32]
    return np.rint(4096 * np.cos(np.pi / 32 * (column + 0.5) * row)).astype(np.int64)


def phash(pixels: np.ndarray) -> int:
    """64-bit hash of an image's coarse light and dark, uint8 [3, H, W] RGB: the low DCT frequencies of 32 x 32 grey
    values against their median (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", sec.
    3.2.1).

    Re-encoding, resizing and changes of brightness turn few bits. An image without structure gives FLAT."""
    from PIL import Image

    # Plane by plane: Pillow takes it without interleaving, which costs more than decoding did.
    planes = [Image.fromarray(plane).resize((32, 32), Image.Resampling.BOX) for plane in pixels]
    red, green, blue = (np.asarray(plane, dtype=np.int64) for plane in planes)
    grey = 299 * red + 587 * green + 114 * blue
    if np.ptp(grey) < 4000:  # four grey levels: what is left is the noise of the encoder
        return FLAT
    basis = _cosines()
    frequencies = (basis @ grey @ basis.T).ravel()
    bits = frequencies > np.median(frequencies[1:])
    bits[0] = False  # the mean brightness says nothing
    return int(np.packbits(bits).view(">u8")[0])


def near_pairs(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pairs of rows that join near images: uint64 [n], int [n] -> int64 [k, 2]. `components` of them are exact; where many
    are near to each other, not all of their pairs are among them, and memory grows with n alone.

    Near are, of distinct (hash, label), two within OTHER_CLASS_BITS, or within SAME_CLASS_BITS in one class
    (labels below 0 are no class); within fewer where there are so many that chance would make pairs (`trusted_bits`).
    Rows that share both are joined as a star to the first of them, so that a thousand equal images give a thousand pairs
    and not a million. Flat images stand in no pair."""
    rows = np.flatnonzero(hashes != FLAT)
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    keys = np.stack([hashes[rows], labels[rows].astype(np.int64).view(np.uint64)], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    stars = np.stack([rows[first[inverse]], rows], axis=1)
    chosen = np.sort(rows[first])
    found = [stars[stars[:, 0] != stars[:, 1]], *_within(hashes, chosen, trusted_bits(len(chosen), OTHER_CLASS_BITS))]
    for members in _by_label(chosen, labels):
        found += _within(hashes, members, trusted_bits(len(members), SAME_CLASS_BITS))
    return np.unique(np.concatenate(found), axis=0)


def trusted_bits(count: int, most: int) -> int:
    """Largest distance, up to `most`, at which chance makes a pair for one in a hundred of `count` images at most.

    `most` up to 1.8 million images at 6 bits and 74,000 at 10. Beyond, all would hang together in the end, and what
    is compared would grow with the square of their number."""
    chances = ((bits, 5.0 ** ((bits - _CHANCE_BITS) / 2) / _CHANCE_PAIRS) for bits in range(most, 0, -1))
    return next((bits for bits, chance in chances if count * chance / 2 <= 0.01), 0)


def _by_label(rows: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Rows of each label that is a class, each in their order."""
    order = np.argsort(labels[rows], kind="stable")
    parts = np.split(rows[order], np.flatnonzero(np.diff(labels[rows][order])) + 1)
    return [part for part in parts if labels[part[0]] >= 0]


def _within(hashes: np.ndarray, rows: np.ndarray, bits: int) -> list[np.ndarray]:
    """Pairs that join `rows` within `bits` of each other. Of bits + 1 pieces of the hash such a pair shares at least one
    (multi-index hashing, Norouzi et al. 2012), so of many rows only those that agree in a piece are compared."""
    if len(rows) <= _BLOCK:
        return _compare(hashes, rows, bits)
    cuts = [64 * k // (bits + 1) for k in range(bits + 2)]
    found = []
    for low, high in zip(cuts, cuts[1:], strict=False):
        piece = (hashes[rows] >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        starts = np.flatnonzero(np.diff(piece[order], prepend=~piece[order[:1]]))
        lengths = np.diff(starts, append=len(rows))
        for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
            found += _compare(hashes, rows[order[start : start + length]], bits)
    return found


def _compare(hashes: np.ndarray, bucket: np.ndarray, bits: int) -> list[np.ndarray]:
    """Pairs that join the rows of a bucket within `bits`, in blocks that stay in the processor's cache."""
    found = [np.empty((0, 2), np.int64)]
    values = hashes[bucket]
    for top in range(0, len(bucket), _BLOCK):
        for left in range(top, len(bucket), _BLOCK):
            distance = np.bitwise_count(values[top : top + _BLOCK, None] ^ values[None, left : left + _BLOCK])
            i, j = np.divmod(np.flatnonzero(distance <= bits), distance.shape[1])  # twice as fast as nonzero in 2-D
            i, j = i + top, j + left
            found.append(np.stack([i, j], axis=1)[i < j])
            if sum(map(len, found)) > _MOST_PAIRS * len(bucket):
                found = [_stars(components(len(bucket), np.concatenate(found)))]
    return [bucket[pairs] for pairs in found if len(pairs)]


def _stars(root: np.ndarray) -> np.ndarray:
    """As few pairs as join what `components` has joined: each node's with the first of its component."""
    return np.stack([root, np.arange(len(root))], axis=1)[root != np.arange(len(root))]


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components of a graph: n nodes, int [k, 2] -> int64 [n], the smallest node of each one's component."""
    root = np.arange(n)
    while len(pairs):
        a, b = root[pairs[:, 0]], root[pairs[:, 1]]
        apart = a != b
        pairs, a, b = pairs[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (lower := root[root] != root).any():
            root[lower] = root[root[lower]]
    return root
