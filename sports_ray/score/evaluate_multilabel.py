"""One multi-label evaluation's scores as a dict ready for JSON; its tables are read into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import DataError
from sports_ray.score.compare import compare, resampled
from sports_ray.score.evaluate import Candidate, described
from sports_ray.score.main_score import MULTILABEL, wilson
from sports_ray.score.multilabel import Bools, Vector, chosen, mean_of_defined, scores_of, sound_rows
from sports_ray.score.rows import FLOOR, Floats, Ints, Rows

RESAMPLES = 200
WORST = 50
MOST_VALUES = 2_000_000
"""Probabilities of a column up to which an interval of its mAP is computed."""
_AT_ONCE = 4_000_000
"""Counts of resampled images in memory at once."""


def evaluate_multilabel(
    columns: Mapping[str, Rows],
    targets: Bools,
    known: Bools,
    classes: Sequence[str],
    thresholds: Mapping[str, Vector],
    *,
    candidates: Sequence[Candidate],
    best_single: str | None = None,
    train_images: Ints | None = None,
) -> dict[str, Any]:
    """Scores of each column of probabilities [N, K] on targets bool [N, K]; images that are not `known` [N] are left out.

    thresholds: of each column, [K], fitted on validation images. best_single: the member that others are compared with,
    by default the one with the highest mAP here, which is flattered by the choice. DataError if no image is known."""
    if not known.any() or not candidates:
        raise DataError("scores", got=f"{int(known.sum())} labelled images", want="1 at least")
    ids, targets = np.flatnonzero(known), targets[known]
    tables = {one.name: np.asarray(columns[one.name][0 : len(known)])[known] for one in candidates}
    entries = [
        {**described(one), **_entry(tables[one.name], targets, np.asarray(thresholds[one.name]))} for one in candidates
    ]
    best = best_single or _best_of(entries)
    right = {name: (chosen(rows, thresholds[name]) == targets).all(1) for name, rows in tables.items()}
    samples = _samples(targets, tables)
    for entry in entries:
        name = entry["name"]
        entry["map_interval"] = _interval(samples.get(name))
        entry["against_best"] = None
        if name != best:
            difference = samples[name] - samples[best] if samples else None
            mean = entry["map"] - next(one["map"] for one in entries if one["name"] == best)
            paired = {"map_difference": mean, "map_interval": _interval(difference)}
            entry["against_best"] = {**compare(right[name], right[best]), **paired}
    detailed = next((one.name for one in candidates if one.kind == "ensemble"), best)
    return {
        "task": MULTILABEL,
        "best_single": best,
        "candidates": entries,
        "detailed": detailed,
        "worst": worst(tables[detailed], targets, np.asarray(thresholds[detailed]), ids, classes),
        "train_images": None if train_images is None else [int(count) for count in train_images],
    }


def _entry(rows: Floats, targets: Bools, thresholds: Vector) -> dict[str, Any]:
    found = scores_of(rows, targets, thresholds)
    right = round(found["subset"] * found["images"])
    return {**found, "subset_interval": list(wilson(right, found["images"]))}


def _best_of(entries: Sequence[Mapping[str, Any]]) -> str:
    members = [entry for entry in entries if entry["kind"] == "member"] or entries
    return str(max(members, key=lambda entry: (entry["map"], -entry["nll"]))["name"])


def worst(
    rows: Floats, targets: Bools, thresholds: Vector, ids: Ints, classes: Sequence[str], count: int = WORST
) -> list[dict[str, Any]]:
    """The wrong sets with the largest loss: [{`id`, `true`, `predicted` (names), `loss`}]; equal ones by id."""
    sound, predicted = sound_rows(rows)[:, None], chosen(rows, thresholds)
    own = np.where(targets, rows.astype(np.float64), 1.0 - rows.astype(np.float64))
    loss = -np.log(np.maximum(np.where(sound, own, 0.0), FLOOR)).mean(1)
    wrong = np.flatnonzero((predicted != targets).any(1))
    order = wrong[np.lexsort((ids[wrong], -loss[wrong]))][:count]

    def names(row: Bools) -> list[str]:
        return [classes[k] for k in np.flatnonzero(row).tolist()]

    return [
        {"id": int(ids[i]), "true": names(targets[i]), "predicted": names(predicted[i]), "loss": float(loss[i])}
        for i in order
    ]


def _samples(targets: Bools, tables: Mapping[str, Floats]) -> dict[str, Vector]:
    """mAP of each table on the same RESAMPLES resamples of the images; nothing of tables that are too large."""
    if targets.size > MOST_VALUES:
        return {}
    draws = [np.bincount(places, minlength=len(targets)) for places in resampled(len(targets), 0, RESAMPLES)]
    return {name: _resampled_maps(rows, targets, draws) for name, rows in tables.items()}


def _resampled_maps(rows: Floats, targets: Bools, draws: Sequence[NDArray[np.integer[Any]]]) -> Vector:
    """mAP where image i counts draws[r][i] times, [R]: as `average_precisions` of the repeated rows."""
    ranked = np.where(sound_rows(rows)[:, None], rows, -1.0)
    counts = np.stack(draws, axis=1).astype(np.int32)
    shown = [k for k in range(targets.shape[1]) if targets[:, k].any()]
    found = [_resampled_precisions(ranked[:, k], targets[:, k], counts) for k in shown]
    return np.array([mean_of_defined(values) for values in np.array(found).reshape(len(shown), len(draws)).T])


def _resampled_precisions(scores: Floats, targets: Bools, counts: NDArray[np.int32]) -> Vector:
    """Average precision of one class in each resample, [R], of counts [N, R]; NaN where it drew no positive."""
    order = np.argsort(-scores, kind="stable")
    places = np.flatnonzero(targets[order])
    ends = _ends(scores[order])[places]  # equal scores share the threshold of their last
    last_hit = np.searchsorted(places, ends, side="right") - 1
    parts = []
    # A row holds all resamples of an image: rows are copied and added whole.
    for part in np.array_split(counts, max(1, counts.size // _AT_ONCE), axis=1):
        weight = part[order]
        seen, own = np.cumsum(weight, axis=0, dtype=np.int32), weight[places]
        held = np.cumsum(own, axis=0, dtype=np.int32)
        precision = held[last_hit] / np.maximum(1, seen[ends])
        parts.append((own * precision).sum(0) / np.where(held[-1] > 0, held[-1], np.nan))
    return np.concatenate(parts)


def _ends(scores: Floats) -> NDArray[np.int64]:
    """Place of the last of the scores that equal each one, int64 [N]; scores fall."""
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    return last[np.searchsorted(last, np.arange(len(scores)))]


def _interval(samples: Vector | None) -> list[float] | None:
    """Percentiles of a bootstrap, at 95 %; null without samples."""
    return None if samples is None else [float(end) for end in np.quantile(samples, [0.025, 0.975])]
