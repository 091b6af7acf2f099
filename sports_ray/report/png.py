"""The page's charts as PNG, for slides and papers: painted by matplotlib, on white."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sports_ray.report.charts import Bars, Chart, Lines, Matrix, Reliability
from sports_ray.report.markup import visible

COLOURS = ("#2f62c9", "#d9711c", "#2b8a57", "#8a4fc0")
INK, FAINT = "#1d2430", "#c9ced6"
DPI = 160


def paint(chart: Chart) -> bytes:
    """The chart as a PNG file."""
    figure = Figure(figsize=_size(chart), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    painters: dict[type, Callable[[Axes, Any], None]] = {
        Lines: _lines, Bars: _bars, Reliability: _reliability, Matrix: _matrix,
    }  # fmt: skip
    painters[type(chart)](axes, chart)
    axes.set_title(_text(chart.title), fontsize=11, color=INK, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks some scripts: boxes stand for them
        # By the canvas itself: savefig lays everything out in a drawing of its own before. Without the software's name, which
        # is in by default: equal charts give equal bytes.
        FigureCanvasAgg(figure).print_png(sink, metadata={"Software": None})
    return sink.getvalue()


def _size(chart: Chart) -> tuple[float, float]:
    """Inches."""
    if isinstance(chart, Matrix):
        side = min(24.0, max(4.5, 2.0 + 0.13 * len(chart.names)))
        return side, side
    if isinstance(chart, Bars):
        return 6.4, min(60.0, max(2.0, 1.0 + 0.17 * len(chart.names)))
    return 6.4, 4.0


def _text(words: str) -> str:
    """Words without mathematics: matplotlib reads what stands between dollars as such."""
    return visible(words).replace("$", r"\$")


def _lines(axes: Axes, chart: Lines) -> None:
    for start, stop, _ in chart.bands:
        axes.axvspan(start, stop, color=FAINT, alpha=0.4, linewidth=0)
    for at, _ in chart.marks:
        axes.axvline(at, color=INK, linewidth=0.8, linestyle=":")
    for series in chart.series:
        ys = [math.nan if value is None else value for value in series.ys]
        style = "--" if series.dashed else "-"
        marker = "." if len(ys) <= 60 else ""
        axes.plot(series.xs, ys, style, color=COLOURS[series.colour - 1], marker=marker, label=_text(series.name))
    for x, y, words in chart.points:
        axes.plot([x], [y], "o", markersize=9, markerfacecolor="none", color=INK)
        axes.annotate(_text(words), (x, y), xytext=(0, -14), textcoords="offset points", fontsize=8, ha="center")
    if chart.x_span:
        axes.set_xlim(*chart.x_span)
    if chart.y_span:
        axes.set_ylim(*chart.y_span)
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _labels(axes, chart.x_label, chart.y_label)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=9)


def _bars(axes: Axes, chart: Bars) -> None:
    values = [0.0 if value is None else value for value in chart.values]
    axes.barh(range(len(values)), values, color=COLOURS[0], height=0.75)
    for row, span in enumerate(chart.spans):
        if span is not None:
            axes.plot(span, [row, row], color=INK, linewidth=0.9)
    axes.set_yticks(range(len(values)), [_text(name)[:40] for name in chart.names], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    if chart.percent:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _labels(axes, chart.x_label, "")


def _reliability(axes: Axes, chart: Reliability) -> None:
    edges = np.asarray(chart.edges, dtype=float)
    accuracy = [0.0 if value is None else value for value in chart.accuracy]
    axes.bar(edges[:-1], accuracy, np.diff(edges) * 0.94, align="edge", color=COLOURS[0])
    share = np.asarray(chart.count, dtype=float) / max(1, sum(chart.count))
    axes.bar(edges[:-1], share, np.diff(edges) * 0.94, align="edge", color=INK, alpha=0.25, label="share of images")
    axes.plot([0, 1], [0, 1], ":", color=INK)
    places = zip(chart.confidence, chart.accuracy, chart.count, strict=True)
    seen = [(x, y) for x, y, count in places if count and x is not None and y is not None]
    axes.plot([x for x, _ in seen], [y for _, y in seen], "o", color=COLOURS[1], markersize=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _labels(axes, "confidence", "accuracy")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _matrix(axes: Axes, chart: Matrix) -> None:
    order = list(chart.order) or list(range(len(chart.names)))
    counts = np.asarray(chart.counts, dtype=float)[np.ix_(order, order)]
    shares = counts / np.maximum(1.0, counts.sum(1, keepdims=True))
    # The root shows rare errors too, as on the page.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    names = [_text(chart.names[index])[:28] for index in order]
    font = max(3.0, min(9.0, 520 / max(1, len(order))))
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(order)), names, fontsize=font)
    _labels(axes, "predicted", "true")


def _labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(_text(x), fontsize=9, color=INK)
    axes.set_ylabel(_text(y), fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelcolor=INK)
