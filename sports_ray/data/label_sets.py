"""Label sets of multi-label photographs: how a set of classes is written, and which classes its number stands for.

A listing names a set by one word ("ball|net"), as it names a class; a manifest numbers the words that occur. So a list of
a million photographs holds one number a photograph, as it does where each shows one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.config import DataConfig
    from sports_ray.data.listing import Listing

SEPARATOR = "|"
NONE = "|"
"""The word of a photograph that shows none of the classes; that of an unlabelled one is empty, as of any."""

LabelSets = tuple[tuple[int, ...], ...]
"""Places in the classes of each label, ascending; empty: labels are places in the classes themselves."""


def word_of(names: Sequence[str]) -> str:
    """The word of a set of classes: their names sorted, one separator between two of them."""
    return SEPARATOR.join(sorted(names)) or NONE


def names_in(word: str) -> list[str]:
    """The classes of a word; none for `NONE` and for an unlabelled photograph."""
    return [name for name in word.split(SEPARATOR) if name]


def matrix(label_sets: LabelSets, classes: int) -> NDArray[np.uint8]:
    """Which classes each label stands for, 0 or 1: [labels, classes]."""
    found = np.zeros((len(label_sets), classes), np.uint8)
    for label, places in enumerate(label_sets):
        found[label, list(places)] = 1
    return found


def images_of_classes(labels: NDArray[np.integer], label_sets: LabelSets, classes: int) -> NDArray[np.int64]:
    """Photographs that show each class, [classes]; labels int [n], below 0: unlabelled. Of either kind of data."""
    known = labels[labels >= 0]
    counts = np.bincount(known, minlength=len(label_sets) or classes)
    return counts.astype(np.int64) if not label_sets else counts @ matrix(label_sets, classes).astype(np.int64)


def select_label_sets(
    listing: Listing, config: DataConfig
) -> tuple[Listing, tuple[str, ...], tuple[str, ...], list[str]]:
    """As `rules.select_classes`, of a multi-label list: -> (listing, sorted classes, sorted words of the sets, notes).

    A photograph without a class that data.classes names stays, as one that shows none. Every class must be in train; one
    that a held-out split lacks is noted: its scores there are not defined. DataError for what cannot be trained on."""
    import dataclasses

    import pyarrow as pa

    from sports_ray.data import rules

    splits, words = (listing.table.column(key).to_pylist() for key in ("split", "name"))
    chosen = rules.chosen_classes(sorted({name for word in set(words) for name in names_in(word)}), config.classes)
    # An image of train or val without labels was refused as a bad row.
    kept = {word: word and word_of([name for name in names_in(word) if name in chosen]) for word in set(words)}
    words = [kept[word] for word in words]
    there: dict[str, set[str]] = {split: set() for split in ("train", "val", "test")}
    for split, word in set(zip(splits, words, strict=True)):
        there[split] |= set(names_in(word))
    _check_splits(there)
    lacking = {split: sorted(there["train"] - names) for split, names in there.items() if split in splits}
    notes = [
        f"no image of {split} shows {rules.some(names, 10)}: not scored there"
        for split, names in lacking.items()
        if names
    ]
    table = listing.table.set_column(listing.table.column_names.index("name"), "name", pa.array(words, pa.string()))
    listing = dataclasses.replace(listing, table=table)
    return listing, tuple(sorted(there["train"])), tuple(sorted(set(words) - {""})), notes


def _check_splits(there: dict[str, set[str]]) -> None:
    from sports_ray.data.rules import some

    for split in ("val", "test"):
        unknown = sorted(there[split] - there["train"])
        if unknown:
            raise DataError(
                f"{len(unknown)} class{'es' * (len(unknown) > 1)} in {split} but not in train",
                got=some(map(repr, unknown), 10),
                want="classes that can be learned",
                cure="add images of train that show them, or choose the others with --set data.classes=...",
            )
    if len(there["train"]) < 2:
        raise DataError("fewer than two classes", got=some(there["train"]) or "none", want="two or more")


def sets_of(words: Sequence[str], classes: Sequence[str]) -> LabelSets:
    """Places in `classes` of the words' names."""
    place = {name: number for number, name in enumerate(classes)}
    return tuple(tuple(sorted(place[name] for name in names_in(word))) for word in words)


def labels_of(words: Sequence[str], known: Sequence[str]) -> pa.Array:
    """Place of each word among the known ones, int32; -1 for an unlabelled photograph."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(pa.array(words, pa.string()), value_set=pa.array(known, pa.string()))
    return pc.fill_null(found, -1).cast(pa.int32())
