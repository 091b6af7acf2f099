"""Logits of views -> probabilities of members and ensemble, a block at a time, and tables of them that lie on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import TrainingError
from sports_ray.predict.blocks import Shelf
from sports_ray.predict.views import View
from sports_ray.score.calibrate import softmax
from sports_ray.score.merge import Merge, Space, merge_rows
from sports_ray.score.multilabel import mean_rows, sigmoid, sound_rows
from sports_ray.score.rows import soundness

Table = NDArray[np.float32]
ENSEMBLE = "ensemble"
SPACES: dict[str, Space] = {"probs": "probability", "logits": "logit"}
NOT_FINITE = "the model's output is not finite"


class Part(NamedTuple):
    """A block of predictions: rows [start, start + n)."""

    start: int
    columns: dict[str, Table]
    """Probabilities float32 [n, K] of each column; zeros where there is an error. Zeros too (multi-label: NaN) where no
    logit behind them was finite: scores count such a row as an error, so it is none of the photograph's."""
    errors: list[str | None]
    """Of the photographs."""


@dataclass(frozen=True)
class Shelved:
    """One member's blocks of one set of photographs."""

    name: str
    shelf: Shelf
    views: tuple[View, ...]


class Damaged(Exception):
    """A block of the member at this place is not there, or is not what was written."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def probabilities(logits: Table) -> Table:
    """Softmax of each row, float32 [n, K]; a row with a logit that is not finite becomes zeros, which no merge counts."""
    sound = np.asarray(np.isfinite(logits).all(1))
    found = softmax(np.where(sound[:, None], logits, 0).astype(np.float64))
    return np.where(sound[:, None], found, 0).astype(np.float32)


def mean_of(views: Sequence[Table], average: str) -> Table:
    """The average of views [n, K] with equal weights, of probabilities or (logits) of their logarithms; never NaN.
    Zeros where no view is sound."""
    return merge_rows(views, [1.0] * len(views), SPACES[average])


def independent(logits: Table) -> Table:
    """Sigmoid of each logit, float32 [n, K]; a row with a logit that is not finite becomes NaN, which no merge counts."""
    return np.where(sound_rows(logits)[:, None], sigmoid(logits), np.nan).astype(np.float32)


def output_errors(table: Table, errors: Sequence[str | None], multilabel: bool) -> list[str | None]:
    """The errors of photographs, and NOT_FINITE where a row of a column [N, K] that has none is no prediction."""
    sound = sound_rows(table) if multilabel else soundness(table)[1]
    return [error if good else error or NOT_FINITE for error, good in zip(errors, sound.tolist(), strict=True)]


def parts(
    members: Sequence[Shelved], average: str, merge: Merge | None = None, multilabel: bool = False
) -> Iterator[Part]:
    """All predictions, block after block: for each member its column and, where it has several views, `MEMBER/none`; with
    `merge` the ensemble's. Raises Damaged at a block that has to be computed again."""
    columns_of = _independent_columns if multilabel else _columns
    for block in range(members[0].shelf.blocks):
        logits: dict[str, list[Table]] = {}
        start, stop = members[0].shelf.span(block)
        errors: list[str | None] = [None] * (stop - start)
        for place, member in enumerate(members):
            found = [member.shelf.read(view.name, block) for view in member.views]
            if any(one is None for one in found):
                raise Damaged(place)
            logits[member.name] = [one.logits for one in found if one is not None]
            for one in found:
                if one is not None:
                    errors = [mine or theirs for mine, theirs in zip(errors, one.errors, strict=True)]
        columns = columns_of(logits, average, merge)
        bad = np.array([error is not None for error in errors])
        if bad.any():
            columns = {name: np.where(bad[:, None], np.float32(0), rows) for name, rows in columns.items()}
        yield Part(start, columns, errors)


def _columns(logits: Mapping[str, Sequence[Table]], average: str, merge: Merge | None) -> dict[str, Table]:
    """Logits [n, K] of each member's views -> probabilities of each column, of one class a photograph."""
    columns: dict[str, Table] = {}
    for name, seen in logits.items():
        views = [probabilities(rows) for rows in seen]
        columns[name] = mean_of(views, average)
        if len(views) > 1:
            columns[f"{name}/none"] = mean_of(views[:1], average)
    if merge is not None:
        columns[ENSEMBLE] = merge.apply(columns)
    return columns


def _independent_columns(logits: Mapping[str, Sequence[Table]], average: str, merge: Merge | None) -> dict[str, Table]:
    """As `_columns`, of several classes a photograph; NaN where `_columns` has zeros."""
    of_logits = average == "logits"
    columns: dict[str, Table] = {}
    for name, seen in logits.items():
        views = list(seen) if of_logits else [independent(rows) for rows in seen]
        columns[name] = mean_rows(views, [1.0] * len(views))
        if len(views) > 1:
            columns[f"{name}/none"] = mean_rows(views[:1], [1.0])
    if merge is not None:
        columns[ENSEMBLE] = mean_rows([columns[name] for name in merge.weights], list(merge.weights.values()))
    # Logits to the end: float32 probabilities next to 1 no longer tell how sure a view or a member was.
    return {name: independent(rows) for name, rows in columns.items()} if of_logits else columns


class Rows:
    """Probabilities [N, K] in a file without a name, read in slices: a million rows need no memory, and a death leaves
    nothing behind. See `score.rows.Rows`."""

    def __init__(self, classes: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="sports-ray-")  # noqa: SIM115
        self._classes, self._count = classes, 0

    @property
    def shape(self) -> tuple[int, int]:
        return self._count, self._classes

    def append(self, rows: Table) -> None:
        """Adds rows [n, K] at the end."""
        if rows.shape[1] != self._classes:
            raise TrainingError("rows of predictions", got=rows.shape[1], want=f"{self._classes} classes")
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self._count += len(rows)

    def __getitem__(self, rows: slice, /) -> Table:
        start, stop, _ = rows.indices(self._count)
        found = np.empty((max(0, stop - start), self._classes), np.float32)
        self._file.seek(4 * start * self._classes)
        read = self._file.readinto(found.reshape(-1).view(np.uint8).data) if found.size else 0
        self._file.seek(0, os.SEEK_END)
        if read != found.nbytes:
            raise TrainingError("rows of predictions", got=f"{read} bytes", want=f"{found.nbytes}")
        return found


class Tables:
    """A `Rows` for each column, and the error of each row."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.columns: dict[str, Rows] = {}
        self.errors: list[str | None] = []

    def append(self, part: Part) -> None:
        for name, rows in part.columns.items():
            if name not in self.columns:
                self.columns[name] = Rows(self._classes)
            self.columns[name].append(rows)
        self.errors += part.errors
