"""Progress of predictions: a bar on a terminal, a line every ten seconds in a pipe, JSON lines with --json."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sports_ray.cli.show import PLAIN_SECONDS, Out, Show, can_be_drawn_over, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class BlocksShow:
    """What is left to compute of each member, how fast it goes, and how many images were bad."""

    def __init__(self, show: Show, as_json: bool) -> None:
        self._show, self._as_json = show, as_json
        self._live = not as_json and can_be_drawn_over(sys.stdout)
        self._out = Out(sys.stdout)  # taken now: while Ray is up, sys.stdout leads to a log
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._to_do: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._bad = 0
        self._begun = self._last = time.monotonic()

    def event(self, event: Mapping[str, Any]) -> None:
        if self._as_json:
            self._show.event(event)
        elif event["kind"] == "work":
            self._work(event)
        elif event["kind"] == "block":
            self._block(event)
        elif event["kind"] in ("fitting", "scoring"):
            self.close()
            words = {"fitting": "weights of the members, on validation images", "scoring": "and writing"}
            self._show.fact(event["kind"], words[event["kind"]])

    def _work(self, event: Mapping[str, Any]) -> None:
        name, images, to_do = event["member"], event["images"], event["to_do"]
        self._to_do[name], self._done[name] = to_do, 0
        words = f"{name}: {to_do:,} of {images:,} images to compute on {event['device']}"
        if not to_do:
            words = f"{name}: all {images:,} images are on disk"
        elif to_do < images:
            words += ", the rest is on disk"
        self._show.fact("work", words)

    def _block(self, event: Mapping[str, Any]) -> None:
        name = event["member"]
        now = time.monotonic()
        if not self._done.get(name):
            self._begun = now  # from the first block on: models and Ray take their time to start
        self._done[name] = self._done.get(name, 0) + event["images"]
        self._bad += event["bad"]
        done, total = self._done[name], self._to_do.get(name, 0)
        counted, seconds = done - event["images"], now - self._begun
        rate = counted / seconds if counted and seconds > 0 else 0.0
        words = [f"{rate:,.0f} images/s · {duration((total - done) / rate)} left"] if rate else []
        words += [f"{self._bad:,} bad"] if self._bad else []
        if self._live:
            self._update(name, done, total, " · ".join(words))
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            words = [f"{name}: {done:,} of {total:,} images", f"{100 * done / max(1, total):.0f} %", *words]
            self._out.line(" · ".join(words))
        if done >= total:
            self.close()

    def _update(self, name: str, done: int, total: int, words: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
            text = TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, text, console=self._out.console(), transient=True)
            self._task = self._bar.add_task(name, total=total, text="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, text=words)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
