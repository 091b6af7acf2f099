"""Decoded images in memory that all loader processes of a worker share."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GIB = 1 << 30
_CONTROL_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class PixelCache:
    """Slots for uint8 images, in anonymous memory made before the fork; memory is taken only as slots are filled.

    Images have a fixed place: which of them fit follows from their sizes and the budget, never from the order in which
    they were read. The first (a prefix) are cached, the others never."""

    def __init__(self, sizes: NDArray[np.int64], budget: int) -> None:
        """sizes: bytes of each image [n]; budget: bytes."""
        ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(np.searchsorted(ends, budget, side="right"))
        total = int(ends[self.count - 1]) if self.count else 0
        self._starts = ends - sizes
        self._sizes = sizes
        self._pixels = _shared(total)
        self._shapes = _shared(12 * self.count).view(np.int32).reshape(self.count, 3)
        self._filled = _shared(self.count)
        self._lock = threading.Lock()

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """The image [H, W, C] kept under an index, a view that must not be written to; None if it is not there."""
        if index >= self.count or not self._filled[index]:
            return None
        self._fence()
        height, width, channels = (int(side) for side in self._shapes[index])
        start = self._starts[index]
        return self._pixels[start : start + self._sizes[index]].reshape(height, width, channels)

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        """Keep an image [H, W, C] if it has a slot of its size. Processes may do so at once, with equal bytes."""
        if index >= self.count or image.size != self._sizes[index]:
            return
        start = self._starts[index]
        self._pixels[start : start + image.size] = image.reshape(-1)
        self._shapes[index] = image.shape
        self._fence()
        self._filled[index] = 1

    def _fence(self) -> None:
        # Some processors let others see the flag before the pixels. A release followed by an acquire orders them.
        with self._lock:
            pass
        with self._lock:
            pass


def budget_bytes(cache_gb: float) -> int:
    """Bytes that data.cache_gb stands for; -1: a tenth of the memory that is free now."""
    return int(available_memory() * 0.1) if cache_gb < 0 else int(cache_gb * GIB)


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or less where a control group says so."""
    free = [_field("/proc/meminfo", "MemAvailable:") * 1024]
    group = Path("/sys/fs/cgroup")
    for limit, used in _CONTROL_GROUP_FILES:
        try:
            free.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(free))


def _field(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    found: Sequence[str] = next((line.split() for line in lines if line.startswith(name)), ())
    return int(found[1]) if len(found) > 1 else 0


def _shared(size: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype=np.uint8)[:size]
