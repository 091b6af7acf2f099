"""Which image stands at which position, as a pure function of (seed, epoch): no generator has a state to be saved.

Philox (Salmon et al. 2011) turns a key and a counter into random words. Key: (seed, domain); the upper three counter
words name the stream, the lowest counts blocks of four words within it. So no two streams overlap, and any word can be
reached without computing those before it. Only raw 64-bit words are used: their definition never changes, whereas
numpy's permutations and samplers may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER, AUGMENT, MIX, DROP, PICK = 1, 2, 3, 4, 6
"""Domains: what a stream is drawn for; dropout's is 5 (learner.py). New uses take new numbers; none is used again."""

_WORD = (1 << 64) - 1
_WORDS_PER_BLOCK = 4
_AHEAD_FROM = 1_000_000
"""Images from which on an order takes long enough to be computed by a thread beside."""


class Request(NamedTuple):
    """A stretch of the stream, as a loader is asked for it."""

    split: Literal["train", "val"]
    epoch: int
    """-1 for val."""
    start: int
    """Positions [start, stop) in the epoch's order; for val: rows."""
    stop: int


def generator(seed: int, domain: int, *counter: int) -> np.random.Generator:
    """Philox stream number (seed, domain, counter); up to three counter ints, each in [-2^63, 2^64).

    Use `.random()`, or `.bit_generator.random_raw(n)`; both are defined by the raw words alone."""
    return np.random.Generator(_philox(seed, domain, counter, block=0))


def uniforms(seed: int, domain: int, stream: int, start: int, stop: int, draws: int) -> NDArray[np.float64]:
    """Draws of the positions [start, stop) of a stream: float64 [stop - start, draws] in [0, 1), 53 random bits each.

    A row depends on its position alone, not on `start`. `draws` is a multiple of 4 (the words of a Philox block)."""
    if draws % _WORDS_PER_BLOCK:
        raise ValueError(f"draws = {draws} is no multiple of {_WORDS_PER_BLOCK}")
    blocks = draws // _WORDS_PER_BLOCK
    raw = _philox(seed, domain, (stream,), block=start * blocks).random_raw((stop - start) * draws)
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(stop - start, draws)


def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Row of the training table at each position of an epoch: a permutation, int64 [n]."""
    raw = generator(seed, ORDER, epoch).bit_generator.random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


class Orders:
    """Orders of the epochs of a run, as rows int32 [n] (int64 from 2^31 on); that of the next epoch is computed ahead.

    Of 100 M images one takes seconds (`bench scale`), in which no batch would be made where an epoch begins."""

    def __init__(self, rows: Callable[[int], NDArray[np.int64]], n: int) -> None:
        """rows: an epoch's rows at its n positions, such as `Sampler.rows`."""
        self._rows, self._n = rows, n
        self._found: dict[int, NDArray[np.signedinteger]] = {}
        self._ahead: threading.Thread | None = None

    def of(self, epoch: int) -> NDArray[np.signedinteger]:
        """Row of the training table at each position of an epoch."""
        if epoch not in self._found and self._ahead is not None:
            self._ahead.join()
        if epoch not in self._found:
            self._find(epoch)
        for other in [other for other in self._found if other not in (epoch, epoch + 1)]:
            del self._found[other]
        running = self._ahead is not None and self._ahead.is_alive()
        if self._n >= _AHEAD_FROM and epoch + 1 not in self._found and not running:
            self._ahead = threading.Thread(target=self._find, args=(epoch + 1,), name="order", daemon=True)
            self._ahead.start()
        return self._found[epoch]

    def _find(self, epoch: int) -> None:
        self._found[epoch] = self._rows(epoch).astype(np.int32 if self._n < 2**31 else np.int64)


def spans(n: int, parts: int, index: int) -> tuple[int, int]:
    """Part `index` of n things cut into `parts` spans whose sizes differ by at most one: (start, stop)."""
    return index * n // parts, (index + 1) * n // parts


def steps_per_epoch(n: int, global_batch: int) -> int:
    """Optimiser steps in a pass over n images, ceil(n / global_batch); cut by `spans`, none is much smaller."""
    return -(-n // global_batch)


def worker_lanes(lanes: int, rank: int, world: int) -> range:
    """The contiguous lanes of worker `rank` of `world`; their number differs by at most one between workers."""
    return range(*spans(lanes, world, rank))


def _philox(seed: int, domain: int, counter: tuple[int, ...], block: int) -> np.random.Philox:
    if len(counter) > 3:
        raise ValueError(f"at most three counter ints, got {len(counter)}")
    words = [block, *(c & _WORD for c in counter), 0, 0, 0][:4]
    return np.random.Philox(
        counter=np.array(words, dtype=np.uint64), key=np.array([seed & _WORD, domain & _WORD], dtype=np.uint64)
    )
