"""Processes of their own that open a pack from an S3-protocol server through a cache of this machine."""

from __future__ import annotations

import json
import os
import resource
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.runs import FORKS
from tests.support.s3 import set_credentials

LIMIT = 60.0


class Opener:
    """A process that opens a pack, fetches it and tells what it saw; with `stay` it keeps the pack open until `leave`."""

    def __init__(
        self, told: Path, uri: str, cache: Path, gb: float = -1.0, file_limit: int = 0, stay: bool = False
    ) -> None:
        self._told = told
        self._mine, theirs = FORKS.Pipe()
        arguments = (told, uri, str(cache), gb, file_limit, stay, theirs)
        self.process: BaseProcess = FORKS.Process(target=_open, args=arguments)
        self.process.start()
        theirs.close()

    def wait(self) -> dict[str, Any]:
        """What it told once it had fetched the pack, or failed to."""
        assert self._mine.poll(LIMIT), "the process hangs"
        self._mine.recv()
        return dict(json.loads(self._told.read_text()))

    def leave(self) -> int | None:
        self._mine.close()
        self.process.join(LIMIT)
        return self.process.exitcode


def _open(told: Path, uri: str, cache: str, gb: float, file_limit: int, stay: bool, parent: Any) -> None:
    from sports_ray.config import DataConfig
    from sports_ray.data.pack import open_pack
    from sports_ray.errors import SportsRayError

    set_credentials()
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        pack = open_pack(uri, DataConfig(pack_cache=cache, pack_cache_gb=gb))
        pack.fetch()
        found: dict[str, Any] = {"images": {name: len(pack.read(name)) for name in pack.ids}}
        pack.check()
    except SportsRayError as error:
        found = {"error": str(error), "kind": type(error).__name__, "code": error.exit_code}
    handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.write(handle, json.dumps(found).encode())
    parent.send("told")
    if stay:
        parent.poll(None)


def fetch(folder: Path, uri: str, cache: Path, gb: float = -1.0, file_limit: int = 0) -> dict[str, Any]:
    """What a process of its own saw that opened and fetched a pack, and ended."""
    opener = Opener(folder / "told.json", uri, cache, gb, file_limit)
    found = opener.wait()
    assert opener.leave() == 0
    return found
