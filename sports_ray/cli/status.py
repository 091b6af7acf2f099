"""`status`: the runs of a store, or one of them, from what lies there: words for `engine.overview`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.show import can_be_drawn_over, duration
from sports_ray.errors import ConfigError, RunError, StorageError
from sports_ray.score.main_score import NAMES, score_name, score_of

if TYPE_CHECKING:
    from sports_ray.store.run_dir import RunDir

WATCH_SECONDS = 2.0
Facts = dict[str, Any]


@click.command()
@click.argument("run", required=False)
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=str(WATCH_SECONDS),
    metavar="[SECONDS]",
    help="Look again every 2 (or SECONDS) seconds, until Ctrl-C.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line each time.")
def status(run: str | None, store: str, watch: str | None, as_json: bool) -> None:
    """Show all runs of a store, or RUN: a name, or the path of a run or of a store.

    Training (by whom), paused, done, damaged or not started; steps, best score, age of the last commit, work lost to
    deaths so far, and the command to go on. It reads records, not tensors: `sports-ray verify` reads every byte.

    \b
    Examples:
      sports-ray status
      sports-ray status runs/test_resnet-3f9a1c2e --watch
      sports-ray status --store s3://bucket/runs --json
    """
    every, run = watch_seconds(watch, run)

    def look() -> tuple[Facts | list[Facts], str]:
        found = facts_of(run, store)
        return found, text_of(found, run or store)

    if every is None:
        found, text = look()
        click.echo(json.dumps(found, ensure_ascii=False) if as_json else text)
        return
    with suppress(KeyboardInterrupt):
        if as_json or not can_be_drawn_over(sys.stdout):
            watch_lines(look, every, as_json)
        else:
            watch_live(lambda: look()[1], every)


def watch_seconds(watch: str | None, run: str | None) -> tuple[float | None, str | None]:
    """(seconds or None, RUN): in `status --watch RUN` the name stands where the seconds may."""
    if watch is None:
        return None, run
    try:
        seconds = float(watch)
    except ValueError:
        if run is not None:
            raise ConfigError("--watch", got=watch, want="seconds", cure="for example --watch 5") from None
        return WATCH_SECONDS, watch
    if not 0 < seconds < float("inf"):
        raise ConfigError("--watch", got=watch, want="more than 0 seconds", cure="for example --watch 5")
    return seconds, run


def watch_lines(look: Callable[[], tuple[Facts | list[Facts], str]], every: float, as_json: bool) -> None:
    """Prints what has changed since the last look, the age of a commit apart; with JSON, every look."""
    before: Any = None
    while True:
        found, text = look()
        steady = _steady(found)
        if as_json:
            click.echo(json.dumps(found, ensure_ascii=False))
        elif steady != before:
            click.echo(text)
        sys.stdout.flush()
        before = steady
        time.sleep(every)


def _steady(found: Facts | list[Facts]) -> list[Facts]:
    rows = found if isinstance(found, list) else [found]
    return [{key: value for key, value in row.items() if not key.endswith("_age")} for row in rows]


def watch_live(look: Callable[[], str], every: float) -> None:
    """Keeps the text in place on the terminal; the last one stays there."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            stamp = f"\nat {time.strftime('%H:%M:%S')}, every {every:g} s · Ctrl-C ends"
            live.update(Text(look()) + Text(stamp, style="dim"), refresh=True)
            time.sleep(every)


def facts_of(run: str | None, store: str) -> Facts | list[Facts]:
    """Of one run, or of all runs of a store. RunError if there is no such run."""
    from sports_ray.store.run_dir import RunDir
    from sports_ray.store.storage import open_storage

    where = open_storage(run or store)
    names = [] if run and _is_file(run) else _names(run or store)
    if run and not names:
        root, name = find(run, store)
        return run_facts(RunDir.open(open_storage(root), name), name)
    return [run_facts(RunDir.open(where, name), name) for name in names]


def _names(place: str) -> list[str]:
    """Of the runs in a store. ConfigError where a file stands in its place, or of a folder above it."""
    from sports_ray.store.run_dir import list_runs
    from sports_ray.store.storage import open_storage

    try:
        return list_runs(open_storage(place))
    except StorageError as error:
        if not isinstance(error.__cause__, NotADirectoryError):
            raise
        got, want = f"{place}: is no folder", "a folder that holds runs"
        raise ConfigError("store", got=got, want=want, cure="another --store DIR") from error


def _is_file(run: str) -> bool:
    """Then it is no store, but may still be the name of a run, with a file of this name in the current folder."""
    return os.path.isfile(os.path.expanduser(run))


def run_facts(run_dir: RunDir, name: str) -> Facts:
    """As `engine.overview` has it, which brings torch: imported when it is called."""
    from sports_ray.engine.overview import run_facts

    return run_facts(run_dir, name)


def find(run: str, store: str) -> tuple[str, str]:
    """(store, name) of a run that is there, damaged or not; RunError otherwise."""
    from sports_ray.store.storage import parted

    root, name = parted(run)
    file = _is_file(run)
    for where, called in (("" if file else root, name), (store, run)):
        if where and "/" not in called and called in _names(where):
            return where, called
    got = f"{run}, a file" if file else run
    raise RunError("run", got=got, want=f"a run in {store}, or the path of one", cure="see `sports-ray status`")


def text_of(found: Facts | list[Facts], where: str) -> str:
    if isinstance(found, dict):
        return describe(found)
    return table(found) if found else f"no runs in {where}; start one with `sports-ray train`"


def describe(facts: Facts) -> str:
    """One run, a fact a line."""
    lines = [("run", facts["where"]), ("state", _state_words(facts))]
    if facts.get("reason"):
        lines.append(("", facts["reason"]))
    if "model" in facts:
        best = facts["best"]
        score = f"val {NAMES[score_name(best)]} {score_of(best):.4f} in epoch {best['epoch']}" if best else ""
        lines += [
            ("model", facts["model"]),
            ("steps", f"{facts['step']} of {facts['total_steps']} ({facts['epochs']} epochs){_age_words(facts)}"),
            ("best", score or "not evaluated yet"),
            ("time", _time_words(facts)),
            ("lost", f"at least {facts['steps_lost_at_least']} steps had to be done again"),
        ]
    if facts.get("command"):
        lines.append(("look" if facts["state"] == "damaged" else "go on", facts["command"]))
    return "\n".join(f"{name:<11} {text}" for name, text in lines)


def _state_words(facts: Facts) -> str:
    by = facts.get("by")
    if not by:
        return facts["state"]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(by["since"])) if by["since"] else "an unknown time"
    unseen = "" if by["seen"] else " (another host: whether it lives is not seen from here)"
    return f"{facts['state']} by {by['host']}, pid {by['pid']}, since {since}{unseen}"


def _age_words(facts: Facts) -> str:
    return f" · committed {duration(facts['commit_age'])} ago" if facts["commit_age"] is not None else ""


def _time_words(facts: Facts) -> str:
    sessions = f"{facts['sessions']} session{'s' * (facts['sessions'] != 1)}"
    stalls = f"{facts['commits']} commits, which stalled training for {facts['stall_seconds']:.2f} s"
    return f"{duration(facts['seconds'])} in {sessions}, killed ones not counted · {stalls}"


def table(rows: list[Facts]) -> str:
    """All runs, one a line."""
    width = max(len("run"), *(len(row["name"]) for row in rows))
    lines = [f"{'run':<{width}}  {'state':<11} {'steps':>15} {'commit':>8}  {'best':>7}  {'sessions':>8}  {'lost':>5}"]
    for row in rows:
        start = f"{row['name']:<{width}}  {row['state']:<11} "
        if "model" not in row:
            lines.append(start + row["reason"])
            continue
        best = f"{score_of(row['best']):.4f}" if row["best"] else "-"
        age = duration(row["commit_age"]) if row["commit_age"] is not None else "-"
        steps = f"{row['step']}/{row['total_steps']}"
        lines.append(
            f"{start}{steps:>15} {age:>8}  {best:>7}  {row['sessions']:>8}  {row['steps_lost_at_least']:>5}"
            + (f"  {row['reason']}" if row.get("reason") else "")
        )
    return "\n".join(lines)
