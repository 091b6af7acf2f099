"""A command of `sports-ray` that runs in a child, to be signalled or robbed of its store on the way.

Forked like the children of `shell.py`; `Started` is a new interpreter, as a user starts it, imports and all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.runs import FORKS
from tests.support.shell import Shown, _call

LIMIT = 240.0
"""Seconds after which a command that does not end, or does not do what is waited for, has failed."""


class Running:
    """`sports-ray WORDS` with `folder` as the current one; a context manager that leaves no process behind."""

    def __init__(
        self, folder: Path, *words: str, environment: Mapping[str, str] = MappingProxyType({}), steps: int | None = None
    ) -> None:
        """environment: variables that the command finds besides those there are. steps: after so many optimiser steps it
        waits until more are allowed; None: it never does."""
        self._environment = dict(environment)
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f".{name}" for name in ("out", "err", "imported")]
        self._counter = folder / ".steps"
        for path in (*self._files, self._counter):
            path.write_text("")
        self._gate = None if steps is None else folder / ".allowed"
        if steps is not None:
            (folder / ".allowed").write_bytes(b"." * steps)
        self.begun = time.monotonic()
        self._start(folder, words)

    def _start(self, folder: Path, words: tuple[str, ...]) -> None:
        self._process = FORKS.Process(
            target=_command, args=(words, folder, self._files, self._counter, self._gate, self._environment)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.code is None:
            self._process.kill()
            self._join(LIMIT)

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    def _join(self, seconds: float) -> None:
        self._process.join(seconds)

    def send(self, number: int) -> bool:
        """Sends a signal; whether the command was still there."""
        if self.code is not None:
            return False
        os.kill(self.pid, number)
        return True

    def wait_until(self, happened: Callable[[], object]) -> bool:
        """Waits until something has happened; False if the command ended before."""
        end = time.monotonic() + LIMIT
        while not happened():
            if self.code is not None:
                return bool(happened())
            assert time.monotonic() < end, f"nothing happened; so far: {self.events()[-3:]}"
            time.sleep(0.002)
        return True

    def allow(self, steps: int) -> None:
        """It may go on until it has done so many steps in all."""
        assert self._gate is not None
        os.truncate(self._gate, max(steps, self._gate.stat().st_size))

    def release(self) -> None:
        """It may go on to its end."""
        self.allow(1 << 20)

    def step_until(self, happened: Callable[[], object], every: float) -> bool:
        """As `wait_until`, with a further step each `every` seconds: the run lasts as long as what is waited for."""
        begun, before = time.monotonic(), self.steps

        def paced() -> object:
            self.allow(before + 1 + int((time.monotonic() - begun) / every))
            return happened()

        return self.wait_until(paced)

    def listens(self) -> bool:
        """Whether SIGTERM is caught, as the kernel says: the first lines of the command have been reached."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What has been shown so far; a line that is being written is left for later."""
        lines = self._files[0].read_text(encoding="utf-8").split("\n")[:-1]
        return [event for event in map(json.loads, lines) if not kind or event["event"] == kind]

    @property
    def steps(self) -> int:
        """Optimiser steps of this process, counted by torch's own hook."""
        return self._counter.stat().st_size

    @property
    def last_step(self) -> float:
        """Unix time of the newest optimiser step."""
        return self._counter.stat().st_mtime

    def end(self) -> Shown:
        self._join(LIMIT)
        assert self.code is not None, f"the command hangs; so far: {self.events()[-3:]}"
        out, err, imported = (path.read_text(encoding="utf-8") for path in self._files)
        return Shown(self.code, out, err, frozenset(imported.split()))


class Started(Running):
    """The same in a new interpreter: `python -m sports_ray WORDS`. Its steps are not counted."""

    def _start(self, folder: Path, words: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "sports_ray", *words]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            environment = {**os.environ, **self._environment}
            self._child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, env=environment)
        self.pid = self._child.pid

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.wait()

    @property
    def code(self) -> int | None:
        return self._child.poll()

    def _join(self, seconds: float) -> None:
        self._child.wait(seconds)


def _command(
    words: tuple[str, ...],
    folder: Path,
    files: list[Path],
    counter: Path,
    gate: Path | None,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = os.open(counter, os.O_WRONLY | os.O_APPEND)

    def stepped(*_: object) -> None:
        os.write(handle, b".")
        while gate is not None and os.fstat(handle).st_size >= gate.stat().st_size:
            time.sleep(0.002)

    register_optimizer_step_post_hook(stepped)
    _call(words, folder, files)
