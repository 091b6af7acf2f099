"""What a person sees of a training: a live bar on a terminal, plain lines in a pipe, JSON lines with --json."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from sports_ray.score.main_score import NAMES, score_name, score_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0


class Out:
    """A stream for people, which may break at any time: a reader that leaves, a full disk, a terminal that is closed.

    No work ends for that. After the first failure nothing more is written."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None where the command was started without it (`>&-`)."""
        self._stream: Any = stream
        self._broken = stream is None
        self._waiting = ""

    def line(self, text: str) -> None:
        self.write(f"{text}\n")
        self.flush()

    def write(self, text: str) -> int:
        self._waiting += text
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(lambda: self._stream.flush())
        self._waiting = ""

    def _do(self, act: Callable[[], object]) -> None:
        try:
            if not self._broken:
                self._unless_in_a_write(act)
        except OSError:
            self._give_up()

    def _unless_in_a_write(self, act: Callable[[], object]) -> None:
        """A signal's handler may be here in the midst of a write that waits for its reader: Python's buffers take no other
        then. What that write was to bring, and what the handler has to say, go past them; the process ends behind it."""
        try:
            act()
        except RuntimeError:
            waiting, self._waiting = self._waiting, ""
            os.write(self._stream.fileno(), waiting.encode(self._stream.encoding, "backslashreplace"))

    def console(self) -> Console:
        """A console of rich's, which writes through this."""
        from rich.console import Console

        return Console(highlight=False, file=cast("TextIO", self))

    def _give_up(self) -> None:
        """What the stream still holds goes nowhere: Python flushes it at its end, and a failure would change the exit code."""
        self._broken = True
        with suppress(OSError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Show(Protocol):
    def fact(self, name: str, text: str, /, **data: Any) -> None:
        """One line of the plan or the summary; `data` is the same for machines."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Progress, as the engine and the supervisor send it."""

    def close(self) -> None: ...


def choose_show(as_json: bool) -> Show:
    if as_json:
        return JsonShow()
    return LiveShow() if can_be_drawn_over(sys.stdout) else PlainShow()


def own_words() -> list[str]:
    """The words of this command, as they may be shown and kept."""
    from sports_ray.store.storage import without_keys

    return ["sports-ray", *map(without_keys, sys.argv[1:])]


def can_be_drawn_over(stream: TextIO | None) -> bool:
    """Whether a bar may be drawn there: a terminal. That of `!COMMAND` in a notebook keeps every line and shows control codes
    as they are; it is known by the variable that Jupyter gives to its kernels."""
    return stream is not None and stream.isatty() and "JPY_PARENT_PID" not in os.environ


class JsonShow:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._out = Out(sys.stdout)  # taken now: while Ray is up, sys.stdout leads to a log

    def fact(self, name: str, text: str, /, **data: Any) -> None:
        self._line({"event": name, **data, "text": text})

    def event(self, event: Mapping[str, Any]) -> None:
        self._line({"event": event["kind"], **{key: value for key, value in event.items() if key != "kind"}})

    def close(self) -> None:
        self._out.flush()

    def _line(self, record: Mapping[str, Any]) -> None:
        self._out.line(json.dumps(record, ensure_ascii=False))


class Pace:
    """Estimates the time left from the steps seen, pauses for evaluation included."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, step: int, total: int) -> str:
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        done = step - self._first[1]
        return duration((now - self._first[0]) / done * (total - step)) if done else "?"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def evaluation_line(event: Mapping[str, Any]) -> str:
    name = score_name(event)
    score = f"val {event[f'val_{name}']:.4f}" if name == "acc1" else f"val {NAMES[name]} {event[f'val_{name}']:.4f}"
    if f"ema_val_{name}" in event:
        score += f" · EMA {event[f'ema_val_{name}']:.4f}"
    loss = f"train loss {event['train_loss']:.4f} · " if event.get("train_loss") is not None else ""
    return f"epoch {event['epoch']}: {loss}{score}{' · best' if event.get('best') else ''}"


def restart_line(event: Mapping[str, Any]) -> str | None:
    """The words for an event that is worth a line of its own, or None."""
    if event["kind"] == "restart":
        return f"! {event['reason']}: starting again from the last commit"
    if event["kind"] == "store":
        safe = f"step {event['committed']} is safe"
        if event["state"] == "back":
            return f"the store is back after {duration(event['seconds'])}: {safe}"
        return f"! the store fails since {duration(event['seconds'])} ({event['reason']}): training goes on, {safe}"
    if event["kind"] == "start":
        where = f"at step {event['step']} of {event['total_steps']}"
        return f"{'training from the start' if not event['step'] else 'going on'} {where} · {event['precision']}"
    return None


class PlainShow:
    """Lines without control codes; at most one every ten seconds between evaluations."""

    def __init__(self) -> None:
        self._pace, self._last, self._out = Pace(), 0.0, Out(sys.stdout)

    def fact(self, name: str, text: str, /, **data: Any) -> None:
        for index, line in enumerate(text.splitlines()):
            self._out.line(f"{name if not index else '':<11} {line}")

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "evaluated":
            self._out.line(evaluation_line(event))
        elif line := restart_line(event):
            self._began(event)
            self._out.line(line)
        elif event["kind"] == "step":
            left = self._pace.left(event["step"], event["total_steps"])
            if time.monotonic() - self._last >= PLAIN_SECONDS:
                self._last = time.monotonic()
                share = 100 * event["step"] / event["total_steps"]
                self._out.line(
                    f"epoch {event['epoch']}/{event['epochs']} · step {event['step']} · {share:.0f} % · "
                    f"{event['images_per_second']:.0f} images/s · loss {event['loss']:.3f} · {left} left"
                )

    def _began(self, event: Mapping[str, Any]) -> None:
        """A training begins, the first one or another: what was before it says nothing of its time."""
        if event["kind"] == "start":
            self._pace = Pace()

    def close(self) -> None:
        self._out.flush()


class LiveShow(PlainShow):
    """A bar with speed, loss, best score and time left; facts and evaluations scroll above it."""

    def __init__(self) -> None:
        super().__init__()
        self._console = self._out.console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._best = ""

    def fact(self, name: str, text: str, /, **data: Any) -> None:
        self.close()
        for index, line in enumerate(text.splitlines()):
            self._console.print(f"[bold]{name if not index else '':<11}[/] {_escape(line)}", soft_wrap=True)

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "evaluated":
            if event.get("best"):
                self._best = f"best {score_of(event):.3f} (epoch {event['epoch']})"
            self._above(evaluation_line(event))
        elif line := restart_line(event):
            self._began(event)
            self._above(line)
        elif event["kind"] == "step":
            self._update(event)

    def _began(self, event: Mapping[str, Any]) -> None:
        super()._began(event)
        if event["kind"] == "start" and not event["step"]:
            self._best = ""

    def _above(self, line: str) -> None:
        (self._bar.console if self._bar else self._console).print(_escape(line))

    def _update(self, event: Mapping[str, Any]) -> None:
        left = self._pace.left(event["step"], event["total_steps"])
        if self._bar is None:
            self._start(event["total_steps"])
        assert self._bar is not None and self._task is not None
        text = f"{event['images_per_second']:.0f} images/s · loss {event['loss']:.2f}"
        text += f" · {self._best}" if self._best else ""
        epoch = f"epoch {event['epoch']}/{event['epochs']}"
        self._bar.update(self._task, completed=event["step"], description=epoch, text=f"{text} · {left} left")

    def _start(self, total: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=5)
        self._task = self._bar.add_task("", total=total, text="")
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
