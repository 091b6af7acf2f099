"""What the process's memory costs a training step: nothing that could be had once for all.

By default glibc gives large blocks back to the kernel when they are freed, so that every training step on a CPU maps its
activations anew and faults them in page by page. Kept, they are reused: on two cores test_resnet at 96 px trains at 889
images/s in place of 702, convnext_atto at 128 px a tenth faster.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

logger = logging.getLogger(__name__)

# Numbers of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_DEFAULT_THRESHOLD = 128 * 1024
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Tells glibc never to give memory back, and to use one heap for all threads; whether it was taken.

    The process keeps its highest use of memory to its end. Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Only the main heap can keep blocks of any size: other threads' heaps end at 64 MB.
    kept = all(mallopt(*option) for option in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, _LARGEST)))
    logger.debug("freed memory is kept: %s", kept)
    return kept


def give_back() -> None:
    """Returns freed memory after an allocation has failed: the GPU's now, the host's from now on."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_THRESHOLD)
            libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_THRESHOLD)
            libc.malloc_trim(0)


@contextmanager
def settled_objects() -> Iterator[None]:
    """In the block, Python's collector leaves alone what existed before: modules and model, a hundredth of a step's time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
