"""All that is wrong with a set of photographs, in one report. A scan never refuses and never changes a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sports_ray.data.inspect import FORMAT_OF
from sports_ray.data.label_sets import names_in
from sports_ray.data.near import components, near_pairs

if TYPE_CHECKING:
    from sports_ray.config import DataConfig

KINDS = {
    "bad-rows": "rows of the list that cannot be used",
    "bad-names": "file names that are not UTF-8",
    "truncated": "images cut short",
    "unreadable": "images that cannot be decoded",
    "empty-file": "files of 0 bytes",
    "not-an-image": "files that are no images",
    "huge": "images above data.max_pixels",
    "leak": "files in two splits, byte for byte",
    "near-leak": "nearly the same image in two splits",
    "two-classes": "files in two classes, byte for byte",
    "duplicate": "files that stand twice in a split",
    "near-duplicate": "nearly the same image twice in a split",
    "wrong-extension": "images of another format than their name says",
    "tiny": "images with a side below 32 px",
    "passed-over": "folders that belong to no split",
    "similar-names": "classes that differ by case or spaces",
    "one-sided": "classes that are not in every split",
    "empty-class": "class folders without a file",
    "unlabelled": "images without a class",
    "imbalance": "classes of very different size in train",
}
"""Kinds of finding, gravest first."""
GRAVE = tuple(KINDS)[: tuple(KINDS).index("near-leak")]
"""Kinds for which training refuses or leaves files out."""
TINY = 32
IMBALANCE = 10.0
"""Largest class of train over the smallest, from which on it is reported."""


@dataclass(frozen=True)
class Finding:
    kind: str
    """A key of KINDS."""
    items: tuple[tuple[str, ...], ...]
    """One an occurrence: the file, class or row and what is said of it; or a group of copies, train first."""


@dataclass(frozen=True)
class ScanReport:
    source: str
    files: int
    splits: dict[str, int]
    """Files of each split."""
    classes: dict[str, dict[str, int]]
    """Files of each class in each split."""
    formats: dict[str, int]
    """Readable files of each format, by content."""
    width: tuple[int, int, int]
    """Smallest, median and largest, in px, of the readable images; zeros where there are none."""
    height: tuple[int, int, int]
    findings: tuple[Finding, ...]
    """In the order of KINDS, each kind at most once."""

    def finding(self, kind: str) -> Finding | None:
        """The finding of this kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, for JSON."""
        return asdict(self)


def scan(
    source: str | Path,
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    cache_dir: Path | None = None,
) -> ScanReport:
    """Decode every file of a folder or CSV list, or read every byte of a pack, and report.

    `progress` and `cache_dir` as in build_manifest.

    Raises DataError only for a source that cannot be listed, or a folder of it, and for a damaged pack."""
    from sports_ray.data.facts import all_facts
    from sports_ray.data.listing import list_files
    from sports_ray.data.pack import Pack

    listing = list_files(source, config)
    if isinstance(listing.files, Pack):  # what is told of its photographs holds for the bytes that were packed
        listing.files.check()
    facts = all_facts(listing, config.max_pixels, progress, cache_dir)
    columns = {**listing.table.to_pydict(), **facts.to_pydict()}
    numbers = {"width": np.int64, "height": np.int64, "phash": np.uint64}
    files = _Files(*(np.array(columns[name], dtype=numbers.get(name, object)) for name in _Files._fields))
    sizes = _class_sizes(files, listing.multilabel)
    found: dict[str, _Items] = {
        "bad-rows": [(row,) for row in listing.bad_rows],
        "bad-names": [(name,) for name in listing.unreadable_names],
        "passed-over": [(name,) for name in listing.passed_over],
        "empty-class": [(f"{split}/{name}",) for split, name in listing.empty],
        **dict(_of_files(files)),
        **dict(_of_copies(files)),
        **dict(_of_classes(sizes)),
    }
    good = files.fault == ""
    return ScanReport(
        source=str(listing.source),
        files=len(files.id),
        splits={split: count for split in _RANK if (count := int((files.split == split).sum()))},
        classes=sizes,
        formats=dict(Counter(files.format[good].tolist())),
        width=_spread(files.width[good]),
        height=_spread(files.height[good]),
        findings=tuple(Finding(kind, tuple(found[kind])) for kind in KINDS if found.get(kind)),
    )


class _Files(NamedTuple):
    """Columns of all listed files."""

    id: np.ndarray
    split: np.ndarray
    name: np.ndarray
    sha256: np.ndarray
    width: np.ndarray
    height: np.ndarray
    phash: np.ndarray
    format: np.ndarray
    fault: np.ndarray
    error: np.ndarray

    def where(self, rows: np.ndarray) -> _Files:
        return _Files(*(column[rows] for column in self))


_RANK = {"train": 0, "val": 1, "test": 2}
_Items = list[tuple[str, ...]]


def _of_files(files: _Files) -> Iterator[tuple[str, _Items]]:
    """Findings that concern one file at a time."""
    for kind in ("truncated", "unreadable", "empty-file", "not-an-image", "huge"):
        rows = np.flatnonzero(files.fault == kind).tolist()
        yield kind, [(files.id[row], files.error[row]) for row in rows]
    good = files.where(files.fault == "")
    called = [FORMAT_OF.get("." + name.rpartition(".")[2].lower(), "") for name in good.id.tolist()]
    wrong = zip(good.id.tolist(), good.format.tolist(), called, strict=True)
    yield "wrong-extension", [(name, f"is {real}") for name, real, said in wrong if real != said]
    small = good.where(np.minimum(good.width, good.height) < TINY)
    sizes = zip(small.id.tolist(), small.width.tolist(), small.height.tolist(), strict=True)
    yield "tiny", [(name, f"{width} x {height}") for name, width, height in sizes]
    yield "unlabelled", [(name,) for name in files.id[files.name == ""].tolist()]


def _of_copies(files: _Files) -> Iterator[tuple[str, _Items]]:
    """Findings that concern equal and nearly equal images."""
    good = files.where(files.fault == "")
    _, first, inverse = np.unique(good.sha256, return_index=True, return_inverse=True)
    equal = first[inverse.ravel()] if len(good.id) else np.empty(0, np.int64)
    rank = np.array([_RANK[split] for split in good.split.tolist()], dtype=np.int64)
    leaks, conflicts, twice = [], [], []
    for rows in _groups(equal, rank):
        if len(set(rank[rows])) > 1:
            leaks.append(tuple(good.id[rows]))
        if len(set(good.name[rows]) - {""}) > 1:
            conflicts.append(tuple(good.id[rows]))
        twice += [tuple(good.id[part]) for part in _parts(rows, rank) if len(part) > 1]
    yield from (("leak", leaks), ("two-classes", conflicts), ("duplicate", twice))
    _, label = np.unique(good.name, return_inverse=True)
    near = components(len(equal), near_pairs(good.phash, np.where(good.name == "", -1, label.ravel())))
    _, single = np.unique(np.stack([equal, rank], axis=1), axis=0, return_index=True)  # one copy a split
    across, within = [], []
    for rows in (single[part] for part in _groups(near[single], rank[single])):
        within += [tuple(good.id[part]) for part in _parts(rows, rank) if len(part) > 1]
        if _differ_in_both(equal[rows], rank[rows]):
            across.append(tuple(good.id[rows]))
    yield from (("near-leak", across), ("near-duplicate", within))


def _differ_in_both(equal: np.ndarray, rank: np.ndarray) -> bool:
    """Whether two rows differ in both columns.

    No two do only if one column is the same throughout: of rows a and b that differ in the one, and c that differs in the
    other from both, c differs in the first from a or from b. So no pairs are compared; a film gives thousands of rows."""
    return bool(len(np.unique(equal)) > 1 and len(np.unique(rank)) > 1)


def _groups(key: np.ndarray, rank: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that share a key with another row, train first."""
    order = np.lexsort((np.arange(len(key)), rank, key))
    starts = np.flatnonzero(np.diff(key[order])) + 1
    return (rows for rows in np.split(order, starts) if len(rows) > 1)


def _parts(rows: np.ndarray, rank: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each split apart."""
    return (rows[rank[rows] == value] for value in np.unique(rank[rows]))


def _of_classes(sizes: dict[str, dict[str, int]]) -> Iterator[tuple[str, _Items]]:
    """Findings that concern classes as a whole."""
    alike: dict[str, list[str]] = {}
    for name in sizes:
        alike.setdefault(re.sub(r"[\s_-]+", " ", name).strip().casefold(), []).append(name)
    yield "similar-names", [tuple(names) for names in alike.values() if len(names) > 1]
    splits = sorted({split for counts in sizes.values() for split in counts}, key=_RANK.__getitem__)
    lacking = {name: [split for split in splits if split not in counts] for name, counts in sizes.items()}
    yield "one-sided", [(name, f"not in {' and '.join(missing)}") for name, missing in lacking.items() if missing]
    train = sorted((counts["train"], name) for name, counts in sizes.items() if "train" in counts)
    if train and train[-1][0] >= IMBALANCE * train[0][0]:
        yield "imbalance", [tuple(f"{count:,} {name}" for count, name in (train[-1], train[0]))]


def _class_sizes(files: _Files, multilabel: bool) -> dict[str, dict[str, int]]:
    """Files of each class (sorted) in each split; of a multi-label list a file counts for each of its classes."""
    counts: Counter[tuple[str, str]] = Counter()
    for (word, split), count in Counter(zip(files.name.tolist(), files.split.tolist(), strict=True)).items():
        for name in names_in(word) if multilabel else [word]:
            counts[name, split] += count
    sizes: dict[str, dict[str, int]] = {}
    for (name, split), count in sorted(counts.items()):
        if name:
            sizes.setdefault(name, {})[split] = count
    return sizes


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return (int(values.min()), int(np.median(values)), int(values.max())) if len(values) else (0, 0, 0)
