"""A command of `sports-ray` on a terminal: a child like those of `shell.py`, whose two streams are a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.support.runs import FORKS
from tests.support.shell import _call

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x9b]")
"""Everything that is no text but the end of a line."""
LIMIT = 60.0


def on_terminal(folder: Path, *words: str, environment: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str]:
    """Exit code, and all that the command wrote to its terminal, whose line ends are given back as they were."""
    lead, follow = os.openpty()
    process = FORKS.Process(target=_command, args=(words, folder, os.ttyname(follow), dict(environment)))
    process.start()
    written = bytearray()
    try:
        told = time.monotonic()
        while True:
            alive = process.is_alive()  # asked first: what it wrote before its end is read
            if select.select([lead], [], [], 0.1)[0]:
                written += os.read(lead, 65536)
                told = time.monotonic()
            elif not alive:
                break
            elif time.monotonic() - told > LIMIT:
                raise AssertionError(f"sports-ray {' '.join(words)} says nothing for {LIMIT:g} s")
    finally:
        process.kill()
        process.join()
        os.close(lead)
        os.close(follow)
    assert process.exitcode is not None
    return process.exitcode, written.decode().replace("\r\n", "\n")


def _command(words: tuple[str, ...], folder: Path, terminal: str, environment: Mapping[str, str]) -> None:
    os.environ.pop("JPY_PARENT_PID", None)
    os.environ.update(environment)
    _call(words, folder, [Path(terminal), Path(terminal), folder / ".imported"])
