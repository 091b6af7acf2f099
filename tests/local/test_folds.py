"""Cross-validation: K runs on one cut of the photographs, gone on with after a kill, and each photograph scored once."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, log_loss

from sports_ray.data.demo import draw_demo
from sports_ray.data.manifest import Manifest
from tests.support.running import Running
from tests.support.shell import Shown, sports_ray

FOLDS = 3
STEPS = 4
"""Of a fold: two epochs of 14 photographs, 8 a step."""
SETTINGS = {
    "data.image_size": "32",
    "data.loader_processes": "0",
    "cluster.threads": "1",
    "loop.global_batch": "8",
    "store.every_steps": "1",
    "augment.mixup": "0.2",
}
RUN = (
    "--data",
    "set",
    "--model",
    "test_resnet",
    "--weights",
    "none",
    "--workers",
    "0",
    "--precision",
    "fp32",
    "--json",
)
SET = tuple(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))
WORDS = ("folds", *RUN, *SET, "--folds", str(FOLDS), "--epochs", "2", "--run", "x")
RESULTS = ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl", "manifest.arrow")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cross-validation of 3 x (6 + 1) photographs of train and val."""
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=3, per_class=6, size=40)
    done = sports_ray(folder, *WORDS)
    assert done.code == 0, done.err
    (folder / "shown.json").write_text(done.out)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """All that a cross-validation leaves which holds no clock."""
    found = {
        f"{fold}/{name}": (folder / f"runs/x-fold{fold}" / name).read_bytes()
        for fold in range(FOLDS)
        for name in RESULTS
    }
    return found | {name: (folder / "runs/folds/x" / name).read_bytes() for name in ("folds.csv", "oof.csv")}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def event(shown: Shown | str, name: str) -> dict[str, Any]:
    out = shown if isinstance(shown, str) else shown.out
    return next(one for one in map(json.loads, out.splitlines()) if one["event"] == name)


def test_each_photograph_is_out_of_fold_exactly_once(place: Path) -> None:
    rows, cut = rows_of(place / "runs/folds/x/oof.csv"), rows_of(place / "runs/folds/x/folds.csv")
    there = sorted(
        str(path.relative_to(place / "set")) for path in (place / "set").glob("*/*/*") if "test/" not in str(path)
    )
    assert [row["path"] for row in rows] == there == [row["path"] for row in cut]
    assert [(row["label"], row["fold"]) for row in rows] == [(row["label"], row["fold"]) for row in cut]
    assert all(row["label"] == row["path"].split("/")[1] for row in rows)
    for fold in range(FOLDS):  # the run of a fold had its photographs in validation, and all others in training
        manifest = Manifest.load(place / f"runs/x-fold{fold}/manifest.arrow")
        held = [row["path"] for row in rows if row["fold"] == str(fold)]
        assert manifest.rows("val").column("path").to_pylist() == held and len(held) > 0
        assert sorted(manifest.rows("train").column("path").to_pylist() + held) == there
        counts = np.bincount(manifest.rows("val").column("label").to_numpy(), minlength=3)
        assert counts.max() - counts.min() <= 1


def test_scores_are_scikit_learns(place: Path) -> None:
    rows = rows_of(place / "runs/folds/x/oof.csv")
    scores = json.loads((place / "runs/folds/x/scores.json").read_text())
    table = np.array([[float(row[f"p_{name}"]) for name in scores["classes"]] for row in rows])
    labels, predicted = np.array([row["label"] for row in rows]), np.array([row["predicted"] for row in rows])
    fold = np.array([int(row["fold"]) for row in rows])
    np.testing.assert_allclose(table.sum(1), 1, atol=1e-6)
    table /= table.sum(1, keepdims=True)
    assert np.array_equal(predicted, np.array(scores["classes"])[table.argmax(1)])
    pooled = scores["candidates"][0]
    assert pooled["acc1"] == accuracy_score(labels, predicted) and pooled["images"] == len(rows)
    assert abs(pooled["nll"] - log_loss(labels, table, labels=scores["classes"])) < 1e-5
    each = [accuracy_score(labels[fold == one], predicted[fold == one]) for one in range(FOLDS)]
    assert [one["acc1"] for one in scores["folds"]] == each
    assert abs(scores["spread"]["mean"] - np.mean(each)) < 1e-12
    assert abs(scores["spread"]["std"] - np.std(each, ddof=1)) < 1e-12
    assert event((place / "shown.json").read_text(), "result")["all"]["acc1"] == pooled["acc1"]


def test_a_fold_is_predicted_by_its_own_run(place: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_of(place / "runs/folds/x/oof.csv") if row["fold"] == "1"]
    (place / "set/held.csv").write_text("path\n" + "".join(f"{row['path']}\n" for row in rows))
    words = [
        "predict",
        "--images",
        "set/held.csv",
        "--run",
        "x-fold1@last",
        "--out",
        str(tmp_path / "p.csv"),
        "--top",
        "1",
    ]
    assert sports_ray(place, *words).code == 0
    (place / "set/held.csv").unlink()
    for row, alone in zip(rows, rows_of(tmp_path / "p.csv"), strict=True):
        assert alone["image_id"] == row["path"] and alone["class"] == row["predicted"]
        assert abs(float(alone["probability"]) - float(row[f"p_{row['predicted']}"])) < 1e-5


def test_a_finished_cross_validation_is_answered_from_disk(place: Path) -> None:
    before = results(place)
    done = sports_ray(place, *WORDS)
    assert done.code == 0, done.err
    assert results(place) == before
    assert [one["status"] for one in done.events if one["event"] == "fold"] == ["finished"] * FOLDS
    assert not [one for one in done.events if one["event"] in ("step", "block", "work")]
    assert event(done, "result")["all"] == event((place / "shown.json").read_text(), "result")["all"]


def test_killed_in_the_second_fold_it_goes_on_there_and_ends_as_the_unbroken_one(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set", tmp_path / "set")
    with Running(tmp_path, *WORDS, steps=2) as running:  # first asked to stop in the first fold
        assert running.wait_until(lambda: list((tmp_path / "runs/x-fold0/checkpoints").glob("step-*/COMMIT.json")))
        running.send(signal.SIGTERM)
        running.release()
        paused = running.end()
    assert paused.code == 75 and event(paused, "paused")["command"] == shlex.join(["sports-ray", *WORDS])
    left = STEPS - event(paused, "paused")["step"]
    with Running(tmp_path, *WORDS, steps=left + 2) as running:
        second = tmp_path / "runs/x-fold1/checkpoints"
        assert running.wait_until(lambda: list(second.glob("step-*/COMMIT.json")))
        running.send(signal.SIGKILL)
        running.wait_until(lambda: running.code is not None)
        assert running.code == -9
    first = (tmp_path / "runs/x-fold0/weights/last.safetensors").stat().st_mtime_ns
    done = sports_ray(tmp_path, *WORDS)
    assert done.code == 0, done.err
    assert [one["status"] for one in done.events if one["event"] == "fold"] == ["finished", "resume", "new"]
    assert (tmp_path / "runs/x-fold0/weights/last.safetensors").stat().st_mtime_ns == first
    ours, theirs = results(tmp_path), results(place)
    assert [name for name in theirs if ours[name] != theirs[name] and "manifest" not in name] == []


def test_a_fold_trained_by_itself_is_the_fold(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set", tmp_path / "set")
    alone = ("--set", f"data.folds={FOLDS}", "--set", "data.fold=2", "--run", "x-fold2", "--epochs", "2")
    done = sports_ray(tmp_path, "train", *RUN, *SET, *alone)
    assert done.code == 0, done.err
    for name in RESULTS[:3]:
        assert (tmp_path / "runs/x-fold2" / name).read_bytes() == (place / "runs/x-fold2" / name).read_bytes()


def test_the_next_command_names_the_photographs(place: Path) -> None:
    members = " ".join(f"--run x-fold{fold}@last" for fold in range(FOLDS))
    text = f"sports-ray eval-ensemble --data set {members}"
    assert event((place / "shown.json").read_text(), "next")["commands"] == [text]


@pytest.mark.long
def test_the_folds_are_an_ensemble(place: Path, tmp_path: Path) -> None:
    draw_demo(tmp_path / "more", classes=3, per_class=100, size=40)  # 75 to test: on the three of `set` all score alike
    command = event((place / "shown.json").read_text(), "next")["commands"][0]
    words = ("--data", str(tmp_path / "more"), "--out", str(tmp_path / "out"), "--workers", "0", "--json")
    done = sports_ray(place, *shlex.split(command)[1:], *words)
    assert done.code == 0, done.err
    candidates = event(done, "result")["candidates"]
    members = [f"x-fold{fold}@last" for fold in range(FOLDS)]
    assert [one["name"] for one in candidates] == [*members, "ensemble"]

    written = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    labels, columns = np.array(written["label"]), {name: np.array(written[name]) for name in members}
    mean = np.mean([columns[name] for name in members], axis=0)
    np.testing.assert_allclose(np.array(written["ensemble"]), mean, atol=1e-6)
    for one, rows in zip(candidates, [*columns.values(), mean], strict=True):
        assert one["acc1"] == accuracy_score(labels, rows.argmax(1)), one["name"]
        assert abs(one["nll"] - log_loss(labels, rows / rows.sum(1, keepdims=True))) < 1e-5, one["name"]
        assert one["images"] == len(labels) == 75
    assert len({one["acc1"] for one in candidates}) == len(candidates), "figures that could be taken for another's"


def test_photographs_that_changed_are_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set", tmp_path / "set")
    shutil.copytree(place / "runs/folds", tmp_path / "runs/folds")
    gone = next((tmp_path / "set/train").glob("*/*"))
    os.unlink(gone)
    done = sports_ray(tmp_path, *WORDS)
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err
    assert "cut into other folds before" in done.err and not (tmp_path / "runs/x-fold0").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folds", "1"), "1 is not in the range x>=2"),
        (("--folds", "99"), "at most"),
        (("--set", "data.folds=4"), "--folds; got 3; wanted data.folds = 4"),
        (("--set", "data.min_per_class=5", "--set", "data.sampler=weighted"), "wanted 0 with data.sampler = weighted"),
    ],
)
def test_what_cannot_be_folded_is_refused_in_one_line(place: Path, words: tuple[str, ...], said: str) -> None:
    done = sports_ray(place, *WORDS[:-2], "--run", "y", *words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert said in done.err and not list((place / "runs").glob("*y*"))
