"""What photographs must satisfy to be trained on: each rule refuses with a DataError, or notes what it let pass."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sports_ray.data.inspect import FORMAT_OF
from sports_ray.data.label_sets import LabelSets, images_of_classes
from sports_ray.data.listing import VAL_NAMES
from sports_ray.data.near import components, near_pairs
from sports_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.config import DataConfig
    from sports_ray.data.listing import Listing

SHOWN = 5
_RANK = {"train": 0, "val": 1, "test": 2}
_SCAN = "`sports-ray data scan` lists them all"


def some(items: Iterable[object], shown: int = SHOWN) -> str:
    """The first few, and how many more."""
    words = [str(item) for item in items]
    more = f" and {len(words) - shown:,} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def check_listing(listing: Listing, config: DataConfig) -> None:
    """Refuse bad rows, names that are no text, unclear folders, and a source without labelled training images."""
    if listing.bad_rows:
        what = f"{listing.source}: {len(listing.bad_rows):,} bad row{'s' * (len(listing.bad_rows) > 1)}"
        raise DataError(what, got="; ".join(listing.bad_rows[:SHOWN]), cure="mend or remove them")
    if listing.unreadable_names:
        raise DataError("file names that are not UTF-8", got=some(listing.unreadable_names), cure="rename them")
    others = [name for name in listing.passed_over if name in VAL_NAMES]
    if config.val == "auto" and others:
        there = [listing.folders["val"], *others]
        raise DataError(
            "more than one validation folder", got=" and ".join(there), cure=f"choose with --set data.val={there[0]}"
        )
    if "train" not in listing.folders:
        raise DataError(
            f"no {config.train}/ in {listing.root}"
            if listing.source == listing.root
            else f"no row of train in {listing.source}",
            got=some(f"{name}/" for name in (*listing.folders.values(), *listing.passed_over) if name),
            want="images to train on",
            cure="name the folder with --set data.train=FOLDER",
        )
    splits, names = (np.array(listing.table.column(key).to_pylist()) for key in ("split", "name"))
    if not ((splits == "train") & (names != "")).any():
        folder = f"{listing.root}/{listing.folders['train']}".rstrip("/")
        raise DataError(f"no class folder with images in {folder}", want="one folder for each class")


def select_classes(listing: Listing, config: DataConfig) -> tuple[Listing, tuple[str, ...]]:
    """Keep the classes that data.classes names, and check that every split has the same: -> (listing, sorted classes).

    Images of train and val without a label are left out of the listing; those of test stay."""
    table = listing.table
    splits, names = (np.array(table.column(key).to_pylist()) for key in ("split", "name"))
    chosen = chosen_classes(sorted(set(names.tolist()) - {""}), config.classes)
    keep = np.array([name in chosen for name in names.tolist()]) | ((names == "") & (splits == "test"))
    classes = {split: set(names[(splits == split) & keep].tolist()) - {""} for split in _RANK}
    for split in ("val", "test"):
        if not classes[split]:
            continue
        _same("train", classes["train"] - classes[split], split)
        _same(split, classes[split] - classes["train"], "train")
    if len(classes["train"]) < 2:
        raise DataError(
            "fewer than two classes", got=some(classes["train"]) or "none", want="two or more to tell apart"
        )
    return dataclasses.replace(listing, table=table.filter(keep)), tuple(sorted(classes["train"]))


def chosen_classes(names: list[str], wanted: Sequence[str]) -> set[str]:
    """Names that are wanted, or match a wanted pattern; all where nothing is."""
    chosen = set() if wanted else set(names)
    for pattern in wanted:
        found = {pattern} & set(names) or set(fnmatch.filter(names, pattern))
        if not found:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
            cure = f"did you mean {' or '.join(close)}?" if close else f"there are {some(names)}"
            raise DataError(
                "data.classes: no such class", got=repr(pattern), want="names or shell patterns of classes", cure=cure
            )
        chosen |= found
    return chosen


def _same(here: str, missing: set[str], there: str) -> None:
    if missing:
        count = f"{len(missing)} class{'es' * (len(missing) > 1)}"
        raise DataError(
            f"{count} in {here} but not in {there}",
            got=some(sorted(map(repr, missing)), 10),
            want="the same classes in every split",
            cure="add their images, or choose the others with --set data.classes=...",
        )


def joined(listing: Listing, facts: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    """Listing and facts side by side, with the label of each class name, or of each word of a label set (-1: none)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = listing.table
    labels = pc.fill_null(pc.index_in(table.column("name"), value_set=pa.array(classes, pa.string())), -1)
    columns = {
        "id": table.column("id"),
        "path": table.column("id"),
        "split": table.column("split"),
        "label": labels.cast(pa.int32()),
    }
    return pa.table({**columns, **{name: facts.column(name) for name in facts.column_names}})


def leave_out_bad(table: pa.Table, config: DataConfig) -> tuple[pa.Table, list[str]]:
    """Take out what cannot be read, and say so; refuse if that is more of a split than data.max_bad_fraction."""
    faults = np.array(table.column("fault").to_pylist(), dtype=object)
    if not (faults != "").any():
        return table, []
    names, splits = table.column("id").to_pylist(), np.array(table.column("split").to_pylist())
    other = np.array(
        [fault == "not-an-image" and not _called_image(name) for name, fault in zip(names, faults, strict=True)]
    )
    bad = (faults != "") & ~other
    for split in _RANK:
        here = (splits == split) & ~other
        count = int((bad & here).sum())
        if count > config.max_bad_fraction * here.sum():
            raise DataError(
                f"{count:,} of {int(here.sum()):,} images of {split} cannot be read",
                got=some(f"{names[row]} ({faults[row]})" for row in np.flatnonzero(bad & here)),
                want=f"at most {config.max_bad_fraction:.2%} (data.max_bad_fraction)",
                cure=f"mend or remove them; {_SCAN}",
            )
    notes = []
    if bad.any():
        listed = [f"{names[row]} ({faults[row]})" for row in np.flatnonzero(bad)]
        notes.append(f"left out, cannot be read: {some(listed, len(listed))}")
    if other.any():
        notes.append(f"left out, no images: {some(names[row] for row in np.flatnonzero(other))}")
    return table.filter(faults == ""), notes


def _called_image(name: str) -> bool:
    return "." + name.rpartition(".")[2].lower() in FORMAT_OF


def settle_leaks(table: pa.Table, config: DataConfig, sets: LabelSets = ()) -> tuple[pa.Table, list[str]]:
    """Refuse, drop from train or allow, by data.leaks, its files that stand byte for byte in a held-out split."""
    digests, splits = (np.array(table.column(key).to_pylist()) for key in ("sha256", "split"))
    ids = table.column("id").to_pylist()
    leaked = (splits == "train") & _among(digests, splits != "train")
    notes = []
    between = (splits == "val") & _among(digests, splits == "test")
    if between.any():
        notes.append(f"{_files(between)} of validation also in test: the score on test is flattered")
    if not leaked.any():
        return table, notes
    held = {digests[row]: ids[row] for row in np.flatnonzero(splits != "train")[::-1]}
    examples = some((f"{ids[row]} = {held[digests[row]]}" for row in np.flatnonzero(leaked)), 3)
    if config.leaks == "refuse":
        raise DataError(
            f"leak: {_files(leaked)} of train also in a held-out split, byte for byte",
            got=examples,
            want="no image in two splits",
            cure="--set data.leaks=drop takes them out of train (or allow)",
        )
    if config.leaks == "allow":
        return table, [*notes, f"leak allowed: {_files(leaked)} of train also held out: {examples}"]
    if not sets:  # a set of labels may go, if its classes stay: see check_trainable
        _refuse_emptied(table.column("label").to_numpy(), splits, leaked, ids)
    return table.filter(~leaked), [*notes, f"leak: {_files(leaked)} taken out of train: {examples}"]


def _among(digests: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which rows have the bytes of a chosen row."""
    held = set(digests[chosen].tolist())
    return np.array([digest in held for digest in digests.tolist()], dtype=bool)


def _files(mask: np.ndarray) -> str:
    count = int(mask.sum())
    return f"{count:,} file{'s' * (count > 1)}"


def _refuse_emptied(labels: np.ndarray, splits: np.ndarray, leaked: np.ndarray, ids: list[str]) -> None:
    """Refuse if dropping the leaks would leave a class without an image to train on."""
    train = splits == "train"
    emptied = np.setdiff1d(labels[train], labels[train & ~leaked])
    if len(emptied):
        folders = [ids[int(np.flatnonzero(train & (labels == label))[0])].rpartition("/")[0] for label in emptied]
        raise DataError(
            f"without its leaked files no image of train is left for {len(emptied)} class{'es' * (len(emptied) > 1)}",
            got=some(folders, 10),
            want="at least one image of its own for each class",
            cure="choose the others with --set data.classes=..., or take the images out of the held-out split",
        )


def check_trainable(table: pa.Table, classes: tuple[str, ...], sets: LabelSets = ()) -> None:
    """Every class must have an image to train on, and validation at least one image."""
    splits, labels = np.array(table.column("split").to_pylist()), table.column("label").to_numpy()
    counts = images_of_classes(labels[splits == "train"], sets, len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise DataError("no readable image of train for a class", got=some(map(repr, empty), 10), cure=_SCAN)
    if not (splits == "val").any():
        raise DataError("no image for validation", want="two different images in a class, or a folder val/", cure=_SCAN)


def note_uncarved(names: list[str]) -> list[str]:
    """Say which classes have too little to be carved."""
    if not names:
        return []
    return [f"no validation image, for want of a second distinct one in train: {some(names, 10)}"]


def note_near_duplicates(table: pa.Table) -> list[str]:
    """A line each for the first images with a near-duplicate in another split, and how many more there are."""
    rows = table.column("phash").to_numpy(), table.column("label").to_numpy()
    ids, digests = table.column("id").to_pylist(), np.array(table.column("sha256").to_pylist())
    rank = np.array([_RANK[split] for split in table.column("split").to_pylist()])
    group = components(len(ids), near_pairs(*rows))
    lowest = np.full(len(ids), len(_RANK))
    np.minimum.at(lowest, group, rank)
    crossing = (lowest[group] < rank) & ~_among(digests, rank == 0)
    notes = []
    for row in np.flatnonzero(crossing)[:SHOWN]:
        twins = np.flatnonzero((group == group[row]) & (rank < rank[row]))
        twin = twins[np.argmin(np.bitwise_count(rows[0][twins] ^ rows[0][row]))]
        notes.append(f"near-duplicate: {ids[twin]} ~ {ids[row]}")
    if (more := int(crossing.sum()) - SHOWN) > 0:
        notes.append(f"near-duplicate: {more:,} more held-out images are nearly one of an earlier split")
    return notes
