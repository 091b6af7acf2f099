"""The page of a sweep: who won, what each setting did to the score, how trials learned, and what deaths have cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sports_ray.report.charts import Lines, Series, finite, label, span_of, ticks
from sports_ray.report.markup import Child, Html, el, join
from sports_ray.report.section import Section, command, facts, table, tile
from sports_ray.report.svg import paint
from sports_ray.report.words import NOTHING, count, duration, percent, plural
from sports_ray.score.main_score import NAMES, score_of
from sports_ray.sweep.space import Parameter, space_of

if TYPE_CHECKING:
    from sports_ray.report.read_sweep import SweepRecord, TrialRecord

COLOURS = 4
"""Of the page's palette: further backbones begin again with the first."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 240, 50, 14, 12, 40
AXIS = 150
"""Width of the room between two axes of the parallel coordinates."""
NARROW = 3
"""So many settings have room in half a row."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values of one searched key, or scores, lie between 0 and 1."""

    name: str
    ticks: Sequence[tuple[float, str]]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    values: Sequence[Any] = ()

    def at(self, value: Any) -> float | None:
        """Place of a value; None for one that has none."""
        if self.values:
            return (self.values.index(value) + 0.5) / len(self.values) if value in self.values else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        low, high, value = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return (value - low) / ((high - low) or 1.0)


def axis_of(one: Parameter) -> Axis:
    """The axis of a searched key: its alternatives evenly apart, or its range."""
    if one.values:
        places = [((place + 0.5) / len(one.values), words(value)) for place, value in enumerate(one.values)]
        return Axis(one.key, places, values=one.values)
    axis = Axis(one.key, (), one.low, one.high, one.log)
    if one.log:
        powers = range(math.ceil(math.log10(one.low) - 1e-9), math.floor(math.log10(one.high) + 1e-9) + 1)
        marks = [10.0**power for power in powers]
        marks = marks if len(marks) > 1 else [one.low, one.high]
    else:
        marks = ticks(one.low, one.high, 4)
    return Axis(one.key, [(axis.at(mark) or 0.0, words(mark)) for mark in marks], one.low, one.high, one.log)


def words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def lead(sweep: SweepRecord) -> Html:
    """The outcome in a sentence, and the largest figures."""
    states = [one.row["state"] for one in sweep.trials]
    text: list[Child] = [f"{plural(len(states), 'trial')} of {plural(len(sweep.spec.backbones), 'backbone')}: "]
    text.append(", ".join(f"{states.count(state)} {said}" for state, said in _STATES.items() if state in states) + ".")
    tiles = []
    for backbone in sweep.spec.backbones:
        best = next((one.row for one in _of(sweep, backbone.name) if one.row["state"] == "done"), None)
        if best is not None:
            tiles.append(tile(percent(score_of(best)), backbone.name, best["trial"]))
    again = sum(one.steps_done_again for one in sweep.trials)
    tiles.append(tile(count(again), "steps done again" if again != 1 else "step done again", "after deaths, at least"))
    return join(el("p", *text, class_="verdict"), el("div", *tiles, class_="tiles"))


_SHOWN = {"acc1": "top-1", "map": NAMES["map"]}
_STATES = {"done": "done", "stopped": "stopped early", "failed": "failed", "open": "with work left"}


def _of(sweep: SweepRecord, backbone: str) -> list[TrialRecord]:
    return [one for one in sweep.trials if one.row["backbone"] == backbone]


def leaderboard(sweep: SweepRecord) -> Section:
    keys = list(dict.fromkeys(one.key for one in sweep.spec.space))
    rows = []
    for one in sweep.trials:
        row = one.row
        settings = [words(row["params"][key]) if key in row["params"] else NOTHING for key in keys]
        state = el("span", _STATES[row["state"]], el("small", f" {row['reason']}") if row["reason"] else None)
        epochs = f"{row['best_epoch']} of {row['epochs']}" if row["best_epoch"] is not None else NOTHING
        rows.append([row["rank"], row["trial"], percent(score_of(row)), epochs, *settings, state])
    head = ["rank", "trial", _SHOWN[sweep.spec.score_name], "best epoch", *keys, "state"]
    return Section("Leaderboard", table(head, rows, "plain"))


def settings(sweep: SweepRecord) -> Section | None:
    """Parallel coordinates over all settings, and the score against each."""
    scored = [one for one in sweep.trials if score_of(one.row) is not None]
    if not scored or not sweep.spec.space:
        return None
    axes = [axis_of(one) for one in sweep.spec.space]
    low, high = span_of([score_of(one.row) for one in scored])
    places = ticks(low, high)
    step = places[1] - places[0] if len(places) > 1 else 1.0
    shown = _SHOWN[sweep.spec.score_name]
    score = Axis(shown, [((at - low) / (high - low), label(at, step, True)) for at in places], low, high)
    figures = [_figure(f"{shown} against {axis.name}", _scatter(sweep, scored, axis, score)) for axis in axes]
    if len(axes) > 1:
        figures.insert(0, _figure("All settings at once", _parallel(sweep, scored, [*axes, score]), len(axes) > NARROW))
    return Section("Settings", join(_legend(sweep), el("div", *figures, class_="grid broad")))


def _figure(title: str, chart: Html, whole_row: bool = False) -> Html:
    return el("figure", el("figcaption", el("b", title)), chart, class_="card row" if whole_row else "card")


def _legend(sweep: SweepRecord) -> Html:
    names = (el("span", one.name, class_=f"key c{_colour(sweep, one.name)}") for one in sweep.spec.backbones)
    return el("p", el("span", *names, class_="legend"))


def _colour(sweep: SweepRecord, backbone: str) -> int:
    return [one.name for one in sweep.spec.backbones].index(backbone) % COLOURS + 1


def _told(one: TrialRecord) -> Html:
    settings_ = ", ".join(f"{key} {words(value)}" for key, value in one.row["params"].items())
    return el("title", f"{one.row['trial']}: {percent(score_of(one.row))}; {settings_}")


def _parallel(sweep: SweepRecord, scored: Sequence[TrialRecord], axes: Sequence[Axis]) -> Html:
    """A line a trial over one axis a key, the score last; the best is drawn last, over the others."""
    width, bottom = LEFT * 2 + AXIS * (len(axes) - 1), HEIGHT - BOTTOM
    content: list[Html] = []
    marks: list[Html] = []
    for number, axis in enumerate(axes):
        x = LEFT + AXIS * number
        content.append(el("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="axis"))
        for share, text in axis.ticks:
            marks.append(el("text", text, x=x + 5, y=_n(_y(share) + 4), class_="over"))
        content.append(el("text", axis.name, x=x, y=bottom + 22, text_anchor="middle", class_="label"))
    for one in reversed(scored):
        values = [*(one.row["params"].get(axis.name) for axis in axes[:-1]), score_of(one.row)]
        places = [axis.at(value) for axis, value in zip(axes, values, strict=True)]
        points = [(LEFT + AXIS * number, share) for number, share in enumerate(places) if share is not None]
        line = "M" + "L".join(f"{x} {_n(_y(share))}" for x, share in points)
        content.append(el("path", _told(one), d=line, class_=f"series c{_colour(sweep, one.row['backbone'])}"))
    return _svg("settings and scores of all trials", width, *content, *marks)


def _scatter(sweep: SweepRecord, scored: Sequence[TrialRecord], axis: Axis, score: Axis) -> Html:
    bottom = HEIGHT - BOTTOM
    content: list[Html] = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis")]
    for share, text in axis.ticks:
        content.append(el("text", text, x=_n(_x(share)), y=bottom + 16, text_anchor="middle"))
    for share, text in score.ticks:
        content.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(_y(share)), y2=_n(_y(share)), class_="rule"))
        content.append(el("text", text, x=LEFT - 6, y=_n(_y(share) + 4), text_anchor="end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    content.append(el("text", axis.name, x=middle, y=bottom + 33, text_anchor="middle", class_="label"))
    for one in scored:
        x, y = axis.at(one.row["params"].get(axis.name)), score.at(score_of(one.row))
        if x is not None and y is not None:
            dot = f"dot c{_colour(sweep, one.row['backbone'])}"
            content.append(el("circle", _told(one), cx=_n(_x(x)), cy=_n(_y(y)), r=4, class_=dot))
    return _svg(f"score against {axis.name}", WIDTH, *content)


def _svg(title: str, width: int, *content: Html) -> Html:
    return el("svg", *content, viewBox=f"0 0 {width} {HEIGHT}", class_="chart", role="img", aria_label=title)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - RIGHT - LEFT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def learning(sweep: SweepRecord) -> Section | None:
    """The score on validation over epochs, a line a trial, one chart a backbone."""
    single = sweep.spec.score_name == "acc1"
    charts = []
    for backbone in sweep.spec.backbones:
        series = []
        for one in reversed(_of(sweep, backbone.name)):
            lines = [line for line in one.history if "epoch" in line]
            scores = [score_of(line) for line in lines]
            if finite(scores):
                epochs = [float(line["epoch"]) for line in lines]
                series.append(Series(one.row["trial"], epochs, scores, _colour(sweep, backbone.name)))
        if series:
            charts.append(
                Lines(
                    name=f"learning-{backbone.label}",
                    title=f"{'Accuracy' if single else 'Average precision'} on validation: {backbone.name}",
                    x_label="epoch",
                    y_label="right" if single else _SHOWN["map"],
                    series=series,
                    percent=True,
                )  # fmt: skip
            )
    if not charts:
        return None
    # Without the legend of a figure: it would name every trial.
    figures = (el("figure", el("figcaption", el("b", one.title)), paint(one), class_="card") for one in charts)
    return Section("Learning", el("div", *figures, class_="grid"), tuple(charts))


def failures(sweep: SweepRecord) -> Section:
    """What deaths and stops have cost, a line for each trial that had more than one session."""
    rows = [
        [
            one.row["trial"], count(len(one.sessions)), count(sum(session.end is None for session in one.sessions)),
            count(one.steps_done_again), duration(one.seconds_lost) if one.seconds_lost is not None else NOTHING,
        ]
        for one in sorted(sweep.trials, key=lambda one: -one.steps_done_again)
        if len(one.sessions) > 1
    ]  # fmt: skip
    if not rows:
        return Section("Time lost to failures", el("p", "None: every trial ran in one session."))
    total = sum(one.seconds_lost or 0.0 for one in sweep.trials)
    steps = sum(one.steps_done_again for one in sweep.trials)
    text = f"At least {plural(steps, 'step')} had to be done again, {duration(total)} of training. "
    head = ["trial", "sessions", "killed", "steps done again", "time"]
    note = "What a killed process did after its last commit or evaluation is recorded nowhere."
    return Section("Time lost to failures", join(el("p", text, note), table(head, rows, "plain")))


def about(sweep: SweepRecord) -> Section:
    spec = sweep.spec
    known: dict[str, Child] = {
        "sweep": sweep.where,
        "search": f"{spec.search}, seed {spec.seed}",
        "halved": f"at epochs {', '.join(map(str, spec.halving.rungs))}: one of {spec.halving.reduction} goes on"
        if spec.halving
        else None,
        "a trial has": spec.share.words(),
        "photographs": f"{spec.data['root']}: {spec.data['train']:,} training, {spec.data['val']:,} validation",
    }
    for one in spec.backbones:
        space = "; ".join(f"{each.key} = {each.text}" for each in space_of(spec.space, one.name))
        known[one.name] = f"{one.config.loop.epochs} epochs, {one.precision}; {space}"
    return Section("About", join(command(sweep.command), facts(known)))
