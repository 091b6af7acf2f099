"""Photographs that show several classes, the whole way: train, die, resume, evaluate, predict, report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as metrics
import torch
from numpy.typing import NDArray

from sports_ray.config import TrainConfig
from sports_ray.data.demo_objects import draw_objects
from sports_ray.data.label_sets import matrix
from sports_ray.data.loader import stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request
from sports_ray.model.build import create, image_spec
from sports_ray.score.multilabel import fit_thresholds, sigmoid
from sports_ray.store.commit import read_commit
from sports_ray.store.storage import open_storage
from tests.support.pages import Page, assert_self_contained
from tests.support.runs import commit_record, results, small_config, train_in_child
from tests.support.shell import sports_ray

CLASSES = ["basketball", "cone", "dumbbell", "target"]
SETTINGS: dict[str, Any] = {
    "loop__epochs": 3,
    "loop__global_batch": 16,
    "loss__pos_weight": "balanced",
    "loss__multilabel": "focal",
    "augment__policy": "none",
    "optim__warmup_epochs": 0.0,
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things") / "set"
    draw_objects(folder, classes=4, per_class=12, size=48, seed=1)
    return folder


@pytest.fixture(scope="module")
def done(things: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = small_config(things / "labels.csv", tmp_path_factory.mktemp("done"), **SETTINGS)
    assert train_in_child(config) == 0
    return config


def folder_of(config: TrainConfig) -> Path:
    return Path(config.store.root) / config.store.run


def lines_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]


def manifest_of(config: TrainConfig) -> Manifest:
    return Manifest.from_bytes((folder_of(config) / "manifest.arrow").read_bytes())


def logits_by_hand(config: TrainConfig, step: int, part: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits and targets of the validation split, with plain torch from a commit's weights."""
    manifest = manifest_of(config)
    model = create(config.model, len(manifest.classes), config.data.image_size)
    model.load_state_dict(read_commit(open_storage(str(folder_of(config))), step).load(part))
    spec = image_spec(model, config.data.image_size)
    rows = manifest.rows("val").num_rows
    with stream(manifest, config.data, config.augment, spec, 0, [Request("val", -1, 0, rows)], 0) as batches:
        batch = next(batches)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        return model.eval()((batch.images / 255 - mean) / std).numpy(), batch.labels.numpy() > 0


def test_loss_falls_and_the_record_says_with_which_weights(done: TrainConfig) -> None:
    losses = [line["train_loss"] for line in lines_of(done)]
    assert losses[-1] < 0.9 * losses[0], losses
    record = json.loads((folder_of(done) / "run.json").read_text())
    positives = manifest_of(done).class_images("train")
    assert record["classes"] == CLASSES and record["multilabel"]["train_images"] == positives.tolist()
    assert record["multilabel"]["pos_weight"] == pytest.approx(((48 - positives) / positives).tolist(), rel=1e-6)


def test_scores_in_training_are_scikit_learns_on_the_weights_left_behind(done: TrainConfig) -> None:
    line = lines_of(done)[-1]
    for prefix, part in (("", "model"), ("ema_", "ema")):
        logits, targets = logits_by_hand(done, line["step"], part)
        probabilities = sigmoid(logits)
        assert line[f"{prefix}val_map"] == pytest.approx(
            metrics.average_precision_score(targets, probabilities), abs=1e-9
        )
        assert line[f"{prefix}val_hamming"] == pytest.approx(metrics.hamming_loss(targets, probabilities >= 0.5))
        wanted = np.mean([metrics.log_loss(targets[:, k], probabilities[:, k], labels=[False, True]) for k in range(4)])
        assert line[f"{prefix}val_loss"] == pytest.approx(wanted, rel=1e-4)
    assert line["val_images"] == 12 and "val_acc1" not in line


def test_best_weights_are_those_of_the_best_map_with_thresholds_fitted_on_their_validation_scores(
    done: TrainConfig,
) -> None:
    best = max(lines_of(done), key=lambda line: (line["ema_val_map"], -line["step"]))
    sidecar = json.loads((folder_of(done) / "weights" / "best.json").read_text())
    assert sidecar["step"] == best["step"] and sidecar["scores"]["ema_val_map"] == best["ema_val_map"]
    logits, targets = logits_by_hand(done, best["step"], "ema")
    assert sidecar["thresholds"] == pytest.approx(fit_thresholds(sigmoid(logits), targets).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("how", "look", "code"),
    [("kill_at", 2, -9), ("stop_at", 4, 75), pytest.param("kill_at", 9, -9, marks=pytest.mark.long)],
)
def test_run_cut_in_a_step_or_in_an_evaluation_equals_the_unbroken_run(
    things: Path, done: TrainConfig, tmp_path: Path, how: str, look: int, code: int
) -> None:
    # Three steps an epoch and two batches of validation: look 4 is between these.
    config = small_config(things / "labels.csv", tmp_path, **SETTINGS)
    assert train_in_child(config, **{how: look}) == code  # type: ignore[arg-type]
    if how == "stop_at":
        (commit,) = (folder_of(config) / "checkpoints").glob("step-00000003*")
        state = commit_record(commit)["state"]
        assert (state["step"], state["evaluated"], state["eval_sums"]) == (3, 0, []), "the evaluation is done again"
    assert train_in_child(config) == 0
    assert results(config) == results(done)


@pytest.fixture(scope="module")
def evaluated(done: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    runs = ("--run", str(folder_of(done)), "--run", f"{folder_of(done)}@last")
    words = ("eval-ensemble", *runs, "--tta", "hflip", "--workers", "0", "--store", "store", "--out", "out")
    shown = sports_ray(folder, *words)
    assert shown.code == 0, shown.err
    assert "mAP" in shown.out and "Hamming" in shown.out and "ensemble" in shown.out
    return folder / "out"


def test_scores_of_an_evaluation_are_scikit_learns_on_the_written_predictions(
    done: TrainConfig, evaluated: Path
) -> None:
    table = pq.read_table(evaluated / "predictions.parquet")
    scores = json.loads((evaluated / "scores.json").read_text())
    targets = np.zeros((table.num_rows, 4), dtype=bool)
    for row, places in enumerate(table.column("labels").to_pylist()):
        targets[row, places] = True
    manifest = manifest_of(done)
    assert np.array_equal(targets, matrix(manifest.label_sets, 4)[manifest.rows("test").column("label").to_numpy()] > 0)
    thresholds = json.loads(table.schema.metadata[b"thresholds"])
    sidecar = json.loads((folder_of(done) / "weights" / "best.json").read_text())
    assert thresholds["run"] == sidecar["thresholds"], "fitted on validation images, in training"
    assert thresholds["ensemble"] == pytest.approx(np.mean([thresholds["run"], thresholds["run@last"]], axis=0))
    names = [one["name"] for one in scores["candidates"]]
    assert names == ["run", "run@last", "run/none", "run@last/none", "ensemble"]
    for one in scores["candidates"]:
        rows = np.array(table.column(one["name"]).to_pylist())
        predicted = rows >= np.array(thresholds[one["name"]])
        assert one["map"] == pytest.approx(metrics.average_precision_score(targets, rows), abs=1e-12)
        assert one["hamming"] == pytest.approx(metrics.hamming_loss(targets, predicted))
        assert one["subset"] == metrics.accuracy_score(targets, predicted)
        for average in ("micro", "macro"):
            wanted = metrics.f1_score(targets, predicted, average=average, zero_division=0)
            assert one[f"f1_{average}"] == pytest.approx(wanted, abs=1e-12)
        each = metrics.precision_recall_fscore_support(targets, predicted, zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
            assert one["per_class"][name] == pytest.approx(values.tolist(), abs=1e-12)


def test_the_page_shows_classes_thresholds_and_wrong_sets_and_asks_for_nothing(evaluated: Path) -> None:
    text = (evaluated / "report.html").read_text()
    assert_self_contained(text)
    words = Page.of(text).text
    for said in ("mean average precision", "Hamming loss", "whole sets right", "Mistakes", "missed:", *CLASSES):
        assert said in words, said
    assert len(Page.of(text).all("img")) > 3 and (evaluated / "plots" / "classes.png").stat().st_size > 1000
    assert "Training of run" in words and "mAP on validation" in words
    shown = json.loads((evaluated / "scores.json").read_text())["candidates"][-1]["per_class"]
    for name, images, ap in zip(CLASSES, shown["support"], shown["ap"], strict=True):
        assert f"{name} {images} " in words and f"{100 * ap:.1f} %" in words


def test_predictions_name_the_chosen_labels_and_every_probability(
    done: TrainConfig, things: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for path in sorted((things / "test").iterdir())[:5]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    run = ("--run", str(folder_of(done)), "--store", "store")
    shown = sports_ray(tmp_path, "predict", "--images", "photos", *run, "--header", "id,labels")
    assert shown.code == 0, shown.err
    with (tmp_path / "predictions.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "labels", *CLASSES] and len(rows) == 6
    thresholds = json.loads((folder_of(done) / "weights" / "best.json").read_text())["thresholds"]
    for name, labels, *cells in rows:
        if name == "broken.jpg":
            assert labels == "" and cells == [""] * 4
            continue
        above = [one for one, cell, cut in zip(CLASSES, cells, thresholds, strict=True) if float(cell) >= cut]
        assert labels == "|".join(above)
    refused = sports_ray(tmp_path, "predict", "--images", "photos", *run, "--top", "2")
    assert (
        refused.code == 2 and "--top; got 2; wanted nothing: the probability of every class is written" in refused.err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weights", "fit"), "--weights; got several classes a photograph; wanted one class each"),
        (("--data", "SET"), "one class a photograph; wanted a list of several, as in training"),
        (("--split", "holiday"), "--split; got holiday; wanted train, val, test"),
    ],
)
def test_what_makes_no_sense_with_several_classes_is_refused_in_a_line(
    done: TrainConfig, things: Path, tmp_path: Path, words: tuple[str, str], said: str
) -> None:
    given = [str(things / "train") if word == "SET" else word for word in words]
    shown = sports_ray(tmp_path, "eval-ensemble", "--run", str(folder_of(done)), "--workers", "0", *given)
    assert shown.code == 2 and said in shown.err and "Traceback" not in shown.err


def test_drawn_lists_are_the_same_for_the_same_seed_and_sound(things: Path, tmp_path: Path) -> None:
    words = ("--classes", "4", "--per-class", "12", "--size", "48", "--seed", "1")
    shown = sports_ray(tmp_path, "data", "demo", "again", "--multilabel", *words)
    assert shown.code == 0 and "sports-ray data scan again/labels.csv" in shown.out, shown.err
    for path in (*things.rglob("*.jpg"), things / "labels.csv"):
        assert (tmp_path / "again" / path.relative_to(things)).read_bytes() == path.read_bytes()
    scanned = sports_ray(tmp_path, "data", "scan", "again/labels.csv")
    assert scanned.code == 0 and "4 classes" in scanned.out and "sound" in scanned.out, scanned.out
    assert sports_ray(tmp_path, "data", "demo", "b", "--multilabel", "--dirty").code == 2


@pytest.mark.long
@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_a_small_model_learns_the_drawn_set(tmp_path: Path, loss: str) -> None:
    draw_objects(tmp_path / "set", classes=6, per_class=60, size=96, seed=2)
    settings = {"loop__epochs": 30, "loop__global_batch": 32, "data__image_size": 64, "augment__crop_scale": (0.7, 1.0)}
    settings |= {"augment__mixup": 0.0, "augment__cutmix": 0.0, "augment__erasing": 0.0, "augment__policy": "none"}
    settings |= {"loop__micro_batch": 0, "store__every_steps": 0, "model__drop_path": 0.0, "loss__multilabel": loss}
    config = small_config(tmp_path / "set" / "labels.csv", tmp_path / "runs", **settings)
    assert train_in_child(config) == 0
    assert max(line["ema_val_map"] for line in lines_of(config)) > 0.85
    shown = sports_ray(tmp_path, "eval-ensemble", "--run", str(folder_of(config)), "--workers", "0", "--out", "out")
    assert shown.code == 0, shown.err
    (one,) = json.loads((tmp_path / "out" / "scores.json").read_text())["candidates"]
    assert one["map"] > 0.8 and one["f1_macro"] > 0.7
