"""`sports-ray doctor`: what is wrong with this machine, a set of photographs or a run, and its cure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sports_ray.doctor.check import Check

SIGNS = {"ok": "ok  ", "look": "look", "bad": "BAD "}


@click.command()
@click.option("--data", "data_root", metavar="DIR", help="Photographs to look into; with --run, where they lie now.")
@click.option("--run", metavar="RUN", help="Run to measure: a name in the store, or the path of its folder.")
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option(
    "--images", default=256, show_default=True, type=click.IntRange(8), help="Photographs of a split that are measured."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for all that was looked at.")
def doctor(data_root: str | None, run: str | None, store: str, images: int, as_json: bool) -> int:
    """Look for faults, each by a measurement, and name the cure. Nothing is changed.

    \b
    This machine and the store always: versions, GPUs, memory, limits, Ray and its ports, rights, speed and room.
    --data: what `data scan` finds, with cures.
    --run: dead or exploding gradients, a learning rate that is too high or too low, wrong normalisation, a model left
    in training or evaluation mode, an EMA that lags, wrong labels, memory that ran out; on the run's own newest
    weights, photographs and history.

    \b
    Examples:
      sports-ray doctor
      sports-ray doctor --data photos
      sports-ray doctor --run runs/test_resnet-3f9a1c2e
      sports-ray doctor --run convnext --store s3://bucket/runs --json

    Exit codes: 0 nothing is wrong (lines with `look` deserve one), 3 something is, 2 there is no such run or folder.
    """
    counts = {"look": 0, "bad": 0}
    for check in _checks(data_root, run, store, images):
        if check.severity != "ok":
            counts[check.severity] += 1
        line = json.dumps(check.to_json(), ensure_ascii=False) if as_json else f"{SIGNS[check.severity]}  {check}"
        click.echo(line)
        sys.stdout.flush()
    if not as_json:
        click.echo(_verdict(**counts))
    return 3 if counts["bad"] else 0


def _verdict(look: int, bad: int) -> str:
    if not look and not bad:
        return "healthy: nothing to complain of"
    wrong = f"{bad} {'thing is' if bad == 1 else 'things are'} wrong" if bad else "nothing is wrong"
    return wrong + (f", {look} deserve{'s' * (look == 1)} a look" if look else "")


def _checks(data_root: str | None, run: str | None, store: str, images: int) -> Iterator[Check]:
    from sports_ray.doctor.machine import check_machine
    from sports_ray.doctor.place import check_store
    from sports_ray.doctor.ports import check_ray

    found = _find(run, store) if run else None
    yield from check_machine()
    yield from check_ray()
    yield from check_store(found[0] if found else store)
    if data_root:
        yield from _data(data_root)
    if found:
        yield from _run(*found, data_root, images)


def _find(run: str, store: str) -> tuple[str, str]:
    """(store, name) of the run, before anything else is looked at; RunError if there is none."""
    from sports_ray.orchestrate.plan import find_run

    return find_run(run, store)[:2]


def _data(root: str) -> Iterator[Check]:
    from sports_ray.config import DataConfig
    from sports_ray.data.scan import scan
    from sports_ray.doctor.photographs import check_photographs

    _say("reading the photographs")
    yield from check_photographs(scan(root, DataConfig(root=root)))


def _run(store: str, name: str, data_root: str | None, images: int) -> Iterator[Check]:
    from dataclasses import replace

    from sports_ray.doctor.run import check_run
    from sports_ray.orchestrate.plan import load_run
    from sports_ray.store.run_dir import RunDir
    from sports_ray.store.storage import open_storage

    run_dir = RunDir.open(open_storage(store), name)
    config, manifest = load_run(run_dir)
    manifest = replace(manifest, root=data_root) if data_root else manifest
    yield from check_run(run_dir, config, manifest, images, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
