"""The other sections of a run: in which sessions it ran, on which photographs, with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sports_ray.recipe import to_toml
from sports_ray.report.charts import Bars
from sports_ray.report.curves import learned, score_words
from sports_ray.report.markup import Child, Html, el, join
from sports_ray.report.read_run import Facts, RunRecord, SessionFacts
from sports_ray.report.section import Section, bar, command, facts, folded, table
from sports_ray.report.words import NOTHING, count, duration, percent, plural, points

SHOWN_CLASSES = 120
"""Bars of more classes are folded away."""


def sessions(run: RunRecord, title: str = "Sessions") -> Section | None:
    """Where and how each session ran, what it added, and how it ended."""
    if not run.sessions:
        return None
    added = {one["segment"] + 1: one for one in learned(run)["segments"]}
    rows = [_session(one, added.get(one.number)) for one in run.sessions]
    head = ["session", "steps", f"best {score_words(run)}", "machine", "workers", "images/s", "time", "commits", "end"]
    return Section(title, table(head, rows, "cards plain"))


def _session(one: SessionFacts, added: Mapping[str, Any] | None) -> list[Child]:
    start, end = one.start, one.end or {}
    gain: Child = NOTHING
    if added is not None:
        pace = f" {points(added['rate'])} an epoch" if added["rate"] is not None else ""
        gain = el("span", percent(added["best"]["score"]), el("small", pace))
    if one.end is None:
        ending: Child = el("span", "killed, or still under way", class_="bad")
    else:
        ending = str(end.get("reason") or "done")
    speed = one.images_per_second
    commits = el("span", count(one.commits), el("small", f" {one.stall:.2f} s of stall"))
    return [
        one.number, f"{one.first_step:,} to {one.reached:,}", gain, _machine(start),
        f"{count(start.get('world'))} × {start.get('device', '?')}, {start.get('precision', '?')}",
        f"{speed:,.0f}" if speed else NOTHING, duration(end.get("seconds")), commits, ending,
    ]  # fmt: skip


def _machine(start: Facts) -> Html:
    gpu = start.get("gpu")
    detail = gpu.get("name") if isinstance(gpu, Mapping) else f"{start.get('threads', '?')} threads"
    return el("span", str(start.get("host", "?")), el("small", f" {detail}"))


def photographs(run: RunRecord, title: str = "Photographs") -> Section:
    """How many there are of each class and split, where they lie, and what the scan warned of."""
    known = {
        "training": count(run.data.get("train")), "validation": count(run.data.get("val")),
        "test": f"{count(run.data.get('test'))}, untouched by training", "folder": run.data.get("root"),
        "fingerprint": el("code", str(run.data.get("fingerprint", ""))),
    }  # fmt: skip
    parts: list[Child] = [facts(known)]
    charts: tuple[Bars, ...] = ()
    held = run.class_counts.get("train")
    names = run.classes
    if held and len(held) == len(names):
        order = sorted(range(len(names)), key=lambda index: (-held[index], names[index]))
        charts = (
            Bars(
                name=f"photographs-{run.name}", title="Training images of each class", x_label="images",
                names=[names[i] for i in order], values=[float(held[i]) for i in order], percent=False,
            ),
        )  # fmt: skip
        parts += [el("p", f"{held[order[-1]]:,} to {held[order[0]]:,} training images a class:"), _bars(run, order)]
    if run.notes:
        notes = el("ul", *(el("li", note) for note in run.notes))
        parts.append(folded(f"The scan warned of {plural(len(run.notes), 'thing')}", notes))
    return Section(title, join(*parts), charts)


def _bars(run: RunRecord, order: Sequence[int]) -> Html:
    held = run.class_counts["train"]
    most = max([1, *held])
    rows = []
    for index in order:
        words = ", ".join(f"{split}: {counts[index]:,}" for split, counts in run.class_counts.items())
        rows.append(bar(run.classes[index], held[index] / most, f"{held[index]:,}", f"{run.classes[index]} – {words}"))
    shown = el("ol", *rows[:SHOWN_CLASSES], class_="bars")
    if len(rows) <= SHOWN_CLASSES:
        return shown
    return join(shown, folded(f"{len(rows) - SHOWN_CLASSES} more", el("ol", *rows[SHOWN_CLASSES:], class_="bars")))


def settings(run: RunRecord, title: str = "Settings") -> Section:
    """The exact command, the versions that it ran with, and every setting."""
    start = run.sessions[-1].start if run.sessions else {}
    longer = [one for one in run.record.get("extensions") or () if isinstance(one, Mapping)]
    known = {
        "run": run.where,
        "sports-ray": run.record.get("version"),
        "python": start.get("python"),
        "platform": start.get("platform"),
        "settled": _words(run.settled) or None,
        "extended": "; ".join(map(_longer, longer)) or None,
        "weights": _weights(run),
    }
    toml = None
    if run.config is not None:
        with suppress(TypeError, ValueError):
            toml = to_toml(run.config)
    every = folded("Every setting", el("pre", toml)) if toml else None
    body = join(command(run.record.get("command")), facts(known), provenance(start.get("versions")), every)
    return Section(title, body)


def _longer(one: Mapping[str, Any]) -> str:
    how = f", {one['schedule']}" if "schedule" in one else ""
    return f"{one.get('from_epochs')} → {one.get('to_epochs')} epochs{how}"


def _words(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {_words(value) if isinstance(value, Mapping) else value}" for name, value in facts.items()
    )


def _weights(run: RunRecord) -> Html | None:
    parts = [
        el("div", f"{name}: step {sidecar.get('step')}, ", el("code", str(sidecar.get("weights_sha256", ""))[:16]))
        for name, sidecar in run.weights.items()
    ]
    return join(*parts) if parts else None


def provenance(versions: Any) -> Html | None:
    """Versions of the packages that a figure depends on."""
    if not isinstance(versions, Mapping) or not versions:
        return None
    chips = (el("span", f"{name} {version}", class_="chip") for name, version in versions.items() if version)
    return el("p", *chips, class_="chips")
