"""`chaos`: the proof that nothing is lost, on anyone's own machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.show import can_be_drawn_over, duration
from sports_ray.stops import terminated_like_interrupted

if TYPE_CHECKING:
    from rich.progress import Progress

    from sports_ray.chaos.report import Report

NAMES = {"driver": "driver", "worker": "Ray worker"}


@click.command()
@click.option("--minutes", default=5.0, show_default=True, metavar="N", help="How long to go on killing.")
@click.option("--workers", default=0, show_default=True, metavar="0|1|2", help="0: one process; else workers on Ray.")
@click.option("--data", default="", metavar="DIR", help="Photographs. Default: a small set is drawn.")
@click.option("--model", default="test_resnet", show_default=True, metavar="NAME", help="A timm model, from scratch.")
@click.option("--epochs", default=0, metavar="N", help="Epochs of each run. Default: 16 of a drawn set, else 2.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Fixes training, and the draws of moments.")
@click.option("--store", default="", metavar="DIR", help="Keep the unbroken run here. Default: a temporary folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def chaos(as_json: bool, **options: Any) -> int:
    """Prove on this machine that a killed training loses nothing.

    Trains a run unbroken. Then trains it again and again, kills it with SIGKILL at random moments of start-up, steps,
    evaluation and saving, starts it again by the same command, and compares what it leaves with the unbroken run, byte
    by byte: weights, metrics, checkpoint. Runs that differ are kept. Only processes that it started are killed.

    \b
    Examples:
      sports-ray chaos                                   five minutes, in process, on drawn photographs
      sports-ray chaos --workers 2 --minutes 15          workers and drivers of Ray Train die
      sports-ray chaos --data photos --model test_vit --minutes 30
      sports-ray chaos --minutes 1 --seed 7 --json

    Exit codes: 0 all equal, 2 your mistake, 3 something differs or stayed behind.
    """
    from sports_ray.chaos.proof import prove
    from sports_ray.chaos.setting import Setting

    setting = Setting(**options)
    show = JsonLines() if as_json else Live(setting.minutes) if can_be_drawn_over(sys.stdout) else Lines()
    try:
        with terminated_like_interrupted():
            report = prove(setting, show.tell)
    finally:
        show.close()
    show.report(report)
    return 0 if report.holds else 3


class JsonLines:
    """One object a line, the report last."""

    def tell(self, event: Mapping[str, Any]) -> None:
        print(json.dumps({"event": event["kind"], **{k: v for k, v in event.items() if k != "kind"}}), flush=True)

    def report(self, report: Report) -> None:
        self.tell({"kind": "report", **report.to_json()})

    def close(self) -> None:
        """Nothing is open."""


class Lines:
    """Lines without control codes."""

    def tell(self, event: Mapping[str, Any]) -> None:
        self.line(*words_of(event))

    def line(self, name: str, text: str) -> None:
        print(f"{name:<12} {text}", flush=True)

    def report(self, report: Report) -> None:
        for name, text in summary(report):
            for index, line in enumerate(text.splitlines()):
                self.line("" if index else name, line)

    def close(self) -> None:
        """Nothing is open."""


class Live(Lines):
    """A bar of the time, and what was found so far; lines scroll above it."""

    def __init__(self, minutes: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        columns = (TimeElapsedColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._bar: Progress = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._task = self._bar.add_task("training the unbroken run", total=60 * minutes)
        self._started, self._kills, self._rounds, self._different = time.monotonic(), 0, 0, 0
        self._bar.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        super().tell(event)
        self._kills += event["kind"] == "killed"
        self._rounds += event["kind"] == "round"
        self._different += event["kind"] == "round" and bool(event["differences"])
        words = f"{self._kills} kills · {self._rounds} runs compared · {self._different} differ"
        self._bar.update(self._task, completed=time.monotonic() - self._started, description=words)

    def line(self, name: str, text: str) -> None:
        from rich.markup import escape

        self._console.print(f"[bold]{name:<12}[/] {escape(text)}", soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def words_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """An event of the proof as a name and a line."""
    kind = event["kind"]
    if kind == "drawn":
        return "photographs", f"{event['images']} drawn, of {event['classes']} sports"
    if kind == "unbroken":
        return "unbroken", f"{event['steps']} steps in {duration(event['seconds'])} · {event['path']}"
    if kind == "killed":
        where = f"{event['phase']}, at step {event['step']} of {event['total_steps']}"
        return f"run {event['round']}", f"{NAMES[event['victim']]} {event['pid']} killed in {where}"
    if kind == "went on":
        first = f"first step after {event['seconds']:.1f} s" if event["seconds"] is not None else "killed before a step"
        return "", f"went on from step {event['step']} ({event['redone']} done again) · {first}"
    found = ", ".join(event["differences"])
    verdict = f"DIFFERS: {found} · kept in {event['path']}" if found else "equal, byte for byte"
    return f"run {event['number']}", f"{verdict} · {event['kills']} kills, {duration(event['seconds'])}"


def summary(report: Report) -> list[tuple[str, str]]:
    """The report as names and texts."""
    redone, seconds = report.redone(), report.recoveries()
    different = [f"{one.path}: {', '.join(one.differences)}" for one in report.different]
    times = "none was seen"
    if seconds:
        times = f"median {median(seconds):.1f} s, worst {max(seconds):.1f} s (of {len(seconds)} kills)"
    return [
        ("", ""),
        ("kills", kills_table(report)),
        ("runs", f"{len(report.rounds)} compared with the unbroken one, of {report.steps} steps each"),
        ("differences", "\n".join(different) if different else "none: weights, metrics and checkpoints are equal"),
        ("work redone", f"{sum(redone)} steps in all, {max(redone, default=0)} after the worst kill"),
        ("next step", times),
        ("left behind", "\n".join(report.left_behind) or "no process"),
        ("time", duration(report.seconds)),
    ]


def kills_table(report: Report) -> str:
    from sports_ray.chaos.report import PHASES

    counts = report.counts()
    lines = [f"{'':<12}" + "".join(f"{phase:>12}" for phase in (*PHASES, "all"))]
    for kind, row in counts.items():
        values = [row[phase] for phase in PHASES]
        lines.append(f"{NAMES[kind]:<12}" + "".join(f"{value:>12}" for value in (*values, sum(values))))
    return "\n".join(lines)
