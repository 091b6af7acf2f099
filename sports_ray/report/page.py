"""Puts sections into one page that asks the network for nothing, and writes it with its charts beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sports_ray import __version__
from sports_ray.errors import DataError
from sports_ray.report import classes_part, curves, evaluation_part, multilabel_part, run_part, sweep_part
from sports_ray.report.explain import Seer
from sports_ray.report.gallery import galleries
from sports_ray.report.markup import Html, document, el
from sports_ray.report.png import paint
from sports_ray.report.read_evaluation import EvaluationRecord, Facts
from sports_ray.report.read_run import RunRecord
from sports_ray.report.section import Section
from sports_ray.score.breakdown import by_group, read_groups
from sports_ray.store.storage import Storage

if TYPE_CHECKING:
    from sports_ray.report.read_sweep import SweepRecord

log = logging.getLogger(__name__)

PAGE, PLOTS = "report.html", "plots"


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    lead: Html
    sections: Sequence[Section]

    def html(self) -> str:
        links = (el("a", section.title, href=f"#{section.anchor}") for section in self.sections)
        body = (el("section", el("h2", one.title), one.body, id=one.anchor) for one in self.sections)
        head = el("header", el("h1", self.title), self.lead)
        foot = el("footer", f"sports-ray {__version__} · one file, nothing is loaded from elsewhere")
        return document(f"{self.title} – sports-ray", head, el("nav", *links), *body, foot)


def run_page(run: RunRecord) -> Page:
    """The page of a run."""
    sections = (curves.training(run), run_part.sessions(run), run_part.photographs(run), run_part.settings(run))
    return Page(run.name, curves.lead(run), _there(sections))


def sweep_page(sweep: SweepRecord) -> Page:
    """The page of a sweep."""
    parts = (sweep_part.leaderboard, sweep_part.settings, sweep_part.learning, sweep_part.failures, sweep_part.about)
    return Page(sweep.name, sweep_part.lead(sweep), _there(part(sweep) for part in parts))


def evaluation_page(
    evaluation: EvaluationRecord, runs: Sequence[RunRecord] = (), seer: Seer | None = None, groups: Path | None = None
) -> Page:
    """The page of an evaluation, with the curves of the runs that took part, as far as they are at hand.

    seer: the model whose heat is laid over the mistakes. groups: a CSV of groups of classes (score.breakdown).
    Raises DataError for a groups CSV that does not fit."""
    if evaluation.multilabel:
        if groups is not None:
            raise DataError(
                "--groups", got="photographs with several classes", want="one class each", cure="leave it out"
            )
        sections = multilabel_part.sections(evaluation, seer)
        return Page(_title(evaluation), multilabel_part.lead(evaluation), _there([*sections, *_of_runs(runs)]))
    sections = [
        evaluation_part.candidates(evaluation),
        classes_part.per_class(evaluation),
        classes_part.confusion(evaluation),
        galleries(evaluation, seer),
        evaluation_part.calibration(evaluation),
        classes_part.breakdown(evaluation, _by_group(evaluation, groups)),
        evaluation_part.about(evaluation),
    ]
    return Page(_title(evaluation), evaluation_part.lead(evaluation), _there([*sections, *_of_runs(runs)]))


def _title(evaluation: EvaluationRecord) -> str:
    return f"Evaluation on {evaluation.data.get('split') or 'photographs'}"


def _of_runs(runs: Sequence[RunRecord]) -> Iterator[Section | None]:
    for run in runs:
        yield curves.training(run, f"Training of {run.name}")
        yield run_part.sessions(run, f"Sessions of {run.name}")
        yield run_part.photographs(run, f"Photographs of {run.name}")
        yield run_part.settings(run, f"Settings of {run.name}")


def _there(sections: Iterable[Section | None]) -> list[Section]:
    return [section for section in sections if section is not None]


def _by_group(evaluation: EvaluationRecord, groups: Path | None) -> Sequence[Facts]:
    if groups is None:
        return evaluation.scores.get("by_group") or ()
    return by_group(evaluation.confusion, read_groups(groups, evaluation.classes), evaluation.classes)


def write(page: Page, storage: Storage) -> list[str]:
    """Writes plots/*.png, then report.html; paths below the storage's root, the page first. StorageError if it cannot."""
    plots = []
    for section in page.sections:
        for chart in section.charts:
            name = re.sub("[^A-Za-z0-9._-]+", "_", chart.name)
            plots.append(f"{PLOTS}/{name}.png")
            storage.write(plots[-1], paint(chart))
    storage.write(PAGE, page.html().encode("utf-8"))
    log.info("report.written page=%s/%s plots=%d", storage.uri, PAGE, len(plots))
    return [PAGE, *plots]
