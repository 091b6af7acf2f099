"""Freed memory stays in the process; the collector leaves alone what is settled."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from sports_ray.engine.memory import settled_objects

PAGES = 12_000
AGAIN = f"""
import resource, sys, threading

if sys.argv[1] == "kept":
    from sports_ray.engine.memory import keep_freed_memory

    assert keep_freed_memory()

def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray({PAGES} * 4096)
    block[::4096] = bytes([1]) * {PAGES}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def twice():
    fill()
    print(fill())

if sys.argv[2] == "thread":
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
else:
    twice()
"""


def faults_of_the_second_use(*words: str) -> int:
    return int(subprocess.run([sys.executable, "-c", AGAIN, *words], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_block_that_was_freed_is_used_again_without_page_faults(where: str) -> None:
    assert faults_of_the_second_use("kept", where) < PAGES / 100
    assert faults_of_the_second_use("plain", where) > PAGES / 2, "glibc keeps it by itself: the call is not needed"


def test_settled_objects_are_frozen_in_the_block_only() -> None:
    gc.unfreeze()
    with settled_objects():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
