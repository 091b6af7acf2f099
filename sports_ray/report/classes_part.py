"""The sections about single classes: a bar for each, the confusion matrix, and parts of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sports_ray.report.charts import Bars, Matrix
from sports_ray.report.markup import Html, data_block, el, join, visible
from sports_ray.report.order import clustered
from sports_ray.report.read_evaluation import EvaluationRecord, Facts
from sports_ray.report.section import Section, bar, folded, table, whisker
from sports_ray.report.svg import paint
from sports_ray.report.words import count, decimal, is_number, percent, plural

WEAK = 0.5
"""Classes recognised less often stand out."""
OPEN = 12
"""Lists of so many names are shown unfolded."""
_ORDERS = {
    "recall": "weakest first", "-recall": "strongest first", "f1": "lowest F1", "-support": "most images", "name": "name",
}  # fmt: skip


def per_class(evaluation: EvaluationRecord) -> Section:
    """A bar for each class, the weakest first."""
    shown, names = evaluation.shown.get("per_class") or {}, evaluation.classes
    support, precision, recall, f1 = (
        _column(shown, key, len(names)) for key in ("support", "precision", "recall", "f1")
    )
    seen = [index for index in range(len(names)) if support[index]]
    order = sorted(seen, key=lambda index: (recall[index], names[index]))
    bars = []
    for index in order:
        words = f"{names[index]}: {percent(recall[index])} of {plural(int(support[index]), 'image')} right; "
        words += f"precision {percent(precision[index])}, F1 {decimal(f1[index])}"
        data = {"data_recall": recall[index], "data_f1": f1[index], "data_support": support[index]}
        weak = "low" if recall[index] < WEAK else None
        value = f"{100 * recall[index]:.0f}"
        bars.append(bar(names[index], recall[index], value, words, data_name=names[index], class_=weak, **data))
    chart = Bars(
        name="classes",
        title=f"Accuracy of each class, {evaluation.shown['name']}",
        x_label="accuracy (recall)",
        names=[names[index] for index in order],
        values=[recall[index] for index in order],
    )
    choice = el("select", *(el("option", words, value=key) for key, words in _ORDERS.items()), data_sort="bars")
    rows = [
        [names[i], count(int(support[i])), percent(precision[i]), percent(recall[i]), decimal(f1[i])] for i in order
    ]
    body = join(
        el("p", "Share of each class's images that is recognised, in percent. ", el("label", "Order ", choice)),
        el("ol", *bars, class_="bars", id="bars"),
        _extremes(evaluation, len(seen)),
        _named(
            f"{len(names) - len(seen)} without an image here", [names[i] for i in range(len(names)) if not support[i]]
        ),
        folded("All figures", table(["class", "images", "precision", "recall", "F1"], rows, "plain")),
    )
    return Section("Classes", body, (chart,))


def _column(shown: Facts, key: str, size: int) -> list[float]:
    values = list(shown.get(key) or [])[:size]
    sound = [float(value) if is_number(value) else 0.0 for value in values]
    return sound + [0.0] * (size - len(sound))


def _extremes(evaluation: EvaluationRecord, seen: int) -> Html:
    parts = []
    for key, words in (("perfect_classes", "at 100 %"), ("zero_classes", "at 0 %")):
        names = [str(name) for name in evaluation.scores.get(key) or ()]
        title = f"{len(names)} of {plural(seen, 'class')} {words}"
        parts.append(_named(title, names) or el("p", title))
    return el("div", *parts)


def _named(title: str, names: Sequence[str]) -> Html | None:
    chips = el("p", *(el("span", name, class_="chip") for name in names), class_="chips")
    return folded(title, chips, is_open=len(names) <= OPEN) if names else None


def confusion(evaluation: EvaluationRecord) -> Section:
    """The heat map, whose order puts side by side what is taken for each other."""
    counts = evaluation.confusion
    order = clustered(counts)
    chart = Matrix(
        name="confusion",
        title=f"Confusion of {evaluation.shown['name']}",
        names=evaluation.classes,
        counts=counts.tolist(),
        order=order,
    )
    rows, columns = np.nonzero(counts)
    cells = np.stack([rows, columns, counts[rows, columns]], axis=1).tolist()
    names = [visible(name) for name in evaluation.classes]
    data = data_block("confusion-data", {"names": names, "cells": cells, "order": order})
    hint = "Point at a field or tap it. Zoom with the buttons, two fingers, or Ctrl and the wheel; drag to move."
    drawn = el(
        "div", _tools(), el("p", hint, class_="readout", aria_live="polite"), paint(chart), data,
        class_="card confusion", data_source="confusion-data",
    )  # fmt: skip
    note = el(
        "p",
        "Rows are true classes, columns what they were taken for; the darker, the larger the share of the row. ",
        el("span", el("i", class_="swatch h6"), " right", class_="whole"),
        el("span", el("i", class_="swatch e6"), " wrong", class_="whole"),
        class_="note",
    )  # fmt: skip
    return Section("Confusion", join(note, drawn), (chart,))


def _tools() -> Html:
    orders = {"clustered": "alike side by side", "name": "name", "recall": "weakest first"}
    choice = el("select", *(el("option", words, value=key) for key, words in orders.items()), data_order=True)
    return el(
        "div",
        el("label", "Order ", choice),
        el("button", "−", type="button", data_zoom="out", aria_label="zoom out"),
        el("button", "+", type="button", data_zoom="in", aria_label="zoom in"),
        el("button", "whole", type="button", data_zoom="fit"),
        class_="tools",
    )


def breakdown(evaluation: EvaluationRecord, groups: Sequence[Facts]) -> Section | None:
    """Accuracy by how often a class was seen in training, and by the user's groups."""
    parts = list(_parts(evaluation.scores.get("by_frequency") or (), groups))
    return Section("Parts of the data", el("div", *parts, class_="grid broad")) if parts else None


def _parts(frequency: Sequence[Facts], groups: Sequence[Facts]) -> Iterator[Html]:
    if frequency:
        rows = [(_train_images(entry.get("train_images")), entry) for entry in frequency]
        yield _accuracies("By images of the class in training", "in train", rows)
    for column in dict.fromkeys(str(entry.get("column") or "group") for entry in groups):
        rows = [(str(one.get("group")), one) for one in groups if str(one.get("column") or "group") == column]
        yield _accuracies(f"By {column}", column, rows)


def _accuracies(title: str, what: str, rows: Sequence[tuple[str, Facts]]) -> Html:
    body = []
    for name, entry in rows:
        classes = [str(one) for one in entry.get("classes") or ()]
        shown = el("div", el("b", percent(entry.get("acc1"))), whisker(entry, 0.0, 1.0), class_="scored")
        named = el("span", name, title=", ".join(classes)[:2000])
        body.append([named, count(len(classes)), count(entry.get("images")), shown])
    head = [what, "classes", "images", "accuracy"]
    return el("figure", el("figcaption", el("b", title)), table(head, body, "plain"), class_="card")


def _train_images(least_most: Any) -> str:
    if isinstance(least_most, (list, tuple)) and len(least_most) == 2 and all(map(is_number, least_most)):
        least, most = least_most
        return f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return str(least_most)
