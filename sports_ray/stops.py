"""Signals and the end of the time budget, as reasons to pause, from a command's first moment to its last.

Imports nothing heavy: it is in place before torch is imported, which takes seconds.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

PAUSED, INTERRUPTED = 75, 130
"""Exit codes: to be resumed; ended at once by a second Ctrl-C."""
TIME_BUDGET = "time budget"
DRIVER_GONE = "the driver is gone"
LEAVE_SECONDS, EXIT_SECONDS = 1.0, 0.15
"""Of a time budget, before its very end: when it begins to say how to go on, and when it ends whatever it was saying."""
LEAST_WORDS = 0.3
"""Seconds to say so, also where the budget was over before it could be looked at."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """Notes SIGINT, SIGTERM and an alarm; a second SIGINT ends the process at once, with exit code 130.

    Until somebody looks, nothing is under way that would have to be saved: a signal then ends the process right in the
    handler, with exit code 75, once it is known how to say so. Not by an exception: out of a handler it may rise within an
    import, where C code makes an ImportError with a traceback of it, or where it is swallowed. The alarm always ends the
    process so: who did not stop by himself before it can lose work, but never overruns.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        """What was asked for, oldest first: SIGINT, SIGTERM, time budget."""
        self.looked = False
        """Whether somebody looks, again and again, and stops by himself."""
        self._say: Callable[[str], None] | None = None
        self._before: dict[int, Any] = {}
        self._last_words = 0.0

    def install(self) -> Stops:
        """Takes the signals, or takes them back: ray.init() puts a handler of its own in place. Main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, self._take)
                self._before.setdefault(number, before if before is not None else signal.SIG_DFL)
        return self

    def restore(self) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def leave_with(self, say: Callable[[str], None]) -> None:
        """`say(reason)` is called in the handler, as the last thing before the process ends; now, if a signal came before."""
        self._say = say
        if self.reasons:
            self._leave()

    def alarm(self, end: float) -> None:
        """The process ends before the Unix time `end`; at once, if that is past."""
        left = end - time.time()
        self._last_words = max(min(left, LEAVE_SECONDS) - EXIT_SECONDS, LEAST_WORDS)
        signal.signal(signal.SIGALRM, self._take)
        signal.setitimer(signal.ITIMER_REAL, max(left - LEAVE_SECONDS, 0.001))

    def look(self) -> str:
        """Why to stop, or ""."""
        self.looked = True
        return self.reasons[0] if self.reasons else ""

    def unwatched(self) -> None:
        """Nobody looks any more, and nothing is under way that would have to be saved: as before the first look."""
        self.looked = False
        if self._say is not None and self.reasons:
            self._leave()

    def ignore(self) -> None:
        """The outcome is settled: no signal shall change the exit code while the interpreter takes itself down."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in _SIGNALS if self._before else ():
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reasons:
            _end("interrupted")
        self.reasons.append(TIME_BUDGET if number == signal.SIGALRM else signal.Signals(number).name)
        if self._say is not None and (not self.looked or number == signal.SIGALRM):
            self._leave()

    def _leave(self) -> None:
        say, self._say = self._say, None
        if self.reasons[-1] == TIME_BUDGET:
            # A store that is asked what is safe may be slow. Not `threading`: the handler may have interrupted it.
            _thread.start_new_thread(_end_after, (self._last_words,))
        try:
            if say is not None:
                say(self.reasons[-1])
        finally:
            os._exit(PAUSED)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(PAUSED)


def _end(word: str) -> None:
    """Ends the process from within a handler; the terminal gets its cursor back from a live bar."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")
        os.write(2, f"\n{word}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, which ends the processes that it has started on its way out."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def own_start() -> float:
    """Unix time at which this process was started; now, where the system does not tell."""
    try:
        # The name, in parentheses, may hold anything: the fields are counted from its end.
        ticks = int(Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time()
    # A process that became this program after a longer life, by `exec`, did not start with it.
    return time.time() - age if 0 <= age < 5 else time.time()
