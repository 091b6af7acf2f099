"""Averages of ensemble members, and weights fitted on validation predictions, used only where a paired test says they help.

Columns are probabilities. The logarithm of a softmax is the logits up to a constant of its row, which the next softmax
drops: averaging logarithms is averaging logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import ConfigError
from sports_ray.score.calibrate import HOTTEST, at_temperature, log_linear, log_rows, softmax, temperature
from sports_ray.score.compare import bootstrap, mcnemar
from sports_ray.score.convex import Vector, minimise
from sports_ray.score.rows import FLOOR, Facts, Floats, Ints, Rows, chunks, facts_of, soundness

Space = Literal["probability", "logit"]

FOLDS = 5
MIN_IMAGES = 50
"""Fewer validation images are not worth a fit: an interval of resampled losses is too narrow there to be believed."""
ROUNDING = 1e-6
"""A single member has to be better than the uniform average by more nats: equal members differ by rounding."""
FIT_VALUES = 5_000_000
"""Probabilities of a member that a fit reads at most; of more images, those whose hashed ids are smallest."""


@dataclass(frozen=True, slots=True)
class Merge:
    weights: Mapping[str, float]
    """Of each member, in order: none negative, their sum 1."""
    temperature: float = 1.0
    space: Space = "probability"
    asked: str = "uniform"
    used: str = "uniform"
    """uniform, given, fit or best_single."""
    reason: str = ""

    def apply(self, columns: Mapping[str, Floats]) -> NDArray[np.float32]:
        """Merged rows, float32 [n, K]; columns: of each member, [n, K]. See `merge_rows`."""
        members = [columns[name] for name in self.weights]
        return merge_rows(members, list(self.weights.values()), self.space, self.temperature)

    def describe(self) -> dict[str, str]:
        return {"asked": self.asked, "used": self.used, "reason": self.reason}


def uniform(members: Sequence[str], space: Space = "probability") -> Merge:
    """The plain average."""
    return Merge(dict.fromkeys(members, 1 / len(members)), space=space, reason="as asked")


def given(weights: Mapping[str, float], space: Space = "probability") -> Merge:
    """Weights from the user, divided by their sum. ConfigError unless all are finite, none negative and one positive."""
    total = sum(weights.values())
    if not (math.isfinite(total) and total > 0 and min(weights.values()) >= 0):
        raise ConfigError("weights of members", got=dict(weights), want="numbers from 0, at least one of them positive")
    return Merge({name: w / total for name, w in weights.items()}, 1.0, space, "given", "given", "as asked")


def merge_rows(
    members: Sequence[Floats], weights: Sequence[float] | Vector, space: Space = "probability", temperature: float = 1.0
) -> NDArray[np.float32]:
    """Weighted average of members' rows [n, K], at a temperature: float32 [n, K], rows sum to 1, or 0; never NaN.

    weights [M], not negative, and rows are divided by their sums first. Where a member's row is not sound (see rows.py),
    the others' weights are scaled up in that row; where those are all 0, they count equally. Where no member's row is
    sound, the row is zeros, which is not sound either: an average of nothing is no prediction.
    probability: the arithmetic mean; logit: softmax of the mean logarithm, values under FLOOR counting as FLOOR.
    Where one member has all the weight, at temperature 1, its rows stay as they are, to the bit."""
    totals, sounds = zip(*(soundness(rows) for rows in members), strict=True)
    merged = _averaged(members, totals, sounds, weights, space, temperature)
    used = np.flatnonzero(np.asarray(weights) > 0)
    if len(used) == 1 and temperature == 1.0:
        one = int(used[0])
        same = sounds[one] & (np.abs(totals[one] - 1.0) < 1e-6)
        merged[same] = members[one][same]
    merged[~np.logical_or.reduce(sounds)] = 0
    return merged


def _averaged(
    members: Sequence[Floats],
    totals: Sequence[NDArray[np.float64]],
    sounds: Sequence[NDArray[np.bool_]],
    weights: Sequence[float] | Vector,
    space: Space,
    temperature: float,
) -> NDArray[np.float32]:
    """See `merge_rows`; rows where no member is sound are any."""
    count, classes = members[0].shape
    shares = _row_weights(np.asarray(weights, dtype=np.float64), np.stack(sounds))
    mixed = np.zeros((count, classes))
    for rows, total, sound, share in zip(members, totals, sounds, shares, strict=True):
        if space == "logit":
            mixed += share[:, None] * log_rows(rows)
        else:
            flat = np.full(rows.shape, 1.0 / classes)
            mixed += share[:, None] * np.divide(rows, total[:, None], out=flat, where=sound[:, None])
    if space == "logit":
        return softmax(mixed / temperature).astype(np.float32)
    return at_temperature(mixed, temperature) if temperature != 1.0 else mixed.astype(np.float32)


def _row_weights(weights: Vector, sounds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights [M], soundness [M, n] -> weights of each row [M, n]: their sum is 1, or 0 where no member is sound."""
    found = weights[:, None] * sounds
    found = np.where(found.sum(0) > 0, found, sounds)
    total = found.sum(0)
    shares: NDArray[np.float64] = np.divide(found, total, out=np.zeros(found.shape), where=total > 0)
    return shares


def fit_merge(
    columns: Mapping[str, Rows],
    labels: Ints,
    ids: Ints | None = None,
    *,
    space: Space = "probability",
    folds: int = FOLDS,
    seed: int = 0,
) -> Merge:
    """Convex weights and a temperature fitted on validation predictions, or the better of uniform average and best single.

    columns: probabilities [N, K] of each member; labels int [N], -1: unknown, left out; ids int [N], those of one group
    where images belong together (default: row numbers). Rows that are not sound in every member are left out.

    Cross-fitting: each image is scored by weights and temperature fitted without its fold, and `fold_of` its id alone
    decides which that is. What was fitted is used if the interval of the paired loss differences to the fallback, whose
    choice has nothing fitted, lies below 0 and its accuracy is not proven worse (McNemar, p < 0.05). The weights used are
    those fitted on all images."""
    names = list(columns)
    labels = np.asarray(labels)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    members, labels, ids = _sample(list(columns.values()), labels, ids)
    fold = fold_of(ids, folds)
    if len(labels) < MIN_IMAGES or len(np.unique(fold)) < 2:
        reason = f"{len(labels)} labelled validation images in {len(np.unique(fold))} folds are too few to fit"
        return Merge(uniform(names).weights, 1.0, space, "fit", "uniform", reason)
    fallback, weights = _fallback(members, labels, space)
    helps, evidence = _judge(_crossed(members, labels, fold, space), fallback, seed)
    single = int(np.argmax(weights)) if weights.max() == 1.0 and len(names) > 1 else -1
    called = names[single] if single >= 0 else "the uniform average"
    reason = f"{evidence} of {called}, on {len(labels)} validation images cross-fitted in {folds} folds"
    if helps:
        fitted = _fit(members, labels, space)
        return Merge(dict(zip(names, fitted[0].tolist(), strict=True)), fitted[1], space, "fit", "fit", reason)
    used = "best_single" if single >= 0 else "uniform"
    reason = f"fitted weights are not proven to help: {reason}"
    return Merge(dict(zip(names, weights.tolist(), strict=True)), 1.0, space, "fit", used, reason)


def fold_of(ids: Ints, folds: int) -> NDArray[np.int64]:
    """Fold of each id, in [0, folds): a pure function of the id, int [N]."""
    return (_mixed(ids) % np.uint64(folds)).astype(np.int64)


def mixture_weights(members: Sequence[Floats], labels: Ints) -> Vector:
    """Convex weights [M] for which the average of sound rows [n, K] has the lowest loss on labels [n].

    A convex problem: minus the mean of log(sum of w_m p_m), plus sum of w, has its minimum on the simplex (Kim et al.
    2018, "A fast algorithm for maximum likelihood estimation of mixture proportions", prop. 1)."""
    each = np.arange(len(labels))
    own = np.stack([np.maximum(rows[each, labels] / soundness(rows)[0], FLOOR) for rows in members], axis=1)
    own /= own.max(1, keepdims=True)

    def objective(w: Vector) -> tuple[float, Vector, NDArray[np.float64]]:
        mixed = own @ w
        if mixed.min() <= 0:
            return math.inf, np.zeros(len(w)), np.eye(len(w))
        ratio = own / mixed[:, None]
        value = float(w.sum() - np.log(mixed).mean())
        return value, 1.0 - ratio.mean(0), ratio.T @ ratio / len(labels)

    found = minimise(objective, np.full(len(members), 1.0 / len(members)), 0.0, 1.0)
    found /= found.sum()
    return found


def _fit(members: Sequence[Floats], labels: Ints, space: Space) -> tuple[Vector, float]:
    """Weights [M] and temperature with the lowest loss on sound rows: together for logits, else one after the other."""
    if space == "logit":
        factors = log_linear(members, labels)
        total = float(factors.sum())
        weights = factors / total if total > 0 else np.full(len(members), 1.0 / len(members))
        return weights, 1.0 / max(total, 1.0 / HOTTEST)
    weights = mixture_weights(members, labels)
    return weights, temperature(merge_rows(members, weights), labels)


def _crossed(members: Sequence[Floats], labels: Ints, fold: Ints, space: Space) -> tuple[Vector, NDArray[np.bool_]]:
    """Loss and correctness [n] of each image under what was fitted on the other folds."""
    loss, correct = np.zeros(len(labels)), np.zeros(len(labels), dtype=np.bool_)
    for number in np.unique(fold):
        inside = fold == number
        fitted = _fit([rows[~inside] for rows in members], labels[~inside], space)
        facts = facts_of(merge_rows([rows[inside] for rows in members], fitted[0], space, fitted[1]), labels[inside])
        loss[inside], correct[inside] = facts.loss, facts.correct()
    return loss, correct


def _fallback(members: Sequence[Floats], labels: Ints, space: Space) -> tuple[Facts, Vector]:
    """Facts and weights [M] of the uniform average or of the best single member, whichever has the lower mean loss."""
    choices = [np.full(len(members), 1.0 / len(members)), *np.eye(len(members))]
    facts = [facts_of(merge_rows(members, weights, space), labels) for weights in choices]
    losses = [float(one.loss.mean()) for one in facts]
    losses[0] -= ROUNDING
    best = int(np.argmin(losses))
    return facts[best], choices[best]


def _judge(crossed: tuple[Vector, NDArray[np.bool_]], fallback: Facts, seed: int) -> tuple[bool, str]:
    """Whether the paired tests are for the fitted weights, and the figures in words."""
    (loss, correct), other = crossed, fallback.correct()
    low, high = bootstrap(loss - fallback.loss, seed)
    gained, lost = int((correct & ~other).sum()), int((other & ~correct).sum())
    p = mcnemar(gained, lost)
    evidence = (
        f"loss {loss.mean():.4f} (difference in [{low:+.4f}, {high:+.4f}] at 95 %) and accuracy {correct.mean():.4f} "
        f"(McNemar p = {p:.2g}), against {fallback.loss.mean():.4f} and {other.mean():.4f}"
    )
    return high < 0 and not (lost > gained and p < 0.05), evidence


def _sample(tables: Sequence[Rows], labels: Ints, ids: Ints) -> tuple[list[Floats], Ints, Ints]:
    """Rows of each table, labels and ids of the images that a fit uses."""
    known = np.flatnonzero(labels >= 0)
    most = FIT_VALUES // tables[0].shape[1]
    if len(known) > most:
        known = np.sort(known[np.argsort(_mixed(ids[known]), kind="stable")[:most]])
    taken = [_take(table, known) for table in tables]
    sound = np.logical_and.reduce([soundness(rows)[1] for rows in taken])
    return [rows[sound] for rows in taken], labels[known][sound], ids[known][sound]


def _take(table: Rows, places: Ints) -> Floats:
    """Rows of a table at ascending places, read in chunks."""
    found: list[Any] = []
    for part in chunks(*table.shape):
        first, last = np.searchsorted(places, [part.start, part.stop])
        found.append(np.asarray(table[part])[places[first:last] - part.start])
    return np.concatenate(found)


def _mixed(ids: Ints) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014) of each id: 64 well-mixed bits."""
    with np.errstate(over="ignore"):
        z = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
