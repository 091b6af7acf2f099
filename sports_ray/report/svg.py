"""Charts as SVG whose colours are the page's variables, so that they follow the reader's light or dark.

Drawn 440 units wide, to be shown at about that many px: words keep a size that can be read on a telephone too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from sports_ray.report.charts import Chart, Lines, Matrix, Reliability, Series, label, span_of, ticks
from sports_ray.report.markup import Html, el

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
LEVELS = 8
"""Steps of colour in a matrix."""

Scale = Callable[[float], float]


def paint(chart: Chart) -> Html:
    """The chart as an SVG element."""
    if isinstance(chart, Lines):
        return _lines(chart)
    if isinstance(chart, Reliability):
        return _reliability(chart)
    if isinstance(chart, Matrix):
        return matrix(chart)
    raise TypeError(f"{type(chart).__name__} is painted by HTML itself")


def _frame(title: str, *content: object, height: int = HEIGHT) -> Html:
    return el("svg", *content, viewBox=f"0 0 {WIDTH} {height}", class_="chart", role="img", aria_label=title)


def _scale(low: float, high: float, start: float, stop: float) -> Scale:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (stop - start)


def _lines(chart: Lines) -> Html:
    x_span = chart.x_span or _x_span(chart)
    y_span = chart.y_span or span_of(value for series in chart.series for value in series.ys)
    x = _scale(*x_span, LEFT, WIDTH - RIGHT)
    y = _scale(*y_span, HEIGHT - BOTTOM, TOP)
    content = [
        *_bands(chart, x),
        *_x_axis(chart.x_label, x_span, x),
        *_y_axis(chart.y_label, y_span, y, chart.percent),
        *(
            el("line", el("title", words), x1=_n(x(at)), x2=_n(x(at)), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")
            for at, words in chart.marks
        ),
        *(part for series in chart.series for part in _series(series, x, y, chart.percent)),
        *(
            el("circle", el("title", words), cx=_n(x(px)), cy=_n(y(py)), r=5.5, class_="ring")
            for px, py, words in chart.points
        ),
    ]
    return _frame(chart.title, *content)


def _x_span(chart: Lines) -> tuple[float, float]:
    values = [float(value) for series in chart.series for value in series.xs]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bands(chart: Lines, x: Scale) -> Iterator[Html]:
    for start, stop, words in chart.bands:
        width = max(1.0, x(stop) - x(start))
        box = {"x": _n(x(start)), "y": TOP, "width": _n(width), "height": HEIGHT - BOTTOM - TOP}
        yield el("rect", el("title", words), class_="band", **box)


def _x_axis(words: str, span: tuple[float, float], x: Scale, bottom: int = HEIGHT - BOTTOM) -> Iterator[Html]:
    yield el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis")
    places = ticks(*span, 6)
    for at in places:
        text = label(at, places[1] - places[0] if len(places) > 1 else 1.0)
        yield el("text", text, x=_n(x(at)), y=bottom + 16, text_anchor="middle")
    yield el("text", words, x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 33, text_anchor="middle", class_="label")


def _y_axis(
    words: str, span: tuple[float, float], y: Scale, percent: bool = False, middle: float = (TOP + HEIGHT - BOTTOM) / 2
) -> Iterator[Html]:
    places = ticks(*span, 5)
    for at in places:
        yield el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y(at)), y2=_n(y(at)), class_="rule")
        text = label(at, places[1] - places[0] if len(places) > 1 else 1.0, percent)
        yield el("text", text, x=LEFT - 6, y=_n(y(at) + 4), text_anchor="end")
    place = f"translate(11 {_n(middle)}) rotate(-90)"
    yield el("text", words, transform=place, text_anchor="middle", class_="label")


def _series(series: Series, x: Scale, y: Scale, percent: bool) -> Iterator[Html]:
    line, pen, alone = [], "M", []
    pairs = list(zip(series.xs, series.ys, strict=True))
    for at, value in pairs:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        line.append(f"{pen}{_n(x(at))} {_n(y(value))}")
        pen = "L"
        alone.append((at, value))
    kind = f"series c{series.colour}{' dashed' if series.dashed else ''}"
    yield el("path", d="".join(line), class_=kind)
    if len(alone) <= 60:  # beyond that dots are a thicker line
        for at, value in alone:
            shown = f"{100 * value:.1f} %" if percent else f"{value:.4g}"
            words = el("title", f"{series.name}: {shown} at {at:.4g}")
            yield el("circle", words, cx=_n(x(at)), cy=_n(y(value)), r=2.4, class_=f"dot c{series.colour}")


def _reliability(chart: Reliability) -> Html:
    height, strip = 330, 56
    bottom = height - BOTTOM
    upper = bottom - strip - 10
    x, y = _scale(0, 1, LEFT, WIDTH - RIGHT), _scale(0, 1, upper, TOP)
    most = max([*chart.count, 1])
    content: list[Html] = [
        *_x_axis("confidence", (0.0, 1.0), x, bottom),
        *_y_axis("accuracy", (0.0, 1.0), y, middle=(TOP + upper) / 2),
    ]
    for index, count in enumerate(chart.count):
        accuracy, confidence = chart.accuracy[index], chart.confidence[index]
        left, right = x(chart.edges[index]) + 1, x(chart.edges[index + 1]) - 1
        if not count or accuracy is None or confidence is None:
            continue
        words = f"{count:,} images of confidence {confidence:.1%}: {accuracy:.1%} right"
        box = {"x": _n(left), "width": _n(right - left)}
        content.append(
            el("rect", el("title", words), y=_n(y(accuracy)), height=_n(upper - y(accuracy)), class_="bar", **box)
        )
        high = max(1.0, strip * count / most)
        content.append(el("rect", el("title", words), y=_n(bottom - high), height=_n(high), class_="faint", **box))
        content.append(el("circle", el("title", words), cx=_n(x(confidence)), cy=_n(y(accuracy)), r=3, class_="dot c2"))
    diagonal = {"x1": _n(x(0)), "y1": _n(y(0)), "x2": _n(x(1)), "y2": _n(y(1))}
    content.append(el("line", class_="diagonal", **diagonal))
    content.append(el("text", "images", x=LEFT - 6, y=_n(bottom - strip / 2 + 4), text_anchor="end", class_="label"))
    return _frame(chart.title, *content, height=height)


def matrix(chart: Matrix, size: int = 1000, margin: int = 150) -> Html:
    """The whole matrix, as it is without the page's script, which paints it anew to fit the screen and to zoom."""
    order = list(chart.order) or list(range(len(chart.names)))
    side = (size - margin - 4) / max(1, len(order))
    font = min(12.0, max(5.0, side * 0.9))
    most = int(margin / font * 1.6)
    rows, columns = [], []
    for place, index in enumerate(order):
        at, name = margin + (place + 0.5) * side, chart.names[index]
        name = name if len(name) <= most else name[: most - 1] + "…"
        rows.append(el("text", name, x=margin - 5, y=_n(at + font * 0.35), text_anchor="end"))
        columns.append(el("text", name, transform=f"translate({_n(at + font * 0.35)} {margin - 5}) rotate(-90)"))
    cells = el(
        "g", *cell_paths(chart, order), class_="cells", transform=f"translate({margin} {margin}) scale({_n(side)})"
    )
    ground = el("rect", x=margin, y=margin, width=size - margin - 4, height=size - margin - 4, class_="ground")
    labels = el("g", *rows, *columns, class_="labels", font_size=_n(font))
    words = f"{chart.title}: rows are true classes, columns predicted ones"
    return el("svg", ground, cells, labels, viewBox=f"0 0 {size} {size}", class_="matrix", role="img", aria_label=words)


def cell_paths(chart: Matrix, order: list[int]) -> list[Html]:
    """One path for each step of colour, of unit squares: shares of the true class, right ones (h) and errors (e)."""
    place = {index: position for position, index in enumerate(order)}
    found: dict[str, list[str]] = {}
    for true in order:
        total = sum(chart.counts[true])
        for predicted, count in enumerate(chart.counts[true]):
            if count and predicted in place:
                kind = f"{'h' if true == predicted else 'e'}{level(count / total)}"
                found.setdefault(kind, []).append(f"M{place[predicted]} {place[true]}h1v1h-1z")
    return [el("path", d="".join(parts), class_=kind) for kind, parts in sorted(found.items())]


def level(share: float) -> int:
    """Step of colour, 1 to LEVELS, of a share in (0, 1]: by the root, so that rare errors can still be seen."""
    return min(LEVELS, 1 + int(LEVELS * math.sqrt(share)))


def _n(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
