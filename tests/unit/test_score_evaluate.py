"""An evaluation's scores are what scikit-learn makes of the same columns, in the shape that the report reads."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from sports_ray.errors import DataError
from sports_ray.score.compare import accuracy_interval, mcnemar
from sports_ray.score.evaluate import Candidate, evaluate_predictions
from sports_ray.score.main_score import wilson
from sports_ray.score.merge import uniform
from sports_ray.score.rows import Floats
from tests.unit.test_score_multiclass import draw

CLASSES = [f"sport {i:02}" for i in range(12)]
FROM_CONTRACT = {
    "best_single", "candidates", "perfect_classes", "zero_classes", "confused_pairs", "by_frequency", "by_group", "worst",
}  # fmt: skip
OF_CANDIDATE = {
    "name", "kind", "tta", "weights", "temperature", "images", "acc1", "acc1_interval", "acc5", "nll", "ece", "per_class",
    "confusion", "reliability", "against_best",
}  # fmt: skip


def predictions(images: int = 600) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Columns of two members, one of them without views too, and of their ensemble."""
    good, labels = draw(images, 12, seed=1, hit=3.0)
    random = np.random.default_rng(2)
    other = good * np.exp(random.normal(size=good.shape) * 1.5).astype(np.float32)
    plain = good * np.exp(random.normal(size=good.shape) * 0.5).astype(np.float32)
    columns = {
        name: rows / rows.sum(1, keepdims=True) for name, rows in {"a": good, "a/none": plain, "b": other}.items()
    }
    columns["ensemble"] = uniform(["a", "b"]).apply(columns)
    return columns, labels


def entry(scores: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in scores["candidates"] if one["name"] == name)


def test_every_candidate_is_scored_as_scikit_learn_does() -> None:
    columns, labels = predictions()
    scores = evaluate_predictions(columns, labels, CLASSES)
    assert [(one["name"], one["kind"], one["tta"]) for one in scores["candidates"]] == [
        ("a", "member", "none"), ("a/none", "view", "none"), ("b", "member", "none"), ("ensemble", "ensemble", "none"),
    ]  # fmt: skip
    for one in scores["candidates"]:
        predicted = columns[one["name"]].argmax(1)
        assert one["acc1"] == accuracy_score(labels, predicted)
        assert one["acc1_interval"] == list(wilson(round(one["acc1"] * 600), 600))
        assert one["acc5"] == top_k_accuracy_score(labels, columns[one["name"]], k=5)
        assert one["confusion"] == confusion_matrix(labels, predicted).tolist()
        wanted = precision_recall_fscore_support(labels, predicted, zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
            assert one["per_class"][name] == pytest.approx(values.tolist(), abs=1e-12)


def test_scores_have_the_shape_of_the_contract_and_are_json() -> None:
    columns, labels = predictions()
    groups = {"place": {name: "indoor" if i % 2 else "outdoor" for i, name in enumerate(CLASSES)}}
    scores = evaluate_predictions(columns, labels, CLASSES, train_images=np.arange(12) + 5, groups=groups)
    assert scores.keys() >= FROM_CONTRACT
    assert all(one.keys() >= OF_CANDIDATE for one in scores["candidates"])
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert [part["group"] for part in scores["by_group"]] == ["indoor", "outdoor"]
    assert sum(part["images"] for part in scores["by_frequency"]) == 600
    assert scores["worst"][0].keys() == {"id", "true", "predicted", "confidence"}
    assert scores["confused_pairs"][0].keys() == {"true", "predicted", "count", "ids"}


def test_others_are_compared_with_the_best_single_on_the_same_images() -> None:
    columns, labels = predictions()
    scores = evaluate_predictions(columns, labels, CLASSES)
    assert scores["best_single"] == "a" and entry(scores, "a")["against_best"] is None
    best, other = columns["a"].argmax(1) == labels, columns["b"].argmax(1) == labels
    gained, lost = int((other & ~best).sum()), int((best & ~other).sum())
    assert entry(scores, "b")["against_best"] == {
        "difference": (gained - lost) / 600,
        "interval": list(accuracy_interval(gained, lost, 600)),
        "mcnemar_p": mcnemar(gained, lost),
    }


def test_best_single_chosen_elsewhere_is_kept() -> None:
    columns, labels = predictions()
    scores = evaluate_predictions(columns, labels, CLASSES, best_single="b")
    assert scores["best_single"] == "b" and entry(scores, "b")["against_best"] is None
    assert entry(scores, "a")["against_best"]["difference"] > 0


def test_details_are_those_of_the_ensemble_unless_asked() -> None:
    columns, labels = predictions()
    ids = np.arange(600) + 10_000
    for detailed, wanted in [(None, "ensemble"), ("b", "b")]:
        scores = evaluate_predictions(columns, labels, CLASSES, ids=ids, detailed=detailed)
        mistakes = set((ids[columns[wanted].argmax(1) != labels]).tolist())
        assert scores["detailed"] == wanted
        assert {one["id"] for one in scores["worst"]} <= mistakes
        assert len(scores["worst"]) == min(50, len(mistakes))


def test_unknown_labels_are_left_out_and_broken_rows_are_errors() -> None:
    columns, labels = predictions()
    known = labels.copy()
    known[::4] = -1
    scores = evaluate_predictions(columns, known, CLASSES)
    part = {name: rows[known >= 0] for name, rows in columns.items()}
    ids = np.flatnonzero(known >= 0)
    assert scores == evaluate_predictions(part, labels[known >= 0], CLASSES, ids=ids)
    columns["b"][labels == 3] = np.nan
    broken = evaluate_predictions(columns, labels, CLASSES, detailed="b")
    count = int((labels == 3).sum())
    assert entry(broken, "b")["unsound"] == count and entry(broken, "a")["unsound"] == 0
    assert entry(broken, "b")["per_class"]["recall"][3] == 0.0 and "sport 03" in broken["zero_classes"]
    assert entry(broken, "b")["images"] == 600 and json.dumps(broken, allow_nan=False)


def test_facts_of_a_candidate_are_copied_into_its_scores() -> None:
    columns, labels = predictions()
    named = [
        Candidate(name="a", kind="member", tta="10-crop"),
        Candidate(name="ensemble", kind="ensemble", tta="10-crop", weights={"a": 0.5, "b": 0.5}, temperature=1.1),
    ]
    first, second = evaluate_predictions(columns, labels, CLASSES, candidates=named)["candidates"]
    assert (first["tta"], first["weights"], first["temperature"]) == ("10-crop", None, None)
    assert (second["weights"], second["temperature"]) == ({"a": 0.5, "b": 0.5}, 1.1)


class Reader:
    """A file's rows, of which no more than a chunk is ever in memory."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def __getitem__(self, rows: slice, /) -> Floats:
        self.most = max(self.most, rows.stop - rows.start)
        return self.rows[rows]


def test_tables_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sports_ray.score.rows.CHUNK_VALUES", 1200)
    columns, labels = predictions()
    readers = {name: Reader(rows) for name, rows in columns.items()}
    assert evaluate_predictions(readers, labels, CLASSES) == evaluate_predictions(columns, labels, CLASSES)
    assert {reader.most for reader in readers.values()} == {100}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"labels": np.full(600, -1)}, "scores; got 12 classes, 0 labelled images"),
        ({"labels": np.full(600, 12)}, "labels; got 12 to 12; wanted -1 to 11"),
        ({"labels": np.zeros(599, dtype=np.int64)}, r"predictions of 'a'; got (600, 12); wanted (599, 12)"),
        ({"classes": CLASSES[:-1]}, "labels; got 0 to 11; wanted -1 to 10"),
        ({"best_single": "c"}, "candidates; got c; wanted one of ['a', 'a/none', 'b', 'ensemble']"),
        ({"candidates": [Candidate(name="c", kind="member")]}, "predictions of 'c'; got none"),
        ({"candidates": []}, "candidates; got none"),
    ],
)
def test_what_cannot_be_scored_is_refused(spoil: dict[str, Any], message: str) -> None:
    columns, labels = predictions()
    with pytest.raises(DataError) as caught:
        evaluate_predictions(**{"columns": columns, "labels": labels, "classes": CLASSES, **spoil})
    assert message in str(caught.value)


CHILD = """
import json, resource, sys, time
import numpy as np
from sports_ray.score.evaluate import evaluate_predictions
folder, base = sys.argv[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = np.load(f"{folder}/labels.npy")
class Read:
    shape = (len(labels), 102)
    def __init__(self, path):
        self.path = path
    def __getitem__(self, rows):
        count = (rows.stop - rows.start) * 102
        return np.fromfile(self.path, np.float32, count, offset=rows.start * 102 * 4).reshape(-1, 102)
if sys.argv[2] == "mapped":
    columns = {name: np.memmap(f"{folder}/{name}", np.float32, "r", shape=Read.shape) for name in "abc"}
else:
    columns = {f"{name}{i}": Read(f"{folder}/{name}") for name in "abc" for i in range(3)}
begin = time.perf_counter()
scores = evaluate_predictions(columns, labels, [str(i) for i in range(102)], train_images=np.arange(102))
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [(one["name"], one["images"], one["acc1"]) for one in scores["candidates"]]
print(json.dumps({"seconds": seconds, "peak": peak * 1024, "base": base * 1024, "found": found}))
"""


def written(folder: Path, images: int) -> dict[str, int]:
    """Writes the labels and three columns of 102 classes; how many images are right in each."""
    random, right = np.random.default_rng(0), {}
    labels = random.integers(102, size=images)
    np.save(folder / "labels.npy", labels)
    for name, hit in (("a", 0.4), ("b", 0.3), ("c", 0.5)):
        count = 0
        with (folder / name).open("wb") as file:
            for part in np.array_split(np.arange(images), 20):
                rows = random.random((len(part), 102), dtype=np.float32)
                rows[np.arange(len(part)), labels[part]] += np.float32(hit)
                count += int((rows.argmax(1) == labels[part]).sum())
                file.write((rows / rows.sum(1, keepdims=True)).data)
        right[name] = count
    return right


@pytest.mark.long
def test_a_million_images_are_scored_within_a_minute_and_two_gibibytes() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest would keep its 1.2 GB
        right = written(Path(folder), 1_000_000)
        for how in ("mapped", "read"):  # three columns mapped into memory; nine columns read from their files
            words = [sys.executable, "-c", CHILD, folder, how]
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=200)
            found = json.loads(done.stdout)
            figures = f"{found['seconds']:.1f} s, {found['peak'] / 2**30:.2f} GiB, of which {found['base'] / 2**30:.2f} before"
            sys.stderr.write(f"\n{how}: {len(found['found'])} columns of 1,000,000 x 102 in {figures}\n")
            assert found["seconds"] < 60 and found["peak"] < 2 << 30
            for name, count, acc1 in found["found"]:
                assert count == 1_000_000
                assert acc1 == pytest.approx(right[name[0]] / count, abs=1e-5), "but for ties made by rounding"
