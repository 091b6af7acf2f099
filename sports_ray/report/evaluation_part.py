"""The sections of an evaluation about its candidates: who is best, whether that is sure, and whether confidence holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sports_ray.report.charts import Reliability
from sports_ray.report.markup import Child, Html, el, join
from sports_ray.report.read_evaluation import EvaluationRecord, Facts
from sports_ray.report.run_part import provenance
from sports_ray.report.section import Section, command, facts, figure, folded, table, tile, whisker
from sports_ray.report.words import NOTHING, count, decimal, is_number, p_value, percent, plural, points, span

SURE = 0.05
"""Below this p a difference counts as shown."""
SHOWN_BAD = 200


def lead(evaluation: EvaluationRecord) -> Html:
    """The outcome in a sentence or two, and the largest figures."""
    shown, best = evaluation.shown, evaluation.scores.get("best_single")
    text: list[Child] = [
        el("b", shown["name"]), " is right on ", el("b", percent(shown.get("acc1"))),
        f" of {count(shown.get('images'))} images, 95 % interval {span(shown.get('acc1_interval'))}.",
    ]  # fmt: skip
    versus = shown.get("against_best")
    if isinstance(versus, Mapping):
        p = p_value(versus.get("mcnemar_p"))
        text += [" Against the best single model, ", el("b", best), f", {points(versus.get('difference'))} points, "]
        text += [f"interval {_signed(versus.get('interval'))}, p {p if p.startswith('<') else f'= {p}'}: "]
        text += [_judged(versus), "."]
    perfect, zero = (len(evaluation.scores.get(key) or ()) for key in ("perfect_classes", "zero_classes"))
    tiles = (
        tile(percent(shown.get("acc1")), "top-1", span(shown.get("acc1_interval"))),
        tile(percent(shown.get("acc5")), "top-5"),
        tile(percent(shown.get("ece")), "calibration error"),
        tile(f"{perfect} / {zero}", "classes at 100 % / 0 %", f"of {len(evaluation.classes)}"),
    )
    return join(el("p", *text, class_="verdict"), el("div", *tiles, class_="tiles"))


def _judged(versus: Facts) -> str:
    p, difference = versus.get("mcnemar_p"), versus.get("difference")
    if not is_number(p) or not is_number(difference):
        return "not tested"
    if float(p) >= SURE:
        return "no difference is shown"
    return "better" if float(difference) > 0 else "worse"


def _signed(interval: Any) -> str:
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        return NOTHING
    return f"[{points(interval[0])}, {points(interval[1])}]"


def candidates(evaluation: EvaluationRecord) -> Section:
    """Single models, views and the ensemble side by side, on one scale."""
    rows = list(evaluation.candidates)
    ends = [float(end) for one in rows for end in (one.get("acc1_interval") or ()) if is_number(end)]
    low, high = (max(0.0, min(ends) - 0.01), min(1.0, max(ends) + 0.01)) if ends else (0.0, 1.0)
    best = evaluation.scores.get("best_single")
    head = ["candidate", "top-1", "95 % interval", "top-5", "NLL", "ECE", "against best single", "p"]
    note = el(
        "p",
        f"The scale runs from {percent(low, 0)} to {percent(high, 0)}: the accuracy in Wilson's 95 % interval. Differences "
        "in percent points with a bootstrap interval over the same images; p of McNemar's paired test. NLL: negative "
        "log-likelihood in nats. ECE: expected calibration error.",
        class_="note",
    )
    shown = table(head, [_candidate(one, best, low, high) for one in rows], "cards")
    return Section("Candidates", join(shown, note, _merge(evaluation.scores.get("merge")), _weights(rows)))


def _candidate(one: Facts, best: Any, low: float, high: float) -> list[Child]:
    versus = one.get("against_best")
    against: Child = "the best single" if one["name"] == best else NOTHING
    p: Child = NOTHING
    if isinstance(versus, Mapping):
        kind = {"better": "good", "worse": "bad"}.get(_judged(versus))
        interval = el("small", f" {_signed(versus.get('interval'))}")
        against = el("span", points(versus.get("difference")), interval, class_=kind)
        p = el("span", p_value(versus.get("mcnemar_p")), class_=kind)
    tta = one.get("tta")
    tags = [str(one.get("kind") or ""), "" if tta in (None, "", "none") else f"TTA {tta}"]
    name = el("div", el("b", one["name"]), el("small", " · ".join(tag for tag in tags if tag)), class_="name")
    return [
        name, el("b", percent(one.get("acc1"))), whisker(one, low, high), percent(one.get("acc5")),
        decimal(one.get("nll")), decimal(one.get("ece")), against, p,
    ]  # fmt: skip


def _merge(merge: Any) -> Html | None:
    if not isinstance(merge, Mapping) or not merge.get("used"):
        return None
    text: list[Child] = ["Weights of the ensemble: asked for ", el("b", merge.get("asked")), ", used "]
    reason = str(merge.get("reason") or "")
    return el("p", *text, el("b", merge["used"]), f" – {reason}" if reason else ".")


def _weights(rows: Sequence[Facts]) -> Html | None:
    found = []
    for one in rows:
        weights, heat = one.get("weights"), one.get("temperature")
        if isinstance(weights, Mapping) and weights:
            parts = ", ".join(f"{name} {decimal(weight)}" for name, weight in weights.items())
            found.append(el("li", el("b", one["name"]), f": {parts}{f'; temperature {decimal(heat)}' if heat else ''}"))
    return el("ul", *found) if found else None


def calibration(evaluation: EvaluationRecord) -> Section | None:
    """How far confidence can be believed: of the shown candidate and, beside it, the best single one."""
    best = evaluation.scores.get("best_single")
    others = [one for one in evaluation.candidates if one["name"] == best and one is not evaluation.shown]
    charts = []
    for number, one in enumerate([evaluation.shown, *others], 1):
        bins = one.get("reliability")
        if isinstance(bins, Mapping) and bins.get("edges"):
            parts = {key: bins[key] for key in ("edges", "confidence", "accuracy", "count")}
            title = f"{one['name']}: ECE {decimal(one.get('ece'))}"
            charts.append(Reliability(name=f"calibration-{number}", title=title, **parts))
    if not charts:
        return None
    text = (
        "A bar that ends on the dotted line keeps its promise: of predictions with 80 % confidence, 80 % are right. Below "
        "the line the model believes too much in itself, above it too little. The strip below counts the images."
    )
    body = join(el("p", text, class_="note"), el("div", *map(figure, charts), class_="grid"))
    return Section("Calibration", body, tuple(charts))


def about(evaluation: EvaluationRecord) -> Section:
    """The data, the exact command and the versions."""
    data = evaluation.data
    bad = [entry for entry in data.get("bad") or () if isinstance(entry, Mapping)]
    fingerprint = data.get("fingerprint")
    known = {
        "images": count(data.get("images")), "split": data.get("split"), "folder": data.get("root"),
        "classes": count(len(evaluation.classes)),
        "fingerprint": el("code", str(fingerprint)) if fingerprint else None,
        "unreadable": plural(len(bad), "image") if bad else "no image", "evaluation": str(evaluation.folder),
    }  # fmt: skip
    rows = [[str(entry.get("path")), str(entry.get("error"))] for entry in bad[:SHOWN_BAD]]
    body = join(
        command(evaluation.scores.get("command")),
        facts(known),
        folded("Unreadable images", table(["path", "error"], rows, "plain")) if rows else None,
        provenance(evaluation.scores.get("versions")),
    )
    return Section("Evaluation", body)
