"""`status`: the runs of a store, or one of them, from what lies there; reads checkpoints' records, not their tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.show import duration

if TYPE_CHECKING:
    from sports_ray.store.run_dir import RunDir


@click.command()
@click.argument("run", required=False)
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: str | None, store: str, as_json: bool) -> None:
    """Show all runs of a store, or RUN: a name, or the path of a run or of a store.

    \b
    Examples:
      sports-ray status
      sports-ray status runs/test_resnet-3f9a1c2e
      sports-ray status --store s3://bucket/runs --json
    """
    from sports_ray.orchestrate.plan import find_run
    from sports_ray.store.run_dir import RunDir, list_runs
    from sports_ray.store.storage import open_storage

    if run and not list_runs(open_storage(run)):
        root, name, _ = find_run(run, store)
        facts = run_facts(RunDir.open(open_storage(root), name), name)
        click.echo(json.dumps(facts, ensure_ascii=False) if as_json else describe(facts))
        return
    where = open_storage(run or store)
    rows = [run_facts(RunDir.open(where, name), name) for name in list_runs(where)]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
    elif not rows:
        click.echo(f"no runs in {where.uri}; start one with `sports-ray train`")
    else:
        click.echo(table(rows))


def run_facts(run_dir: RunDir, name: str) -> dict[str, Any]:
    """What is known of a run without reading its tensors."""
    from sports_ray.engine.record import time_facts
    from sports_ray.engine.schedule import Schedule
    from sports_ray.errors import SportsRayError
    from sports_ray.orchestrate.plan import finished_epochs
    from sports_ray.recipe import config_from_dict
    from sports_ray.store.commit import list_commits
    from sports_ray.store.lease import is_held

    try:
        record = run_dir.read_record()
        assert record is not None, "list_runs and find_run name only runs"
        config = config_from_dict(record["config"])
    except SportsRayError as error:
        return {"name": name, "state": "damaged", "reason": str(error)}
    schedule = Schedule.of(config, record["data"]["train"], record["data"]["val"])
    history = run_dir.read_metrics()
    steps = [commit.step for commit in list_commits(run_dir.storage)]
    done = finished_epochs(run_dir) >= config.loop.epochs
    state = "done" if done else "training" if is_held(run_dir.storage) else "paused" if steps else "not started"
    best = max(history, key=_score, default=None)
    return {
        "name": name,
        "state": state,
        "model": config.model.name,
        "step": max(steps, default=0),
        "total_steps": schedule.total_steps,
        "epochs": config.loop.epochs,
        "best": best and {"epoch": best["epoch"], "val_acc1": _score(best)},
        "where": run_dir.storage.uri,
        "command": None if done else f"sports-ray resume {run_dir.storage.uri}",
        **time_facts(run_dir.read_timings()),
    }


def _score(line: dict[str, Any]) -> float:
    return line.get("ema_val_acc1", line["val_acc1"])


def describe(facts: dict[str, Any]) -> str:
    """One run, a fact a line."""
    if facts["state"] == "damaged":
        return f"run         {facts['name']}\nstate       damaged: {facts['reason']}"
    best = facts["best"]
    lines = [
        ("run", facts["where"]),
        ("state", facts["state"]),
        ("model", facts["model"]),
        ("steps", f"{facts['step']} of {facts['total_steps']} ({facts['epochs']} epochs)"),
        ("best", f"val acc1 {best['val_acc1']:.4f} in epoch {best['epoch']}" if best else "not evaluated yet"),
        (
            "time",
            f"{duration(facts['seconds'])} in {facts['sessions']} sessions · {facts['commits']} commits, "
            f"which stalled training for {facts['stall_seconds']:.2f} s",
        ),
    ]
    if facts["command"]:
        lines.append(("go on", facts["command"]))
    return "\n".join(f"{name:<11} {text}" for name, text in lines)


def table(rows: list[dict[str, Any]]) -> str:
    """All runs, one a line."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'run':<{width}}  {'state':<11} {'steps':>15}  {'best':>7}  sessions"]
    for row in rows:
        if row["state"] == "damaged":
            lines.append(f"{row['name']:<{width}}  damaged     {row['reason']}")
            continue
        best = f"{row['best']['val_acc1']:.4f}" if row["best"] else "-"
        steps = f"{row['step']}/{row['total_steps']}"
        lines.append(f"{row['name']:<{width}}  {row['state']:<11} {steps:>15}  {best:>7}  {row['sessions']}")
    return "\n".join(lines)
