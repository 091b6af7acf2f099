"""`verify`: re-reads a whole run and says what of it is proven, and what is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sports_ray.engine.verify import Finding


@click.command()
@click.argument("run")
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--photos", is_flag=True, help="Read every photograph again too.")
@click.option("--data", "data_root", metavar="DIR", help="Where the photographs lie now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a finding.")
def verify(run: str, store: str, photos: bool, data_root: str | None, as_json: bool) -> int:
    """Re-read all of RUN, a name in the store or a path to its folder, and prove that it is sound.

    \b
    Every checkpoint's bytes against their sha256, records, history and weights; that every image was consumed as the
    sampler says, once an epoch; that the newest commit loads, so that the run can go on.

    \b
    Examples:
      sports-ray verify runs/test_resnet-3f9a1c2e
      sports-ray verify test_resnet-3f9a1c2e --store s3://bucket/runs --photos

    Exit codes: 0 all of it is sound, 3 something is not, 2 there is no such run.
    """
    bad = 0
    for finding in _findings(run, store, photos, data_root):
        bad += not finding.ok
        if as_json:
            click.echo(json.dumps({"what": finding.what, "ok": finding.ok, "text": finding.text}, ensure_ascii=False))
        else:
            click.echo(f"{'ok ' if finding.ok else 'BAD'}  {finding.what}: {finding.text}")
    if not as_json:
        click.echo(f"{bad} findings are bad" if bad else "sound: nothing is damaged or missing, and training can go on")
    return 3 if bad else 0


def _findings(run: str, store: str, photos: bool, data_root: str | None) -> Iterator[Finding]:
    from dataclasses import replace

    from sports_ray.engine.verify import verify_photographs, verify_run
    from sports_ray.orchestrate.plan import find_run, load_run
    from sports_ray.store.run_dir import RunDir
    from sports_ray.store.storage import open_storage

    root, name, record = find_run(run, store)
    run_dir = RunDir.open(open_storage(root), name)
    config, manifest = load_run(run_dir)
    yield from verify_run(run_dir, config, manifest, record["data"]["fingerprint"])
    if photos:
        yield from verify_photographs(replace(manifest, root=data_root) if data_root else manifest, config.data)
