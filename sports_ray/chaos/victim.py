"""One start of the training command in a process of its own, which can be killed, and what it was doing when it died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sports_ray.errors import TrainingError
from sports_ray.processes import Processes, below, process_start

Event = dict[str, Any]
POLL_SECONDS = 0.002


class Victim:
    """A training in a process group of its own. A context manager: nothing of the group outlives it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        run: Path,
        errors: Path,
        on_ray: bool,
        family: Processes,
    ) -> None:
        """Starts the command; its stderr goes to `errors`. `family` takes up every process seen below it."""
        self.run, self.errors, self._on_ray = run, errors, on_ray
        self.events: list[tuple[float, Event]] = []
        """What the command said with --json so far, and when, on the monotonic clock."""
        self._since = 0
        self.family = family
        self._unfinished_before = unfinished(run)
        self._starts_before = len(starts(run))
        self._changed = threading.Condition()
        with errors.open("ab") as sink, signals_kept_waiting():
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=sink, env=environment, start_new_session=True
            )
            self.look_around()  # from here on it is known, and ended whatever happens
        self._reader = threading.Thread(target=self._read, name="victim", daemon=True)
        self._reader.start()

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *exception: object) -> None:
        """What a killed driver left behind is for nobody to tidy up here: it has to end by itself."""
        if self.process.poll() is None:
            self.look_around()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def attempt(self) -> list[tuple[float, Event]]:
        """What the newest attempt has said, and when. On Ray a dead worker's last words may come after its death."""
        told = self.events[self._since :]
        if self._on_ray:
            begins = [index for index, (_, event) in enumerate(told) if event["event"] == "workers"]
            return told[begins[-1] :] if begins else []
        return told

    def heard(self, kind: str) -> int:
        """How often the newest attempt has said something of a kind."""
        return sum(event["event"] == kind for _, event in self.attempt())

    def wait(self, until: Callable[[], bool], seconds: float, poll: float = 0.25) -> bool:
        """Waits until something holds, looking after each event and every `poll` seconds. False: ended, or too late."""
        end = time.monotonic() + seconds
        with self._changed:
            while not until():
                left = end - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    return False
                self._changed.wait(min(left, poll))
        return True

    def kill(self, kind: str) -> int:
        """SIGKILL for the driver or for its worker of rank 0; the id of the process, 0 if there was none to be killed."""
        self.look_around()
        pid = self.process.pid if kind == "driver" else self._worker()
        if not pid or self.process.poll() is not None:
            return 0
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return 0
        if kind == "driver":
            self.process.wait()
            self._reader.join(timeout=2)  # Ray's processes may hold the other end a little longer
        return pid

    def phase(self) -> str:
        """Where the newest attempt stands, by what it has told and left: start-up, step, evaluation or saving."""
        if self.saves():
            return "saving"
        told = [event for _, event in self.attempt() if event["event"] in ("step", "evaluation", "evaluated")]
        if not told:
            return "start-up"
        last = told[-1]
        if last["event"] == "evaluation":
            return "evaluation"
        return "saving" if last["event"] == "evaluated" and last["step"] >= self.total_steps else "step"

    @property
    def total_steps(self) -> int:
        """Of the whole run, by the plan that the command has told; 0 before that."""
        return max((event.get("total_steps", 0) for _, event in self.events), default=0)

    def begin_attempt(self) -> None:
        """What comes from now on is of the attempt that follows a killed worker."""
        self._unfinished_before = unfinished(self.run)
        self._starts_before = len(starts(self.run))
        self._since = len(self.events)

    def saves(self) -> bool:
        return bool(unfinished(self.run) - self._unfinished_before)

    def why(self) -> str:
        """The last line on stderr, for an error of ours."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.poll()}"

    def finish(self, seconds: float) -> None:
        """Waits for the end of the training. TrainingError if it fails, or does not come within `seconds`."""
        end = time.monotonic() + seconds
        while (code := self.process.poll()) is None and time.monotonic() < end:
            self.look_around()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)
        if code:
            raise TrainingError(f"the run {self.run} failed", got=f"exit code {code}: {self.why()}", want="exit code 0")
        if code is None:
            raise TrainingError(
                f"the run {self.run} hangs", got=f"no end within {seconds:.0f} s", cure=f"see {self.run}/logs"
            )
        self._reader.join(timeout=2)

    def look_around(self) -> None:
        """Takes note of all processes below the driver."""
        self.family |= below(self.process.pid)

    def _worker(self) -> int:
        """The worker of rank 0 that writes the run now, by the run's own timings; 0 before it has started."""
        told = starts(self.run)[self._starts_before :]
        pid = int(told[-1].get("pid", 0)) if told else 0
        return pid if pid in self.family and process_start(pid) == self.family[pid] else 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                event = json.loads(line)
                with self._changed:
                    self.events.append((time.monotonic(), event))
                    self._changed.notify_all()


@contextmanager
def signals_kept_waiting() -> Iterator[None]:
    """SIGINT and SIGTERM in the block take effect after it. They are caught and not masked: a child inherits a mask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda n, frame: seen.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if seen:
            os.kill(os.getpid(), seen[0])


def starts(run: Path) -> list[Event]:
    """The starts that a run's timings record, one an attempt that got as far as its first step."""
    with suppress(OSError):
        lines = (run / "timings.jsonl").read_bytes().splitlines()
        return [event for line in lines if (event := _json(line)).get("kind") == "start"]
    return []


def _json(line: bytes) -> Event:
    with suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else {}
    return {}


def unfinished(run: Path) -> set[str]:
    """What is being written just now, or was left by a death: checkpoints without a record, temporary files."""
    found = {str(path) for folder in (run, run / "weights") for path in folder.glob(".*.tmp")}
    for folder in (run / "checkpoints").glob("step-*"):
        if not (folder / "COMMIT.json").exists():
            found.add(str(folder))
    return found
