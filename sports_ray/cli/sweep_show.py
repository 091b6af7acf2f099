"""What a person sees of a sweep: a live table on a terminal, plain lines in a pipe, JSON lines with --json."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sports_ray.cli.show import JsonShow, LiveShow, Out, Show
from sports_ray.score.main_score import score_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Event = Mapping[str, Any]
SHOWN = 30
"""Rows of the live table."""
_WORDS = {"done": "done", "stopped": "stopped", "failed": "failed", "open": "waiting"}


def params_words(params: Mapping[str, Any] | None) -> str:
    """optim.lr=0.001 augment.mixup=0.2"""
    return " ".join(f"{key}={value_words(value)}" for key, value in (params or {}).items())


def value_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def end_words(event: Event) -> str:
    """How a trial ended."""
    if event["status"] == "paused":
        from sports_ray.sweep.conduct import HALVED

        return f"{'stopped' if event['reason'] == HALVED else 'paused'} ({event['reason']})"
    return f"{event['status']}{': ' + event['reason'] if event['reason'] else ''}"


def event_line(event: Event) -> str | None:
    """The words for an event that is worth a line, or None."""
    if event["kind"] == "begin":
        return f"begins · {params_words(event['params'])}"
    if event["kind"] == "start" and event["step"]:
        return f"goes on at step {event['step']} of {event['total_steps']}"
    if event["kind"] == "evaluated":
        return f"epoch {event['epoch']} · val {accuracy(event):.4f}{' · best' if event.get('best') else ''}"
    if event["kind"] == "end":
        return end_words(event)
    if event["kind"] == "restart":
        return f"! {event['reason']}: starting again from the last commit"
    return None


class SweepShow:
    """Takes the events of all trials, and shows those that matter. `show`: how the command shows its facts."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._out = Out(sys.stdout)  # taken now: while Ray is up, sys.stdout leads to a log

    def event(self, name: str, event: Event) -> None:
        if isinstance(self._show, JsonShow):
            self._show.event({**event, "trial": name})
        elif line := event_line(event):
            self._out.line(f"{name}: {line}")

    def close(self) -> None:
        """Nothing to take down."""


def accuracy(event: Event) -> float:
    """What counts as the score of an evaluation: the EMA's where there is one."""
    return float(score_of(event))


class LiveSweep(SweepShow):
    """One table that stays in place: trial, backbone, settings, epoch, score, state."""

    def __init__(self, show: Show, rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(show)
        self._rows: dict[str, dict[str, Any]] = {
            row["trial"]: {**row, "state": _WORDS[row["state"]], "score": score_of(row), "epoch": row["epochs"]}
            for row in sorted(rows, key=lambda row: row["trial"])
        }
        self._live: Live | None = None

    def event(self, name: str, event: Event) -> None:
        row, kind = self._rows[name], event["kind"]
        if kind == "begin":
            row |= {"state": "starting", "params": event["params"]}
        elif kind in ("start", "step"):
            row |= {"state": "training", "epoch": event.get("epoch", row["epoch"])}
        elif kind == "evaluated":
            row |= {"epoch": event["epoch"], "score": max(row["score"] or 0.0, accuracy(event))}
        elif kind == "end":
            row["state"] = end_words(event)
        elif kind == "restart":
            row["state"] = f"again ({event['reason']})"
        self._draw()

    def _draw(self) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._out.console(), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "settings", "epoch", "best", "state"):
            table.add_column(
                column, justify="right" if column in ("epoch", "best") else "left", no_wrap=column == "trial"
            )
        waiting = [row for row in self._rows.values() if row["state"] == "waiting"]
        shown = [row for row in self._rows.values() if row["state"] != "waiting"][-SHOWN:]
        for row in [*shown, *waiting[: max(0, SHOWN - len(shown))]]:
            score = f"{row['score']:.4f}" if row["score"] is not None else ""
            words = [row["trial"], params_words(row["params"]), str(row["epoch"] or ""), score, str(row["state"])]
            table.add_row(*map(escape, words))
        return table

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def choose_sweep_show(show: Show, rows: Sequence[Mapping[str, Any]]) -> SweepShow:
    return LiveSweep(show, rows) if isinstance(show, LiveShow) else SweepShow(show)
