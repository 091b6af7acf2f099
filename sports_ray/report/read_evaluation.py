"""What lies in an evaluation's folder (scores.json, predictions.parquet), as a record for the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.data.files import open_files
from sports_ray.errors import DataError
from sports_ray.score.main_score import MULTILABEL

SCORES, PREDICTIONS = "scores.json", "predictions.parquet"
FORMAT = 1
_CURE = "run `sports-ray eval-ensemble` again"

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    folder: Path
    scores: Facts
    """scores.json."""
    shown: Facts
    """The candidate whose classes, pairs and mistakes are listed: the ensemble where there is one, else the best single."""

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.scores["classes"]]

    @property
    def candidates(self) -> Sequence[Facts]:
        return self.scores["candidates"]

    @property
    def multilabel(self) -> bool:
        """Whether a photograph shows several classes: then there is no confusion matrix."""
        return self.scores.get("task") == MULTILABEL

    @property
    def data(self) -> Facts:
        return self.scores.get("data") or {}

    @property
    def confusion(self) -> NDArray[np.int64]:
        return np.asarray(self.shown["confusion"], dtype=np.int64)

    @property
    def runs(self) -> dict[str, str]:
        """Where each member's run lay when it was evaluated, by the member's name."""
        members = [one for one in self.scores.get("members") or () if isinstance(one, Mapping)]
        return {str(one.get("name")): str(one["run"]) for one in members if one.get("run")}

    def paths(self, ids: Iterable[int]) -> dict[int, Path]:
        """Where the photographs of these ids lie, as far as predictions.parquet knows them."""
        wanted = sorted({int(one) for one in ids})
        file = self.folder / PREDICTIONS
        if not wanted or not file.is_file():
            return {}
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(file, columns=["id", "path"], filters=[("id", "in", wanted)])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}", got=str(error).splitlines()[0], want="the predictions", cure=_CURE) from None
        root = Path(str(self.data.get("root") or ""))
        pairs = zip(rows.column("id").to_pylist(), rows.column("path").to_pylist(), strict=True)
        return {key: root / path for key, path in pairs if path}

    def read(self, path: Path) -> bytes:
        """The bytes of a photograph as `paths` names it, which may lie in a pack; OSError, DataError or StorageError."""
        root = str(self.data.get("root") or "")
        return open_files(root).read(str(path).removeprefix(f"{Path(root)}/"))


def is_evaluation(folder: Path) -> bool:
    return (folder / SCORES).is_file()


def read_evaluation(folder: Path) -> EvaluationRecord:
    """Reads an evaluation. Raises DataError for what this version of eval-ensemble has not written."""
    file = folder / SCORES
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}", got=error.strerror, want="an evaluation's scores", cure=_CURE) from None
    except ValueError as error:
        raise DataError(f"{file}", got=error, want="JSON", cure=_CURE) from None
    fault = _fault(scores)
    if fault:
        raise DataError(f"{file}", got=fault, want=f"scores of format {FORMAT}", cure=_CURE)
    candidates = scores["candidates"]
    named = {one["name"]: one for one in candidates}
    shown = named.get(scores.get("detailed")) or named.get(scores.get("best_single")) or candidates[0]
    return EvaluationRecord(folder, scores, shown)


def _fault(scores: Any) -> str:
    """What keeps scores from being shown; "" for nothing."""
    if not isinstance(scores, dict):
        return "no object"
    if scores.get("format") != FORMAT:
        return f"format {scores.get('format')!r}"
    classes, candidates = scores.get("classes"), scores.get("candidates")
    if not isinstance(classes, list) or not classes:
        return "no classes"
    if not isinstance(candidates, list) or not candidates:
        return "no candidates"
    for one in candidates:
        if not isinstance(one, dict) or "name" not in one:
            return "a candidate without a name"
        if scores.get("task") == MULTILABEL:
            if not isinstance(one.get("per_class"), dict):
                return f"no scores of classes of {one['name']}"
            continue
        try:
            shape = np.asarray(one["confusion"], dtype=np.int64).shape
        except (KeyError, TypeError, ValueError, OverflowError):
            return f"no confusion matrix of {one['name']}"
        if shape != (len(classes), len(classes)):
            return f"a confusion matrix of shape {shape} for {len(classes)} classes, of {one['name']}"
    return ""
