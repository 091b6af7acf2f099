"""`sports-ray data`: look into photographs, or draw a set to try things with."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from sports_ray.cli.show import can_be_drawn_over

if TYPE_CHECKING:
    from sports_ray.data.scan import Finding, ScanReport

_SHOWN = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Look into photographs, or draw a set to try things with.

    \b
    sports-ray data demo drawn --classes 6     draw a small set
    sports-ray data scan drawn                 is it sound?
    sports-ray data pack drawn packed          a few large files in place of many small ones
    """


@data.command()
@click.argument("folder", metavar="DIR")
@click.option("--classes", default=6, show_default=True, help="Number of sports.")
@click.option(
    "--per-class", default=40, show_default=True, help="Training pictures a class; val and test get a quarter each."
)
@click.option("--size", default=128, show_default=True, metavar="PX", help="Side of a picture.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--dirty", is_flag=True, help="Plant one of every defect that `scan` knows; planted.json lists them.")
@click.option("--imbalance", is_flag=True, help="Long-tailed training classes, about 70 to 1.")
@click.option("--multilabel", is_flag=True, help="Pictures of up to four things each, listed in labels.csv.")
def demo(
    folder: str, classes: int, per_class: int, size: int, seed: int, dirty: bool, imbalance: bool, multilabel: bool
) -> None:
    """Draw a set of mini-sports photographs into DIR, which must be new, empty or a demo set.

    \b
    sports-ray data demo drawn
    sports-ray data demo dirty --dirty && sports-ray data scan dirty
    sports-ray data demo tail --classes 12 --imbalance
    sports-ray data demo things --multilabel && sports-ray data scan things/labels.csv
    """
    from sports_ray.data.demo import draw_demo
    from sports_ray.data.demo_objects import LIST, draw_objects
    from sports_ray.errors import ConfigError

    if multilabel and (dirty or imbalance):
        raise ConfigError("--multilabel", got="--dirty" if dirty else "--imbalance", want="one of the two")
    options = {"classes": classes, "per_class": per_class, "size": size, "seed": seed}
    with _bar("drawing") as progress:
        if multilabel:
            report = draw_objects(folder, **options, progress=progress)
        else:
            report = draw_demo(folder, **options, dirty=dirty, imbalance=imbalance, progress=progress)
    images = " · ".join(f"{count:,} {split}" for split, count in report.images.items())
    click.echo(f"drawn       {images} · {classes} classes · {size} px")
    click.echo(f"classes     {', '.join(report.classes[:12])}{' …' if classes > 12 else ''}")
    if dirty:
        click.echo(f"planted     {len(report.planted)} defects and unusual files, listed in {folder}/planted.json")
    click.echo(f"next        sports-ray data scan {_quoted(f'{folder}/{LIST}' if multilabel else folder)}")


@data.command()
@click.argument("source", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON object.")
def scan(source: str, as_json: bool) -> None:
    """Decode every photograph of DIR (or of a CSV list) and report what is wrong. Nothing is changed.

    \b
    sports-ray data scan photos
    sports-ray data scan list.csv
    sports-ray data scan photos --json | jq '.findings[].kind'
    """
    from sports_ray.config import DataConfig
    from sports_ray.data.scan import scan as scan_photographs

    with _bar("reading") as progress:
        report = scan_photographs(source, DataConfig(root=source), progress=progress)
    _refuse_empty(report)
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False))
        return
    for line in _summary(report):
        click.echo(line)


def _refuse_empty(report: ScanReport) -> None:
    """DataError where there is no file at all, and no finding of why training would refuse: nothing was proved sound."""
    from sports_ray.data.listing import LAYOUT
    from sports_ray.data.scan import GRAVE
    from sports_ray.errors import DataError

    if report.files or any(finding.kind in GRAVE for finding in report.findings):
        return
    there = [name for finding in report.findings for item in finding.items for name in item]
    shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN:,} more" if len(there) > _SHOWN else "")
    got = f"folders without one, or that are no split: {shown}" if there else "nothing"
    cure = "name the folder that holds them; `sports-ray data demo DIR` draws a set to try"
    raise DataError(f"no photograph in {report.source}", got=got, want=LAYOUT, cure=cure)


def _summary(report: ScanReport) -> Iterator[str]:
    from sports_ray.data.scan import GRAVE, KINDS

    splits = " · ".join(f"{count:,} {split}" for split, count in report.splits.items())
    yield f"photos      {splits or 'none'} · {len(report.classes)} classes"
    if report.formats:
        formats = ", ".join(
            f"{count:,} {name}" for name, count in sorted(report.formats.items(), key=lambda item: -item[1])
        )
        (w0, w1, w2), (h0, h1, h2) = report.width, report.height
        yield f"formats     {formats}"
        yield f"size        {w1} x {h1} px in the median, from {w0} x {h0} to {w2} x {h2}"
    for finding in report.findings:
        sign = "✗" if finding.kind in GRAVE else "!"
        yield f"{sign} {len(finding.items):>6,}  {finding.kind}: {KINDS[finding.kind]}"
        for item in finding.items[:_SHOWN]:
            yield f"            {_words(finding, item)}"
        if len(finding.items) > _SHOWN:
            yield f"            and {len(finding.items) - _SHOWN:,} more (all with --json)"
    grave = sum(finding.kind in GRAVE for finding in report.findings)
    if not report.findings:
        yield "sound       nothing to complain of"
    elif grave:
        yield "verdict     training refuses these, or goes on without the files marked ✗ where they are few"
    else:
        yield "verdict     fit to train on; what is marked ! deserves a look"


def _words(finding: Finding, item: tuple[str, ...]) -> str:
    sign = {
        "imbalance": " to ",
        "leak": " = ",
        "two-classes": " = ",
        "duplicate": " = ",
        "near-leak": " ~ ",
        "near-duplicate": " ~ ",
    }
    if finding.kind == "similar-names":
        return " ~ ".join(repr(name) for name in item)
    return sign.get(finding.kind, ": ").join(item)


@data.command()
@click.argument("source", metavar="DIR")
@click.argument("out", metavar="OUT")
@click.option("--short-side", default=0, metavar="PX", help="Encode larger photographs anew at this short side.")
@click.option("--shard-mb", default=64, show_default=True, metavar="N", help="Most MB of photographs in a file.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def pack(source: str, out: str, short_side: int, shard_mb: int, as_json: bool) -> None:
    """Pack DIR (a folder, a CSV list or a pack) into OUT, a folder or an s3:// or gs:// address.

    Every command takes the pack where it takes a folder of photographs: --data OUT. Without --short-side the bytes are
    those of the files, and a run that was begun on the folder goes on with the pack. From s3:// and gs:// each machine
    fetches a pack once (--set data.pack_cache=DIR, data.pack_cache_gb=N). Killed, the same command goes on.

    \b
    sports-ray data pack photos packed
    sports-ray data pack photos s3://bucket/photos-256 --short-side 256
    sports-ray train --data s3://bucket/photos-256 --model convnext_large
    """
    from sports_ray.data.pack_write import write_pack

    with _bar("reading") as inspecting, _bar("packing") as packing:
        report = write_pack(
            source, out, short_side=short_side, shard_mb=shard_mb, inspecting=inspecting, packing=packing
        )
    record, shards = report.record, len(report.record.shards)
    if as_json:
        facts = {"out": report.out, "images": record.images, "splits": record.splits, "classes": len(record.names)}
        facts |= {"shards": shards, "made": report.made, "bytes": record.size, "short_side": short_side}
        click.echo(json.dumps(facts | {"fingerprint": record.fingerprint or None, "refused": record.refused or None}))
        return
    splits = " · ".join(f"{count:,} {split}" for split, count in record.splits.items())
    others = record.images - sum(record.splits.values())
    more = f" · {others:,} in other folders" if others else ""
    there = f", {shards - report.made:,} of them made before" if report.made < shards else ""
    click.echo(f"packed      {splits}{more} · {len(record.names)} classes")
    click.echo(f"shards      {shards:,}, {record.size / 1e6:,.1f} MB in all{there}")
    if record.refused:
        click.echo(f"!           training would refuse them: {record.refused}")
    else:
        same = f"encoded anew at {short_side} px where they were larger" if short_side else "that of the photographs"
        click.echo(f"data        {record.fingerprint[:12]}, {same}")
    click.echo(f"next        sports-ray train --data {_quoted(out)} ...")


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; nothing in a pipe."""
    if not can_be_drawn_over(sys.stderr):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=" images", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)
