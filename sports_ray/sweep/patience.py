"""Storage that fails for a moment must not end a sweep: what its driver reads for good and writes is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TypeVar

from sports_ray.errors import StorageError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 100.0
"""How long it is tried. Ray Tune's loop stands still meanwhile: trials train and commit on, but none starts and none is told
to stop; `is_waiting` tells those who would take the silence for a hang."""
LONGEST_DELAY = 10.0

Result = TypeVar("Result")


_waiting = 0


def is_waiting() -> bool:
    """Whether a thread of this process tries something again just now."""
    return _waiting > 0


def patiently(job: Callable[[], Result], again: Callable[[], None] = lambda: None) -> Result:
    """What `job` returns, tried again while it raises StorageError; `again` is called before each further try.

    Raises the last StorageError after PATIENCE_SECONDS, anything else at once."""
    end = time.monotonic() + PATIENCE_SECONDS
    try:
        return job()
    except StorageError as error:
        failed = error
    with _trying_again():
        for delay in chain((0.5, 1.0, 2.0, 4.0, 8.0), repeat(LONGEST_DELAY)):
            left = end - time.monotonic()
            if left <= 0:
                raise failed
            log.warning("sweep.storage_failed seconds_left=%.0f reason=%s", left, failed)
            time.sleep(min(delay, left))
            try:
                again()
                return job()
            except StorageError as error:
                failed = error
    raise failed


@contextmanager
def _trying_again() -> Iterator[None]:
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
