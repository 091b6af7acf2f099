"""One evaluation's scores as a dict ready for JSON, from tables of probabilities that may lie on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import DataError
from sports_ray.score.breakdown import Groups, by_frequency, by_group
from sports_ray.score.calibrate import ece, reliability
from sports_ray.score.compare import compare
from sports_ray.score.main_score import wilson
from sports_ray.score.multiclass import confused_pairs, confusion, extremes, nll, per_class, worst
from sports_ray.score.rows import Facts, Ints, Rows, read_facts

Kind = Literal["member", "view", "ensemble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What one column of predictions is; the facts are copied into its scores."""

    name: str
    """Of the column."""
    kind: Kind
    tta: str = "none"
    weights: Mapping[str, float] | None = None
    """Of each member, where it is an ensemble."""
    temperature: float | None = None


def evaluate_predictions(
    columns: Mapping[str, Rows],
    labels: Ints,
    classes: Sequence[str],
    *,
    ids: Ints | None = None,
    candidates: Sequence[Candidate] | None = None,
    best_single: str | None = None,
    detailed: str | None = None,
    train_images: Ints | None = None,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Scores of each column of probabilities [N, K] on labels int [N], -1: unknown, left out. Read in chunks.

    candidates: what the columns are, in the order of the result (default: from their names, `candidate_of`).
    best_single: the member that all others are compared with, best chosen on validation images. Default: the one with
    the highest accuracy here, which is flattered by the choice, so that an ensemble's gain over it is understated.
    detailed: the candidate whose classes, pairs and mistakes are listed (default: the ensemble, else the best single).
    ids: int [N] (default: row numbers). train_images: int [K], images of each class in train, for `by_frequency`.
    groups: column -> class -> group (see breakdown.read_groups), for `by_group`.

    A row that is not sound (not finite, negative, or all zeros; `unsound` counts them) is an error with the largest loss.
    DataError if no label is known, or a table's shape, a label or a name does not fit."""
    labels = np.asarray(labels)
    named = list(candidates) if candidates is not None else [candidate_of(name, columns) for name in columns]
    _check(columns, labels, classes, [one.name for one in named], [best_single, detailed])
    correct: dict[str, NDArray[np.bool_]] = {}
    entries = []
    for one in named:
        facts = read_facts(columns[one.name], labels)
        correct[one.name] = facts.correct()
        entries.append({**described(one), **summarise(facts, len(classes))})
    best = best_single or _best_of(entries)
    for entry in entries:
        same = entry["name"] == best
        entry["against_best"] = None if same else compare(correct[entry["name"]], correct[best])
    chosen = detailed or next((one.name for one in named if one.kind == "ensemble"), best)
    known = np.flatnonzero(labels >= 0)
    details = _details(read_facts(columns[chosen], labels), known if ids is None else np.asarray(ids)[known], classes)
    counts = np.array(next(entry["confusion"] for entry in entries if entry["name"] == chosen), dtype=np.int64)
    return {
        "best_single": best,
        "candidates": entries,
        "detailed": chosen,
        **details,
        "by_frequency": [] if train_images is None else by_frequency(counts, np.asarray(train_images), classes),
        "by_group": by_group(counts, groups or {}, classes),
    }


def candidate_of(name: str, columns: Mapping[str, Rows]) -> Candidate:
    """What a column's name says: "ensemble"; "MEMBER/none", a view choice of a column MEMBER; else a member."""
    member, _, tta = name.rpartition("/")
    if name == "ensemble":
        return Candidate(name=name, kind="ensemble")
    return Candidate(name=name, kind="view", tta=tta) if member in columns else Candidate(name=name, kind="member")


def summarise(facts: Facts, classes: int) -> dict[str, Any]:
    """Scores of one candidate: the part of its entry that is computed from its own facts, of at least one image."""
    images, first = len(facts.label), int(facts.correct().sum())
    counts, table = confusion(facts, classes), reliability(facts)
    return {
        "images": images,
        "unsound": int((~facts.sound).sum()),
        "acc1": first / images,
        "acc1_interval": list(wilson(first, images)),
        "acc5": int(facts.correct(5).sum()) / images,
        "nll": nll(facts),
        "ece": ece(table),
        "per_class": per_class(counts),
        "confusion": counts.tolist(),
        "reliability": table,
    }


def _details(facts: Facts, ids: Ints, classes: Sequence[str]) -> dict[str, Any]:
    perfect, zero = extremes(confusion(facts, len(classes)), classes)
    return {
        "perfect_classes": perfect,
        "zero_classes": zero,
        "confused_pairs": confused_pairs(facts, ids, classes),
        "worst": worst(facts, ids, classes),
    }


def described(one: Candidate) -> dict[str, Any]:
    """What a candidate is, as its scores say it."""
    weights = None if one.weights is None else dict(one.weights)
    return {"name": one.name, "kind": one.kind, "tta": one.tta, "weights": weights, "temperature": one.temperature}


def _best_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """Name of the member with the highest accuracy, of equal ones the lowest loss; without members, of any candidate."""
    members = [entry for entry in entries if entry["kind"] == "member"] or entries
    return str(max(members, key=lambda entry: (entry["acc1"], -entry["nll"]))["name"])


def _check(
    columns: Mapping[str, Rows],
    labels: Ints,
    classes: Sequence[str],
    names: Sequence[str],
    chosen: Sequence[str | None],
) -> None:
    size = len(classes)
    if size < 2 or labels.ndim != 1 or not (labels >= 0).any():
        raise DataError(
            "scores", got=f"{size} classes, {int((labels >= 0).sum())} labelled images", want="2 and 1 at least"
        )
    if labels.max() >= size or labels.min() < -1:
        raise DataError(
            "labels", got=f"{labels.min()} to {labels.max()}", want=f"-1 to {size - 1}, a place in the classes"
        )
    wrong = [name for name in chosen if name and name not in names]
    if wrong or not names:
        raise DataError("candidates", got=wrong[0] if wrong else "none", want=f"one of {list(columns)}")
    for name in names:
        shape = tuple(columns[name].shape) if name in columns else None
        if shape != (len(labels), size):
            raise DataError(
                f"predictions of {name!r}", got=shape or "none", want=f"{(len(labels), size)}, images x classes"
            )
