"""The sections of an evaluation where a photograph shows several classes: candidates, classes, and sets that were wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sports_ray.report.charts import Bars
from sports_ray.report.evaluation_part import about
from sports_ray.report.explain import Seer
from sports_ray.report.gallery import OPEN_WORST, WORST, card, pictures
from sports_ray.report.markup import Child, Html, el, join
from sports_ray.report.read_evaluation import EvaluationRecord, Facts
from sports_ray.report.section import Section, bar, folded, table, tile
from sports_ray.report.words import NOTHING, count, decimal, is_number, percent, plural, points, span

WEAK = 0.5
"""Classes of a lower average precision stand out."""


def lead(evaluation: EvaluationRecord) -> Html:
    """The outcome in a sentence or two, and the largest figures."""
    shown, best = evaluation.shown, evaluation.scores.get("best_single")
    text: list[Child] = [
        el("b", shown["name"]), " reaches a mean average precision of ", el("b", percent(shown.get("map"))),
        f" on {count(shown.get('images'))} images that show {plural(len(evaluation.classes), 'class')}, 95 % interval "
        f"{span(shown.get('map_interval'))}.",
    ]  # fmt: skip
    versus = shown.get("against_best")
    if isinstance(versus, Mapping):
        text += [" Against the best single model, ", el("b", best), f", {points(versus.get('map_difference'))} points"]
        text += [f", interval {_signed(versus.get('map_interval'))}."]
    tiles = (
        tile(percent(shown.get("map")), "mAP", span(shown.get("map_interval"))),
        tile(decimal(shown.get("f1_macro")), "macro F1", f"micro {decimal(shown.get('f1_micro'))}"),
        tile(percent(shown.get("hamming")), "Hamming loss", "labels that are wrong"),
        tile(percent(shown.get("subset")), "whole sets right", span(shown.get("subset_interval"))),
    )
    return join(el("p", *text, class_="verdict"), el("div", *tiles, class_="tiles"))


def _signed(interval: Any) -> str:
    return f"[{points(interval[0])}, {points(interval[1])}]" if interval else NOTHING


def sections(evaluation: EvaluationRecord, seer: Seer | None) -> list[Section | None]:
    """All sections but those of the runs."""
    return [candidates(evaluation), classes(evaluation), mistakes(evaluation, seer), about(evaluation)]


def candidates(evaluation: EvaluationRecord) -> Section:
    """Single models, views and the ensemble side by side."""
    best = evaluation.scores.get("best_single")
    head = [
        "candidate",
        "mAP",
        "95 % interval",
        "macro F1",
        "micro F1",
        "Hamming",
        "whole sets",
        "NLL",
        "mAP against best",
    ]
    rows = [_candidate(one, best) for one in evaluation.candidates]
    note = (
        "mAP: mean over classes of the average precision, with a bootstrap interval over the images. F1, Hamming loss and "
        "whole sets: at each class's threshold, which was fitted on the members' validation images and never on these. "
        "NLL: binary cross-entropy in nats."
    )
    merge = evaluation.scores.get("merge")
    weights = merge.get("weights") if isinstance(merge, Mapping) else None
    shares = ", ".join(f"{name} {decimal(weight)}" for name, weight in (weights or {}).items())
    told = el("p", f"The ensemble's weights: {shares}; its thresholds are the members' mean.") if weights else None
    return Section("Candidates", join(table(head, rows, "cards"), el("p", note, class_="note"), told))


def _candidate(one: Facts, best: Any) -> list[Child]:
    versus, tta = one.get("against_best"), one.get("tta")
    against: Child = "the best single" if one["name"] == best else NOTHING
    if isinstance(versus, Mapping):
        ends = el("small", f" {_signed(versus.get('map_interval'))}")
        against = el("span", points(versus.get("map_difference")), ends)
    tags = [str(one.get("kind") or ""), "" if tta in (None, "", "none") else f"TTA {tta}"]
    name = el("div", el("b", one["name"]), el("small", " · ".join(tag for tag in tags if tag)), class_="name")
    return [
        name, el("b", percent(one.get("map"))), span(one.get("map_interval")), decimal(one.get("f1_macro")),
        decimal(one.get("f1_micro")), percent(one.get("hamming"), 2), percent(one.get("subset")), decimal(one.get("nll")),
        against,
    ]  # fmt: skip


def classes(evaluation: EvaluationRecord) -> Section:
    """A bar of average precision for each class, the weakest first, and all its figures."""
    shown, names = evaluation.shown["per_class"], evaluation.classes
    columns = {
        key: _column(shown, key, len(names)) for key in ("ap", "support", "precision", "recall", "f1", "threshold")
    }
    train = _column(evaluation.scores, "train_images", len(names))
    seen = [index for index in range(len(names)) if columns["ap"][index] is not None]
    order = sorted(seen, key=lambda index: (columns["ap"][index] or 0.0, names[index]))
    bars = []
    for index in order:
        ap = float(columns["ap"][index] or 0.0)
        words = f"{names[index]}: average precision {percent(ap)}, F1 {decimal(columns['f1'][index])}"
        bars.append(bar(names[index], ap, f"{100 * ap:.0f}", words, class_="low" if ap < WEAK else None))
    chart = Bars(
        name="classes",
        title=f"Average precision of each class, {evaluation.shown['name']}",
        x_label="average precision",
        names=[names[index] for index in order],
        values=[columns["ap"][index] for index in order],
    )
    rows: list[list[Child]] = [
        [
            names[i], _whole(columns["support"][i]), _whole(train[i]), percent(columns["ap"][i]),
            percent(columns["precision"][i]), percent(columns["recall"][i]), decimal(columns["f1"][i]),
            decimal(columns["threshold"][i]),
        ]
        for i in [*order, *(i for i in range(len(names)) if i not in set(seen))]
    ]  # fmt: skip
    head = ["class", "images", "in train", "average precision", "precision", "recall", "F1", "threshold"]
    body = join(
        el("p", "Average precision of each class, in percent; a class that no image shows has none."),
        el("ol", *bars, class_="bars", id="bars"),
        folded("All figures", table(head, rows, "plain"), is_open=len(names) <= 20),
    )
    return Section("Classes", body, (chart,))


def _whole(value: float | None) -> str:
    return NOTHING if value is None else count(int(value))


def _column(entry: Facts, key: str, size: int) -> list[float | None]:
    values = [float(value) if is_number(value) else None for value in list(entry.get(key) or [])[:size]]
    return values + [None] * (size - len(values))


def mistakes(evaluation: EvaluationRecord, seer: Seer | None) -> Section | None:
    """Photographs whose set was wrong, with the largest loss first; with a model, the heat of a class that it got wrong."""
    worst = [one for one in evaluation.scores.get("worst") or () if isinstance(one, Mapping) and "id" in one][:WORST]
    if not worst:
        return None
    paths = evaluation.paths(int(one["id"]) for one in worst)
    targets = {int(one["id"]): next(iter(_differing(one)), "") for one in worst}
    seen = pictures(paths, evaluation.read, seer, targets)
    cards = [card(seen.get(int(one["id"])), paths.get(int(one["id"])), _words(one)) for one in worst]
    kind = "gallery" if any(one.heat for one in seen.values()) else "gallery cold"
    rest = cards[OPEN_WORST:]
    more = folded(f"{len(rest)} more", el("div", *rest, class_=kind)) if rest else None
    return Section("Mistakes", join(el("div", *cards[:OPEN_WORST], class_=kind), more))


def _differing(one: Facts) -> Sequence[str]:
    """Classes that were predicted and are not there, then those that were missed."""
    true, predicted = one.get("true") or [], one.get("predicted") or []
    return [name for name in predicted if name not in true] + [name for name in true if name not in predicted]


def _words(one: Facts) -> Html:
    true, predicted = one.get("true") or [], one.get("predicted") or []
    wrong = [name for name in predicted if name not in true]
    missed = [name for name in true if name not in predicted]
    parts: list[Child] = [el("b", ", ".join(name for name in true if name in predicted) or "nothing"), " right"]
    parts += [el("br"), el("span", f"not there: {', '.join(wrong)}", class_="bad")] if wrong else []
    parts += [el("br"), el("span", f"missed: {', '.join(missed)}", class_="bad")] if missed else []
    return join(*parts)
