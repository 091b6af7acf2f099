"""The table of architectures, as `sports-ray models --measure` and `--markdown` show it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click


def show_architectures(names: Sequence[str], measure: bool, seconds: float, batch: int, as_json: bool) -> None:
    """`seconds`, `batch`: of a measurement, see `bench.architectures.measured`; with JSON a line each, as it is known."""
    from sports_ray.bench.architectures import describe, footnotes, markdown, measured

    described = [describe(name) for name in names]
    rows = []
    for row in described:
        rows.append(measured(row, seconds, batch, _say) if measure else row)
        if as_json:
            click.echo(json.dumps(rows[-1].to_json(), ensure_ascii=False))
            sys.stdout.flush()
    if as_json:
        return
    for line in markdown(rows):
        click.echo(line)
    click.echo()
    for line in footnotes(rows):
        click.echo(f"- {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
