"""Scores of an evaluation and images without a prediction, as people and machines want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sports_ray.cli.show import Show
from sports_ray.errors import DataError
from sports_ray.score.main_score import MULTILABEL
from sports_ray.store.storage import without_keys

if TYPE_CHECKING:
    from sports_ray.predict.plan import Plan

SHOWN = 5
_LARGE = ("per_class", "confusion", "reliability")
"""Parts of a candidate's entry that are for scores.json and the report."""


def show_scores(scores: Mapping[str, Any], plan: Plan, show: Show) -> None:
    """The table of all candidates, what was merged how, what has no prediction, and where all of it lies."""
    lines = score_table(scores)
    if scores["merge"]["used"] != "single":
        merge = scores["merge"]
        parts = ", ".join(f"{name} {weight:.3f}" for name, weight in merge["weights"].items())
        temperature = f", temperature {merge['temperature']:.3f}" if merge["temperature"] != 1.0 else ""
        lines.append(f"ensemble: {merge['used']} weights ({parts}{temperature}): {merge['reason']}")
    entries = [{key: entry[key] for key in entry if key not in _LARGE} for entry in scores["candidates"]]
    text, best = "\n".join(lines), scores["best_single"]
    show.fact("result", text, best_single=best, merge=scores["merge"], candidates=entries)
    show_bad(scores["data"]["bad"], show)
    for name, count in unsound(scores["candidates"]).items():
        show.fact(
            "unsound", f"! {name}: {count:,} predictions are not finite, and count as wrong", name=name, count=count
        )
    place = without_keys(plan.out)
    show.fact("written", f"{place}: predictions.parquet, scores.json", path=place, digest=plan.digest)


def unsound(candidates: list[dict[str, Any]]) -> dict[str, int]:
    """How many predictions of each candidate are no probabilities, where there are such."""
    return {entry["name"]: entry["unsound"] for entry in candidates if entry.get("unsound")}


def refuse_unsound(candidates: list[dict[str, Any]]) -> None:
    for name, count in unsound(candidates).items():
        raise DataError(f"predictions of {name}", got=f"{count:,} that are not finite", want="none (--strict)")


def score_table(scores: Mapping[str, Any]) -> list[str]:
    """A line a candidate; the intervals are those of 95 %."""
    entries = scores["candidates"]
    if scores.get("task") == MULTILABEL:
        return _multilabel_table(scores)
    width = max(len("model"), *(len(entry["name"]) for entry in entries))
    lines = [
        f"{'model':<{width}} {'views':<7} {'images':>7} {'acc1':>7} {'95 %':<16} {'acc5':>7} {'NLL':>7} {'ECE':>6}"
        f"  against {scores['best_single']}"
    ]
    for entry in entries:
        low, high = entry["acc1_interval"]
        other = entry["against_best"]
        against = "" if other is None else f"{other['difference']:+.4f} (p = {other['mcnemar_p']:.2g})"
        tta = entry["tta"] if len(entry["tta"]) <= 7 else entry["tta"].partition("=")[0]
        lines.append(
            f"{entry['name']:<{width}} {tta:<7} {entry['images']:>7,} {entry['acc1']:>7.4f} "
            f"{f'[{low:.4f}, {high:.4f}]':<16} {entry['acc5']:>7.4f} {entry['nll']:>7.4f} {entry['ece']:>6.4f}  {against}"
        )
    return lines


def _multilabel_table(scores: Mapping[str, Any]) -> list[str]:
    entries = scores["candidates"]
    width = max(len("model"), *(len(entry["name"]) for entry in entries))
    lines = [
        f"{'model':<{width}} {'views':<7} {'images':>7} {'mAP':>7} {'95 %':<16} {'F1 macro':>8} {'micro':>7} {'Hamming':>7} "
        f"{'subset':>7}  mAP against {scores['best_single']}"
    ]
    for entry in entries:
        other, ends = entry["against_best"], entry["map_interval"]
        against = "" if other is None else f"{other['map_difference']:+.4f}"
        if other is not None and other["map_interval"] is not None:
            against += " [{:+.4f}, {:+.4f}]".format(*other["map_interval"])
        interval = "" if ends is None else "[{:.4f}, {:.4f}]".format(*ends)
        tta = entry["tta"] if len(entry["tta"]) <= 7 else entry["tta"].partition("=")[0]
        lines.append(
            f"{entry['name']:<{width}} {tta:<7} {entry['images']:>7,} {entry['map']:>7.4f} {interval:<16} "
            f"{entry['f1_macro']:>8.4f} {entry['f1_micro']:>7.4f} {entry['hamming']:>7.4f} {entry['subset']:>7.4f}  {against}"
        )
    return lines


def show_bad(bad: list[dict[str, str]], show: Show) -> None:
    if bad:
        lines = [f"! {len(bad):,} image{'s' * (len(bad) > 1)} without a prediction"]
        lines += [f"! {one['path']}: {one['error']}" for one in bad[:SHOWN]]
        lines += [f"! and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
        show.fact("bad", "\n".join(lines), count=len(bad), images=bad)


def refuse_bad(bad: list[dict[str, str]]) -> None:
    if bad:
        what = f"{len(bad):,} image{'s' * (len(bad) > 1)} without a prediction"
        raise DataError(
            what, got=f"{bad[0]['path']}: {bad[0]['error']}", want="none (--strict)", cure="mend or remove them"
        )
