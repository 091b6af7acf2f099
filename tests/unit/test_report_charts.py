"""Charts: round ticks, well-formed SVG that shows what the record says, PNG files, and the order of a matrix."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from sports_ray.report import png, svg
from sports_ray.report.charts import Bars, Chart, Lines, Matrix, Reliability, Series, label, span_of, ticks
from sports_ray.report.order import clustered

NAMES = ["a<b>", "$x_1$", "snow ☃", 'say "no"']
LINES = Lines(
    name="lines", title="<Loss> $5", x_label="epoch", y_label="nats",
    series=[Series("train & val", [1, 2, 3, 4], [0.5, None, math.nan, 0.25], 1), Series("<b>", [1, 4], [0.1, 0.9], 2)],
    marks=[(2.5, "session 2: resumed at step <3>")], points=[(4.0, 0.25, "best $")], bands=[(1.0, 2.0, "flat")],
    percent=True,
)  # fmt: skip
MATRIX = Matrix(name="m", title="Confusion", names=NAMES, counts=[[3, 1, 0, 0], [0, 4, 0, 0], [1, 0, 9, 0], [0] * 4])
BINS = Reliability(
    name="r", title="model <x>", edges=[0, 0.5, 1], confidence=[0.3, 0.9], accuracy=[0.2, 1.0], count=[5, 10]
)
BARS = Bars(name="b", title="Classes", x_label="accuracy", names=NAMES, values=[0.0, 0.5, 1.0, None])
EMPTY = Lines(name="e", title="none", x_label="x", y_label="y", series=[Series("s", [], [], 1)])


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 30, 6, [0, 5, 10, 15, 20, 25, 30]),
        (0.71, 0.74, 5, [0.71, 0.72, 0.73, 0.74]),
        (0, 4e-3, 5, [0, 1e-3, 2e-3, 3e-3, 4e-3]),
        (2, 2, 5, [2]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, most: int, wanted: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(wanted)


def test_labels_have_the_digits_that_their_ticks_need() -> None:
    assert [label(value, 0.2) for value in (0, 0.2, 1.0)] == ["0.0", "0.2", "1.0"]
    assert [label(value, 0.01, percent=True) for value in (0.71, 0.72)] == ["71%", "72%"]
    assert [label(value, 0.005, percent=True) for value in (0.715, 0.72)] == ["71.5%", "72.0%"]
    assert [label(value, 10) for value in (0, 10, 20)] == ["0", "10", "20"]
    assert label(2e-4, 1e-4) == "2e-4" and label(2.5e-4, 5e-5) == "2.5e-4"


def test_span_of_anything_can_be_drawn() -> None:
    for values in ([], [None, math.nan], [3.0], [0.0, 0.0], [1.0, 2.0]):
        low, high = span_of(values)
        assert low < high and math.isfinite(low) and math.isfinite(high)


@pytest.mark.parametrize("chart", [LINES, MATRIX, BINS, EMPTY])
def test_svg_is_well_formed_and_holds_the_words_as_text(chart: Chart) -> None:
    root = ET.fromstring(svg.paint(chart))
    assert root.tag == "svg" and root.get("aria-label", "").startswith(chart.title)
    for node in root.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            assert node.get(name) is None or math.isfinite(float(node.get(name, "")))
    if isinstance(chart, Matrix):
        assert [node.text for node in root.iter("text")][:4] == NAMES


def test_lines_break_where_nothing_was_measured_and_marks_stand_at_their_places() -> None:
    root = ET.fromstring(svg.paint(LINES))
    first, second = (node.get("d", "") for node in root.iter("path"))
    assert (first.count("M"), first.count("L")) == (2, 0) and (second.count("M"), second.count("L")) == (1, 1)
    mark = next(node for node in root.iter("line") if node.get("class") == "mark")
    middle = (svg.LEFT + svg.WIDTH - svg.RIGHT) / 2
    assert float(mark.get("x1", "")) == pytest.approx(middle) and mark[0].text == "session 2: resumed at step <3>"


def test_matrix_cells_are_darker_the_larger_their_share_of_the_row() -> None:
    paths = {node.split('class="')[1][:2]: node for node in svg.cell_paths(MATRIX, [2, 1, 0, 3])}
    assert set(paths) == {
        f"h{svg.level(0.75)}",
        "h8",
        f"e{svg.level(0.25)}",
        f"h{svg.level(0.9)}",
        f"e{svg.level(0.1)}",
    }
    assert "M1 2h1v1h-1z" in paths[f"e{svg.level(0.25)}"]  # 0 taken for 1: row 2, column 1 in this order
    levels = [svg.level(share) for share in (1e-4, 0.05, 0.2, 0.5, 1.0)]
    assert levels == sorted(levels) and levels[0] == 1 and levels[-1] == svg.LEVELS


def pixels_of(content: bytes, colour: int) -> np.ndarray:
    """(row, column) of each pixel of a PNG file that is exactly of a colour of series, 1 to 4."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return np.argwhere((pixels == ImageColor.getrgb(png.COLOURS[colour - 1])).all(axis=2))


def colours_in(content: bytes) -> set[int]:
    return {colour for colour in (1, 2, 3, 4) if len(pixels_of(content, colour))}


@pytest.mark.parametrize(
    ("chart", "bare", "colours"),
    [
        (LINES, replace(LINES, series=[]), {1, 2}),
        (replace(LINES, series=LINES.series[1:]), replace(LINES, series=[]), {2}),
        (MATRIX, replace(MATRIX, counts=[[0] * 4] * 4), set()),
        (BINS, replace(BINS, accuracy=[None, None]), {1, 2}),
        (BARS, replace(BARS, values=[None] * 4), {1}),
        (EMPTY, replace(EMPTY, title="other"), set()),
    ],
    ids=["lines", "one without a legend", "matrix", "reliability", "bars", "empty"],
)
def test_png_is_an_image_and_equal_charts_give_equal_bytes(chart: Chart, bare: Chart, colours: set[int]) -> None:
    """`bare`: the same without what it is to show. Axes and words alone are no chart."""
    content, without = png.paint(chart), png.paint(bare)
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG" and min(image.size) >= 200
    assert colours_in(content) == colours and colours_in(without) == set()
    assert png.paint(chart) == content != without


def test_curves_of_a_png_go_where_their_values_go() -> None:
    """Each curve alone: a legend would have its colour too."""
    values = {1: [0.1, 0.2, 0.4, 0.9], 2: [3.0, 2.0, 1.0, 0.5], 3: [5.0] * 4, 4: [-1.0, 0.0, 1.0, 2.0]}
    for colour, ys in values.items():
        series = [Series("one", [0, 1, 2, 3], ys, colour, dashed=colour == 4)]
        content = png.paint(replace(EMPTY, series=series))
        places = pixels_of(content, colour)
        rows, columns = places.T
        width = Image.open(io.BytesIO(content)).width
        assert columns.max() - columns.min() > 0.7 * width and colours_in(content) == {colour}
        assert len(set(columns)) > 0.4 * width, "the dots alone, or less"
        left, right = (rows[abs(columns - edge) < 0.02 * width].mean() for edge in (columns.min(), columns.max()))
        assert np.sign(left - right).astype(int) == np.sign(round(ys[-1] - ys[0], 6)), "rows count from the top"


def test_classes_taken_for_each_other_stand_side_by_side() -> None:
    rng = np.random.default_rng(0)
    groups = [[0, 7, 13], [2, 19], [5, 11, 16, 3]]
    counts = np.diag(np.full(20, 30))
    for group in groups:
        for one in group:
            for other in group:
                counts[one, other] += 4 + rng.integers(0, 3)
    order = clustered(counts)
    assert sorted(order) == list(range(20))
    for group in groups:
        places = sorted(order.index(one) for one in group)
        assert places == list(range(places[0], places[0] + len(group))), f"{group} is torn apart"
    alone = [one for one in order if not any(one in group for group in groups)]
    assert alone == sorted(alone)
    assert clustered(np.eye(5)) == list(range(5)) and clustered(np.zeros((1, 1))) == [0]


def test_order_of_a_chain_follows_the_chain() -> None:
    chain = [4, 1, 5, 0, 3, 2]
    counts = np.eye(6) * 50
    for near, far in zip(chain, chain[1:], strict=False):
        counts[near, far] = counts[far, near] = 10
    order = clustered(counts)
    assert order in (chain, chain[::-1])
