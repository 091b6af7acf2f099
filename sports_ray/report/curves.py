"""How a run learned: its outcome in a sentence, and its curves over all sessions, with resumes marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sports_ray.report.charts import Lines, Series
from sports_ray.report.markup import Child, Html, el, join
from sports_ray.report.read_run import RunRecord
from sports_ray.report.section import Section, figure, folded, table, tile
from sports_ray.report.words import NOTHING, count, decimal, is_number, percent, plural, points, span
from sports_ray.score.main_score import score_name, wilson
from sports_ray.score.progress import learning_progress

RATE_POINTS = 240
"""Places at which the learning rate is computed for its curve."""

Marks = Sequence[tuple[float, str]]
Learned = dict[str, Any]
"""What `learning_progress` gives."""


def learned(run: RunRecord) -> Learned:
    return learning_progress(run.history, run.events, _metric(run))


def _metric(run: RunRecord) -> Literal["acc1", "map"]:
    return "map" if any(score_name(line) == "map" for line in run.history) else "acc1"


def score_words(run: RunRecord) -> str:
    """What the run's score is called."""
    return "mAP" if _metric(run) == "map" else "top-1"


def lead(run: RunRecord) -> Html:
    """The outcome in a sentence, and the largest figures."""
    best = learned(run)["best"]
    epochs = run.record.get("config", {}).get("loop", {}).get("epochs", "?")
    done = max((int(line["epoch"]) for line in run.history if is_number(line.get("epoch"))), default=0)
    state = "trained to its end" if "last" in run.weights else f"{done} of {epochs} epochs evaluated so far"
    text: list[Child] = [el("b", run.model), f", {state}. "]
    if best is not None:
        text += ["Best on validation: ", el("b", percent(best["score"])), f" after epoch {best['epoch']}"]
        text += [f", 95 % interval {_interval(run, best)}." if _metric(run) == "acc1" else " (mean average precision)."]
    return join(el("p", *text, class_="verdict"), el("div", *_tiles(run, best), class_="tiles"))


def _tiles(run: RunRecord, best: dict[str, Any] | None) -> Iterator[Html]:
    if best is not None:
        yield tile(percent(best["score"]), "best on validation", f"epoch {best['epoch']}")
    yield tile(count(run.data.get("train")), "training images", plural(len(run.classes), "class"))
    again = f"{plural(run.steps_done_again, 'step')} done again" if len(run.sessions) > 1 else None
    yield tile(len(run.sessions), "session" if len(run.sessions) == 1 else "sessions", again)
    speeds = [speed for one in run.sessions if (speed := one.images_per_second)]
    if speeds:
        yield tile(f"{max(speeds):,.0f}", "images a second", "the fastest session")


def _interval(run: RunRecord, best: dict[str, Any]) -> str:
    line = next(line for line in run.history if line.get("step") == best["step"])
    images = line.get("val_images")
    return span(wilson(round(best["score"] * images), int(images))) if is_number(images) else NOTHING


def training(run: RunRecord, title: str = "Training") -> Section | None:
    """Curves over epochs, all sessions in one, with resumes marked."""
    found = learned(run)
    if found["best"] is None:
        return None
    marks, bands = _resumes(run), [_band(one) for one in found["plateaus"]]
    charts = [_loss(run, marks), _accuracy(run, found["best"], marks, bands), *_rate(run, marks)]
    note: list[Child] = []
    if marks:
        note.append(f"Dotted lines: {plural(len(marks), 'resume')}. ")
    if bands:
        note.append("Shaded: stretches of epochs without progress. ")
    body = join(
        el("p", *note, class_="note") if note else None,
        el("div", *map(figure, charts), class_="grid"),
        folded("Every evaluation", _history(found, score_words(run))),
    )
    return Section(title, body, tuple(charts))


def _band(plateau: dict[str, Any]) -> tuple[float, float, str]:
    first, last = plateau["from_epoch"], plateau["to_epoch"]
    return float(first), float(last), f"no progress after epoch {first}, up to {last}"


def _resumes(run: RunRecord) -> list[tuple[float, str]]:
    """Where later sessions began, in epochs."""
    each, found = run.steps_per_epoch, []
    for one in run.sessions[1:] if each else ():
        found.append((one.first_step / each, f"session {one.number}: resumed at step {one.first_step:,}"))
    return found


def _curve(run: RunRecord, key: str, name: str, colour: int, dashed: bool = False) -> Series | None:
    lines = [line for line in run.history if is_number(line.get("epoch"))]
    values = [line[key] if is_number(line.get(key)) else None for line in lines]
    if not any(value is not None for value in values):
        return None
    return Series(name, [float(line["epoch"]) for line in lines], values, colour, dashed)


def _drawn(*curves: Series | None) -> list[Series]:
    return [curve for curve in curves if curve is not None]


def _loss(run: RunRecord, marks: Marks) -> Lines:
    has_ema = any("ema_val_loss" in line for line in run.history)
    curves = _drawn(
        _curve(run, "train_loss", "training", 2),
        _curve(run, "val_loss", "validation", 1, dashed=has_ema),
        _curve(run, "ema_val_loss", "validation, EMA", 1),
    )
    return Lines(
        name=f"loss-{run.name}", title="Loss", x_label="epoch", y_label="nats", series=curves, marks=marks,
        x_span=_x_span(run),
    )  # fmt: skip


def _accuracy(run: RunRecord, best: dict[str, Any], marks: Marks, bands: Sequence[tuple[float, float, str]]) -> Lines:
    name, words = _metric(run), score_words(run)
    has_ema = any(f"ema_val_{name}" in line for line in run.history)
    other, called = ("acc5", "top-5") if name == "acc1" else ("f1_macro", "macro F1")
    curves = _drawn(
        _curve(run, f"ema_val_{other}" if has_ema else f"val_{other}", called, 4),
        _curve(run, f"val_{name}", words, 1, dashed=has_ema),
        _curve(run, f"ema_val_{name}", f"{words}, EMA", 1),
    )
    ring = (float(best["epoch"]), float(best["score"]), f"best: {percent(best['score'])}")
    return Lines(
        name=f"accuracy-{run.name}", title=f"{'Accuracy' if name == 'acc1' else words} on validation", x_label="epoch",
        y_label="right" if name == "acc1" else words, series=curves,
        marks=marks, points=[ring], bands=bands, percent=True, x_span=_x_span(run),
    )  # fmt: skip


def _x_span(run: RunRecord) -> tuple[float, float]:
    return 0.0, max([1.0, *(float(line["epoch"]) for line in run.history if is_number(line.get("epoch")))])


def _rate(run: RunRecord, marks: Marks) -> list[Lines]:
    """The learning rate as the schedule gives it at every step so far; as recorded where the settings cannot be read."""
    curve = _curve(run, "lr", "learning rate", 3)
    if run.config is not None and run.steps_per_epoch:
        from sports_ray.model.optim import default_lr, learning_rate

        config, each = run.config, run.steps_per_epoch
        peak = default_lr(config.optim, config.loop.global_batch, config.model.weights == "none")
        last = max(1, round(_x_span(run)[1] * each)) - 1
        steps = sorted({round(place * last / RATE_POINTS) for place in range(RATE_POINTS + 1)})
        loop = config.loop
        rates = [
            learning_rate(step, peak, config.optim, loop.phases, each, loop.epochs, loop.extensions) for step in steps
        ]
        curve = Series("learning rate", [(step + 1) / each for step in steps], rates, 3)
    if curve is None:
        return []
    high = max(value for value in curve.ys if value is not None)
    return [
        Lines(
            name=f"rate-{run.name}", title="Learning rate", x_label="epoch", y_label="rate", series=[curve], marks=marks,
            x_span=_x_span(run), y_span=(0.0, high * 1.05 or 1.0),
        )
    ]  # fmt: skip


def _history(found: Learned, words: str) -> Html:
    best = found["best"]["epoch"]
    rows = [
        [
            f"{line['epoch']}{' (best)' if line['epoch'] == best else ''}", count(line["step"]),
            decimal(line["train_loss"]), percent(line["score"], 2), points(line["rate"]), _tiny(line["lr"]),
            line["segment"] + 1,
        ]
        for line in found["curve"]
    ]  # fmt: skip
    return table(["epoch", "step", "train loss", words, "points an epoch", "rate", "session"], rows, "plain")


def _tiny(value: Any) -> str:
    return f"{value:.2e}" if is_number(value) else NOTHING
