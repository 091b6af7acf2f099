"""Storage that fails for a moment must not end a sweep: what its driver reads for good and writes is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sports_ray.errors import StorageError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 100.0
"""How long it is tried. Ray Tune's loop stands still meanwhile: trials train and commit on, but none starts and none is told
to stop. A reading and a writing in a row stay below cluster.start_timeout (300 s), and one alone below the 120 s after which a
sweep that was asked to stop leaves without its trials."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0

Result = TypeVar("Result")


def patiently(job: Callable[[], Result], again: Callable[[], None] = lambda: None) -> Result:
    """What `job` returns, tried again while it raises StorageError; `again` is called before each further try.

    Raises the last StorageError after PATIENCE_SECONDS, anything else at once."""
    end, delay, first = time.monotonic() + PATIENCE_SECONDS, FIRST_DELAY, True
    while True:
        try:
            if not first:
                again()
            return job()
        except StorageError as error:
            left = end - time.monotonic()
            if left <= 0:
                raise
            log.warning("sweep.storage_failed seconds_left=%.0f reason=%s", left, error)
        time.sleep(min(delay, left))
        delay, first = min(2 * delay, LONGEST_DELAY), False
