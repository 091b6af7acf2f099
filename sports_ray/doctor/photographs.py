"""The findings of a scan, each with its cure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sports_ray.data.scan import GRAVE, KINDS, TINY, ScanReport
from sports_ray.doctor.check import Check

CURES = {
    "bad-rows": "mend or remove these rows",
    "bad-names": "rename them",
    "truncated": "copy them again, or delete them",
    "unreadable": "copy them again, or delete them",
    "empty-file": "copy them again, or delete them",
    "not-an-image": "take them out of the class folders",
    "huge": "make them smaller, or raise --set data.max_pixels",
    "leak": "keep one copy, in one split; or --set data.leaks=drop, which takes them out of train",
    "near-leak": "keep them in one split: a held-out score that knows its pictures is flattered",
    "two-classes": "decide on the right class and delete the other copy",
    "duplicate": "delete all but one, or accept that it weighs more",
    "near-duplicate": "keep the best one, or accept that it weighs more",
    "wrong-extension": "nothing has to be done: files are read by their content; rename them for other programs",
    "tiny": f"look for better copies: below {TINY} px little is left to see",
    "passed-over": "name the folders with --set data.train=, data.val= and data.test=, or move them away",
    "similar-names": "merge or rename the folders",
    "one-sided": "add images of these classes to the other splits, or choose classes with --set data.classes=",
    "empty-class": "add images, or remove the folder",
    "unlabelled": "put them into class folders; training leaves them out",
    "imbalance": "more images of the small classes, or a loss and a sampler that weigh classes (`sports-ray train --help`)",
}
"""By kind of finding."""


def check_photographs(report: ScanReport) -> Iterator[Check]:
    """A line for each kind of finding; one that says so where there is none."""
    for finding in report.findings:
        examples = ", ".join(" / ".join(item) for item in finding.items[:2])
        more = f" and {len(finding.items) - 2:,} more" if len(finding.items) > 2 else ""
        severity = "bad" if finding.kind in GRAVE else "look"
        cure = CURES.get(finding.kind, "see `sports-ray data scan`")
        what = f"{finding.kind}: {KINDS[finding.kind]}"
        yield Check("data", what, f"{len(finding.items):,}: {examples}{more}", severity, "none", cure)  # type: ignore[arg-type]
    if not report.findings:
        splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items())
        yield _Data("photographs", f"{splits or 'none'}, {len(report.classes)} classes, nothing to complain of")
    if not report.files:
        yield _Data("photographs", "none", "bad", "a folder with train/CLASS/*.jpg", "check the path")


_Data = partial(Check, "data")
