"""The parts that a page is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sports_ray.report.charts import Chart
from sports_ray.report.markup import Child, Html, el
from sports_ray.report.svg import paint
from sports_ray.report.words import NOTHING, is_number, span


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    body: Html
    charts: tuple[Chart, ...] = ()
    """Written as PNG beside the page too."""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def figure(chart: Chart, note: Child = None) -> Html:
    """A chart with its title, its legend where it has one, and a note."""
    return el(
        "figure",
        el("figcaption", el("b", chart.title), legend(chart)),
        paint(chart),
        el("p", note, class_="note") if note else None,
        class_="card",
    )


def legend(chart: Chart) -> Html | None:
    series = getattr(chart, "series", ())
    if len(series) < 2:
        return None
    keys = (el("span", one.name, class_=f"key c{one.colour}{' dashed' if one.dashed else ''}") for one in series)
    return el("span", *keys, class_="legend")


def facts(pairs: Mapping[str, Child]) -> Html:
    """Names and values, one below the other; a value of None leaves its line out."""
    return el("dl", *((el("dt", name), el("dd", value)) for name, value in pairs.items() if value is not None))


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], class_: str = "") -> Html:
    """A table that becomes a list of cards on a narrow screen: each cell knows its column's name."""
    body = (el("tr", *(el("td", cell, data_label=name) for name, cell in zip(head, row, strict=True))) for row in rows)
    return el(
        "div",
        el("table", el("thead", el("tr", *(el("th", name) for name in head))), el("tbody", *body)),
        class_=f"table {class_}".strip(),
    )


def tile(value: Child, name: Child, note: Child = None) -> Html:
    """One large figure."""
    return el("div", el("b", value), el("span", name), el("small", note) if note else None, class_="tile")


def command(words: Any) -> Html | None:
    """A command line as it was typed; words are quoted as a shell wants them."""
    import shlex

    if isinstance(words, str):
        return el("pre", words)
    if isinstance(words, (list, tuple)) and words:
        return el("pre", shlex.join(str(word) for word in words))
    return None


def folded(title: str, *content: Child, is_open: bool = False) -> Html:
    return el("details", el("summary", title), *content, open=is_open)


def bar(name: str, share: float, value: str, words: str, **attributes: object) -> Html:
    """An item of a list of bars; `share` in [0, 1] of the track is filled, `words` are shown when pointed at."""
    return el(
        "li",
        el("span", name, class_="who"),
        el("span", el("i", style=f"width:{100 * share:.1f}%"), class_="track"),
        el("span", value, class_="value"),
        title=words,
        **attributes,
    )


def whisker(entry: Mapping[str, Any], low: float, high: float) -> Html:
    """An accuracy (`acc1`) in its interval (`acc1_interval`), drawn on a scale from `low` to `high`."""
    ends, at = entry.get("acc1_interval") or (), entry.get("acc1")
    words = span(ends)
    if words == NOTHING or not is_number(at):
        return el("span", words)
    left, right, middle = (100 * (float(value) - low) / ((high - low) or 1.0) for value in (*ends, at))
    shown = el("i", style=f"left:{left:.2f}%;width:{max(0.5, right - left):.2f}%")
    bar_ = el("span", shown, el("em", style=f"left:{middle:.2f}%"), class_="whisker")
    return el("div", bar_, el("small", words), class_="interval")
