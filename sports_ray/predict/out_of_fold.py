"""Out-of-fold predictions: each photograph is predicted by the one run of K that did not learn from its fold.

oof.csv              a row a photograph: path, label, fold, predicted, correct, probability (of the label), p_CLASS ...
scores.json          sealed; scores of all rows together and of each fold
"""

from __future__ import annotations

import csv
import hashlib
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import DataError, RunError, TrainingError
from sports_ray.predict.columns import Table
from sports_ray.predict.evaluate import predict
from sports_ray.predict.images import Images, manifest_split
from sports_ray.predict.member import Member, find_member, manifest_of
from sports_ray.predict.plan import SCORING, Plan
from sports_ray.predict.record import versions
from sports_ray.predict.run import OnProgress
from sports_ray.predict.work import Compute
from sports_ray.predict.write import read_scores, write_scores
from sports_ray.score.evaluate import Candidate, evaluate_predictions
from sports_ray.store.codec import canonical
from sports_ray.store.storage import Storage

OOF = "oof.csv"
NAME = "out-of-fold"
FORMAT = 1


@dataclass(frozen=True)
class FoldPlan:
    """One fold: the run that held it out, and the photographs of it."""

    fold: int
    member: Member
    images: Images


def plan_folds(runs: Sequence[str], store: str, root: str, kind: str = "last") -> list[FoldPlan]:
    """The finished runs of all folds, in their order; `root`: where the photographs lie now; `kind`: last or best weights.

    Raises RunError for a run that does not tell its photographs, DataError if photographs have changed, or if not every one is
    out of fold exactly once."""
    found = []
    everything: list[str] = []
    for fold, run in enumerate(runs):
        member = find_member(f"{run}@{kind}", store)
        manifest = manifest_of(member)
        if manifest is None:
            raise RunError(f"run {run}", got="no list of its photographs", want="manifest.arrow, as training writes it")
        found.append(FoldPlan(fold, member, manifest_split(manifest, "val", root)))
        everything.append("\n".join(sorted(_paths(manifest.rows("train")) + _paths(manifest.rows("val")))))
    held = sorted(path for one in found for path in one.images.column("path"))
    if set(everything) != {"\n".join(held)}:
        raise DataError(
            f"folds of {', '.join(runs)}",
            got="runs that held out other photographs",
            want="each photograph out of fold exactly once",
            cure="`sports-ray folds` trains such runs",
        )
    return found


def _paths(table: Any) -> list[str]:
    return list(table.column("path").to_pylist())


def digest_of(folds: Sequence[FoldPlan]) -> str:
    """Hex sha256 of all that the predictions depend on."""
    members = [[one.member.name, one.member.sha256, one.member.precision, one.member.preprocessing()] for one in folds]
    described = {
        "format": FORMAT,
        "scoring": SCORING,
        "members": members,
        "images": [one.images.fingerprint() for one in folds],
    }
    return hashlib.sha256(canonical(described).encode()).hexdigest()


def finished(folds: Sequence[FoldPlan], storage: Storage) -> dict[str, Any] | None:
    """The scores, if these very folds were predicted already."""
    return read_scores(storage, digest_of(folds))


def predict_out_of_fold(
    folds: Sequence[FoldPlan],
    storage: Storage,
    home: str,
    compute: Compute,
    on_progress: OnProgress,
    command: Sequence[str],
    *,
    batch: int = 0,
) -> dict[str, Any]:
    """Predicts what is missing, scores all of it, writes oof.csv and scores.json into `storage`, and returns the scores.

    `home`: the folder that keeps finished blocks; killed, the same call goes on from these."""
    classes = folds[0].member.classes
    tables = []
    for one in folds:
        table, errors = predict(_plan_of(one, home), compute, on_progress, batch=batch)
        bad = next((row for row, error in enumerate(errors) if error is not None), None)
        if bad is not None:
            raise DataError(one.images.column("path")[bad], got=errors[bad], want="a photograph that can be read")
        tables.append(table)
    on_progress({"kind": "scoring"})
    rows = _Rows.of(folds, tables)
    scores = evaluate_predictions(
        {NAME: rows.table}, rows.labels, classes, candidates=[Candidate(name=NAME, kind="member")]
    )
    content = rows.csv(classes)
    storage.write(OOF, content)
    record = {
        "format": FORMAT,
        "digest": digest_of(folds),
        "data": {"root": folds[0].images.root, "images": len(rows.paths), "unread": 0},
        "classes": list(classes),
        "folds": [_fold_facts(one, table) for one, table in zip(folds, tables, strict=True)],
        **scores,
        "files": {OOF: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
        "versions": versions(),
        "command": list(command),
    }
    record["spread"] = spread([fold["acc1"] for fold in record["folds"]])
    return write_scores(storage, record)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of the folds' scores."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def _plan_of(one: FoldPlan, home: str) -> Plan:
    return Plan(
        members=(one.member,),
        images=one.images,
        names=(),
        data=one.images.root,
        split="val",
        tta="none",
        average="probs",
        weights="uniform",
        groups="",
        home=home,
    )


def _fold_facts(one: FoldPlan, table: Table) -> dict[str, Any]:
    labels = np.array(one.images.column("label"), dtype=np.int64)
    scores = evaluate_predictions({NAME: table}, labels, one.member.classes)["candidates"][0]
    facts = {"fold": one.fold, "run": one.member.name, "uri": one.member.storage().uri, "sha256": one.member.sha256}
    return {**facts, **{key: scores[key] for key in ("images", "acc1", "acc1_interval", "acc5", "nll", "ece")}}


@dataclass(frozen=True)
class _Rows:
    """All photographs, sorted by path."""

    paths: list[str]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    table: Table

    @classmethod
    def of(cls, folds: Sequence[FoldPlan], tables: Sequence[Table]) -> _Rows:
        paths = [path for one in folds for path in one.images.column("path")]
        if len(set(paths)) != len(paths) or len(paths) != sum(map(len, tables)):
            raise TrainingError("out-of-fold predictions", got=f"{len(paths)} rows", want="each photograph once")
        labels = np.array([label for one in folds for label in one.images.column("label")], dtype=np.int64)
        number = np.repeat([one.fold for one in folds], [len(one.images) for one in folds])
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__))
        return cls([paths[row] for row in order], labels[order], number[order], np.concatenate(tables)[order])

    def csv(self, classes: Sequence[str]) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        head = ["path", "label", "fold", "predicted", "correct", "probability"]
        writer.writerow([*head, *(f"p_{name}" for name in classes)])
        writer.writerows(self._cells(classes))
        return out.getvalue().encode()

    def _cells(self, classes: Sequence[str]) -> Iterator[list[Any]]:
        for path, label, fold, row in zip(
            self.paths, self.labels.tolist(), self.folds.tolist(), self.table, strict=True
        ):
            best, sound = int(np.argmax(row)), bool(row.any())  # a row of zeros: the model's output was not finite
            words = [f"{value:.8g}" for value in row.tolist()]
            chosen = classes[best] if sound else ""
            yield [path, classes[label], fold, chosen, int(sound and best == label), words[label], *words]
