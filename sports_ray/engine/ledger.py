"""What a run has consumed, as one rolling digest: proof that every image stood where the sampler put it, once.

A step's mark is the sum, modulo 2^64, of sha256(epoch, position, sha256 of the file) over its images. Sums do not care which
rank held an image, and travel with the gradients. The digest chains the marks of all steps, in their order:
digest' = sha256(digest, step, mark). A commit keeps it; `expected` computes it from the settings and the manifest alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sports_ray.data.sampler import Sampler
from sports_ray.engine.schedule import Schedule

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS, _BITS = 8, 8
_DIGEST = 32
_AT_ONCE = 1 << 16
_MODULUS = 1 << (_WORDS * _BITS)


class Ledger:
    """Marks of the images of one training split; `digests`: sha256 of each row's file, hex, in the table's order.

    Takes 32 bytes an image."""

    def __init__(self, digests: Sequence[str] | pa.ChunkedArray) -> None:
        self._digests = bytearray()
        for start in range(0, len(digests), _AT_ONCE):
            part = digests[start : start + _AT_ONCE]
            self._digests += bytes.fromhex("".join(part if isinstance(part, Sequence) else part.to_pylist()))

    def mark(self, epoch: int, first: int, rows: Iterable[int]) -> int:
        """Mark of the images at positions first, first + 1, ... of an epoch; `rows` are their rows in the table."""
        total = 0
        for position, row in enumerate(rows, first):
            name = epoch.to_bytes(8, "little") + position.to_bytes(8, "little")
            name += self._digests[_DIGEST * row : _DIGEST * (row + 1)]
            total += int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
        return total % _MODULUS


def chained(digest: str, step: int, mark: int) -> str:
    """The digest after step `step` (from 0), hex; `digest` is that before it, "" at the start."""
    return hashlib.sha256(bytes.fromhex(digest) + step.to_bytes(8, "little") + mark.to_bytes(8, "little")).hexdigest()


def to_words(mark: int) -> list[float]:
    """A mark in eight parts of 8 bits: float32 sums of them are exact over up to 65,536 ranks, as many as there are lanes."""
    return [float(mark >> (_BITS * word) & ((1 << _BITS) - 1)) for word in range(_WORDS)]


def from_words(words: Sequence[float]) -> int:
    """The sum of the marks whose words were summed."""
    return sum(int(part) << (_BITS * word) for word, part in enumerate(words)) % _MODULUS


def expected(ledger: Ledger, schedule: Schedule, sampler: Sampler, steps: int) -> list[str]:
    """The digest after each number of steps, 0 to `steps`, of a run that consumed exactly what the sampler says."""
    found, epoch, rows = [""], 0, sampler.rows(0)
    for step in range(steps):
        if schedule.epoch_of(step) != epoch:
            epoch = schedule.epoch_of(step)
            rows = sampler.rows(epoch)
        start, stop = schedule.step_span(step)
        found.append(chained(found[-1], step, ledger.mark(epoch, start, rows[start:stop].tolist())))
    return found
