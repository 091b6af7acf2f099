"""`sports-ray eval-ensemble --workers 0` from a user's side: what is written, proven, kept, refused, and survives SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as metrics
import torch

from sports_ray.data.demo import draw_demo
from sports_ray.data.manifest import Manifest
from sports_ray.predict.member import find_member, load_model
from tests.support.evaluating import moments_of, results, run_command
from tests.support.members import CLASSES, jpeg, listed, make_member, photographs
from tests.support.running import Running
from tests.support.runs import small_config, train_in_child
from tests.support.shell import Shown, sports_ray

COUNT = 2 * 256 + 90
BAD = "test/golf/zz bad.jpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backbones of different preprocessing, and photographs with a truncated one among them."""
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", COUNT)
    (folder / "set" / BAD).write_bytes(jpeg(1)[:300])
    make_member(folder / "runs", "a", seed=1, val_acc1=0.7)
    make_member(folder / "runs", "b", model="test_efficientnet", size=40, seed=2, val_acc1=0.6)
    return folder


def words_of(place: Path, *words: str, store: str = "store") -> tuple[str, ...]:
    runs = ("--run", str(place / "runs" / "a"), "--run", str(place / "runs" / "b"))
    fixed = ("--data", str(place / "set"), "--workers", "0", "--store", store)
    return ("eval-ensemble", *fixed, *runs, *words)


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shown]:
    folder = tmp_path_factory.mktemp("done")
    shown = sports_ray(folder, *words_of(place, "--tta", "hflip", "--json"))
    assert shown.code == 0, shown.err
    return folder, shown


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[bytes, bytes]]:
    """scores.json, and columns and metadata of predictions.parquet, of the only evaluation below folder/store."""
    (out,) = (folder / "store" / "evaluations").iterdir()
    table = pq.read_table(out / "predictions.parquet")
    return json.loads((out / "scores.json").read_text()), table.to_pydict(), table.schema.metadata


def test_every_photograph_is_written_once_and_the_bad_one_with_its_error(place: Path, done: tuple[Path, Shown]) -> None:
    scores, table, meta = read(done[0])
    paths = sorted(str(path.relative_to(place / "set")) for path in (place / "set").rglob("*.jpg"))
    assert table["id"] == list(range(COUNT + 1)) and table["path"] == paths
    assert [CLASSES[label] for label in table["label"]] == [path.split("/")[1] for path in paths]
    bad = paths.index(BAD)
    assert [row for row, error in enumerate(table["error"]) if error is not None] == [bad]
    assert list(table)[4:] == ["a", "b", "a/none", "b/none", "ensemble"]
    assert all((rows is None) == (row == bad) for name in list(table)[4:] for row, rows in enumerate(table[name]))
    assert json.loads(meta[b"classes"]) == list(CLASSES) and json.loads(meta[b"members"]) == ["a", "b"]
    assert scores["data"]["images"] == COUNT + 1 and [one["path"] for one in scores["data"]["bad"]] == [BAD]
    assert "image" in scores["data"]["bad"][0]["error"]
    events = {event["event"]: event for event in done[1].events}
    assert events["bad"]["count"] == 1 and events["photos"]["images"] == COUNT + 1


def probabilities_by_hand(place: Path, run: str, paths: list[str], flip: bool) -> np.ndarray:
    """With Pillow and plain torch: resize, crop, normalise, softmax."""
    from sports_ray.data.augment import evaluate
    from sports_ray.data.decode import decode

    member = find_member(run, str(place / "runs"))
    spec, model = member.spec, load_model(member, torch.device("cpu"))
    files = [(place / "set" / path).read_bytes() for path in paths]
    images = torch.stack([evaluate(decode(file, max_pixels=10**8), spec, spec.eval_size) for file in files]) / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    batch = (images - mean) / std
    views = [batch, batch.flip(3)] if flip else [batch]
    return sum(model(view).double().softmax(1) for view in views).numpy() / len(views)  # type: ignore[union-attr]


def test_columns_are_what_one_computes_by_hand(place: Path, done: tuple[Path, Shown]) -> None:
    _, table, _ = read(done[0])
    rows = [row for row in range(0, COUNT, 23) if table["error"][row] is None]
    paths = [table["path"][row] for row in rows]
    found = {name: np.array([table[name][row] for row in rows]) for name in list(table)[4:]}
    hand = {}
    for run in ("a", "b"):
        hand[run] = probabilities_by_hand(place, run, paths, flip=True)
        hand[f"{run}/none"] = probabilities_by_hand(place, run, paths, flip=False)
    hand["ensemble"] = (hand["a"] + hand["b"]) / 2
    for name, values in hand.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=2e-4, err_msg=name)
    assert np.abs(found["a"] - found["a/none"]).max() > 1e-3 and np.abs(found["a"] - found["b"]).max() > 1e-2


def test_scores_are_scikit_learns_on_the_written_predictions(done: tuple[Path, Shown]) -> None:
    scores, table, _ = read(done[0])
    good = [row for row, error in enumerate(table["error"]) if error is None]
    labels = np.array(table["label"])[good]
    assert [entry["name"] for entry in scores["candidates"]] == list(table)[4:]
    for entry in scores["candidates"]:
        rows = np.array([table[entry["name"]][row] for row in good], dtype=np.float64)
        assert entry["acc1"] == pytest.approx(metrics.accuracy_score(labels, rows.argmax(1)), abs=1e-12)
        assert entry["nll"] == pytest.approx(metrics.log_loss(labels, rows / rows.sum(1, keepdims=True)), rel=1e-5)
        assert entry["confusion"] == metrics.confusion_matrix(labels, rows.argmax(1)).tolist()
        assert entry["images"] == COUNT
    assert scores["best_single"] == "a/none", "chosen by the accuracy on validation images, not on these"
    assert scores["merge"]["used"] == "uniform" and scores["merge"]["weights"] == {"a": 0.5, "b": 0.5}


FRESH = """
import sys
import sports_ray.cli
try:
    sports_ray.cli.main()
finally:
    sys.stderr.write(" ".join({name.partition('.')[0] for name in sys.modules}))
"""


def test_a_finished_evaluation_answers_from_disk_without_torch_and_ray(place: Path, done: tuple[Path, Shown]) -> None:
    folder, first = done
    before = {path: os.stat(path).st_mtime_ns for path in (folder / "store").rglob("*") if path.is_file()}
    command = [sys.executable, "-c", FRESH, *words_of(place, "--tta", "hflip", "--json")]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert not {"torch", "ray", "timm"} & set(again.stderr.split())
    events = {event["event"]: event for event in map(json.loads, again.stdout.splitlines())}
    assert events["finished"]["from_disk"] is True
    assert events["result"] == {event["event"]: event for event in first.events}["result"]
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_a_table_with_intervals_is_shown_to_people(place: Path, done: tuple[Path, Shown]) -> None:
    shown = sports_ray(done[0], *words_of(place, "--tta", "hflip"))
    assert shown.code == 0 and not shown.err
    lines = shown.out.splitlines()
    (head,) = (number for number, line in enumerate(lines) if line.startswith("result"))
    assert lines[head].split()[1:4] == ["model", "views", "images"]
    assert [line.split()[0] for line in lines[head + 1 : head + 6]] == ["a", "b", "a/none", "b/none", "ensemble"]
    assert "! 1 image without a prediction" in shown.out and "\x1b" not in shown.out


def test_the_page_comes_with_the_scores_and_again_where_it_is_missing(
    place: Path, done: tuple[Path, Shown], tmp_path: Path
) -> None:
    """Cold by default; with --heat Grad-CAM lies over the mistakes. A page that cannot be written costs a warning."""
    folder, words = tmp_path / "copy", words_of(place, "--tta", "hflip", "--json")
    events = {event["event"]: event for event in done[1].events}
    first = Path(events["report"]["path"])
    assert first.name == "report.html" and first.parent == Path(events["written"]["path"])
    shutil.copytree(done[0], folder)
    page = folder / first.relative_to(done[0])
    page.unlink()
    again = sports_ray(folder, *words)
    assert again.code == 0 and page.read_bytes() == first.read_bytes().replace(bytes(done[0]), bytes(folder))
    assert "heat of " not in page.read_text(encoding="utf-8")
    assert sports_ray(folder, *words, "--heat").code == 0
    assert "heat of " in page.read_text(encoding="utf-8")
    page.unlink()
    shutil.rmtree(page.parent / "plots")
    (page.parent / "plots").write_text("in the way")
    shown = sports_ray(folder, *words)
    assert shown.code == 0 and "plots" in next(event for event in shown.events if event["event"] == "report")["error"]


def test_another_average_or_a_member_alone_computes_nothing_anew(
    place: Path, done: tuple[Path, Shown], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    before = {path: os.stat(path).st_mtime_ns for path in (folder / "store" / "predictions").rglob("*.parquet")}
    shown = sports_ray(folder, *words_of(place, "--tta", "hflip", "--average", "logits", "--json"))
    assert shown.code == 0 and {event["to_do"] for event in shown.events if event["event"] == "work"} == {0}
    single = ("--data", str(place / "set"), "--workers", "0", "--store", "store", "--run", str(place / "runs" / "b"))
    alone = sports_ray(folder, "eval-ensemble", *single, "--json")
    assert alone.code == 0 and not [event for event in alone.events if event["event"] == "block"]
    result = next(event for event in alone.events if event["event"] == "result")
    assert [entry["name"] for entry in result["candidates"]] == ["b"]
    assert {path: os.stat(path).st_mtime_ns for path in (folder / "store" / "predictions").rglob("*.parquet")} == before


def test_damaged_and_deleted_blocks_are_computed_again_and_nothing_else(place: Path, tmp_path: Path) -> None:
    words = words_of(place, "--tta", "hflip", "--json")
    assert run_command(tmp_path, words) == 0
    expected = results(tmp_path / "store")
    blocks = sorted((tmp_path / "store" / "predictions").rglob("*.parquet"))
    content = bytearray(blocks[0].read_bytes())
    content[len(content) // 2] ^= 4
    blocks[0].write_bytes(content)
    blocks[-1].unlink()
    (scores,) = (tmp_path / "store" / "evaluations").rglob("scores.json")
    scores.write_bytes(scores.read_bytes().replace(b"acc1", b"acc2", 1))
    shown = sports_ray(tmp_path, *words)
    assert shown.code == 0, shown.err
    assert len([event for event in shown.events if event["event"] == "block"]) == 2
    assert results(tmp_path / "store") == expected


@pytest.mark.parametrize("seed", [date.today().toordinal(), pytest.param(-1, marks=pytest.mark.long)])
def test_killed_at_random_moments_the_same_command_ends_in_the_same_bytes(
    place: Path, tmp_path: Path, seed: int
) -> None:
    """Half of the deaths fall on a call that changes the disk, the others on a batch or on any time."""
    words, dice = words_of(place, "--tta", "hflip", "--json"), random.Random(seed)
    moments = moments_of(tmp_path / "whole", words)
    expected = results(tmp_path / "whole" / "store")
    on_disk = [moment for moment in moments if moment.kind != "evaluation"]
    batches = [moment for moment in moments if moment.kind == "evaluation"]
    assert len(on_disk) > 40 and len(batches) > 30
    for attempt in range(1 if seed > 0 else 25):
        folder, killed = tmp_path / str(attempt), 0
        for moment in (dice.choice(on_disk), dice.choice(batches)):
            killed += run_command(folder, words, moment) == -signal.SIGKILL
        assert killed, "nobody died"
        assert run_command(folder, words) == 0, (folder / ".err").read_text()
        assert results(folder / "store") == expected, (attempt, seed)


def test_sigkill_at_any_time_keeps_every_block_that_was_finished(place: Path, tmp_path: Path) -> None:
    words = words_of(place, "--tta", "10crop", "--json")
    with Running(tmp_path, *words) as running:
        assert running.wait_until(lambda: len(running.events("block")) >= 2)
        running.send(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    assert 20 <= len(kept) <= 60
    again = sports_ray(tmp_path, *words)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((tmp_path / "store" / "predictions").rglob("*.parquet"))) == 60


def test_sigterm_says_how_to_go_on(place: Path, tmp_path: Path) -> None:
    with Running(tmp_path, *words_of(place, "--tta", "10crop", "--json")) as running:
        assert running.wait_until(lambda: running.events("block"))
        running.send(signal.SIGTERM)
        shown = running.end()
    assert shown.code == 75 and not shown.err
    paused = shown.events[-1]
    assert paused["event"] == "paused" and paused["command"].startswith("sports-ray eval-ensemble --data")


def test_mistakes_end_in_one_line_with_a_cure(place: Path, tmp_path: Path) -> None:
    make_member(tmp_path / "runs", "other", classes=(*CLASSES[:3], "tennis"))
    other = ("--run", str(tmp_path / "runs" / "other"))
    for words, text in (
        (words_of(place, *other), "members have different classes; got only in a: water polo; only in other: tennis"),
        (words_of(place, "--tta", "flip"), "--tta; got 'flip'; wanted none, hflip, 5crop, 10crop"),
        (words_of(place, "--split", "val"), "no split val in"),
        (words_of(place, "--workers", "many"), "--workers; got many; wanted 0, N, MIN:MAX or auto"),
        (("eval-ensemble", "--run", "nothing", "--data", str(place / "set")), "run; got nothing; wanted a run in runs"),
        (("eval-ensemble", "--data", str(place / "set")), "Missing option '--run'"),
    ):
        shown = sports_ray(tmp_path, *words)
        assert shown.code == 2 and shown.err.count("\n") == 1 and text in shown.err, shown.err
    assert sports_ray(tmp_path, *words_of(place, "--strict", store="strict")).code == 2


def test_page_of_something_else_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("mine")
    shown = sports_ray(tmp_path, *words_of(place, "--out", str(tmp_path / "mine")))
    assert shown.code == 2 and "--out; got " in shown.err and "report.html of something else" in shown.err, shown.err
    assert (tmp_path / "mine" / "report.html").read_text() == "mine"


def test_the_plain_view_scores_the_validation_split_as_training_did(tmp_path: Path) -> None:
    """A trained run, moved: its validation images carved from train are found again, and give the same accuracy and loss."""
    draw_demo(tmp_path / "photos", classes=3, per_class=16, size=40, seed=2)
    for folder in ("val",):
        for path in (tmp_path / "photos" / folder).rglob("*.jpg"):
            path.unlink()
        for path in sorted((tmp_path / "photos" / folder).rglob("*"), reverse=True):
            path.rmdir()
        (tmp_path / "photos" / folder).rmdir()
    config = small_config(tmp_path / "photos", tmp_path / "store", "trained")
    assert train_in_child(config) == 0
    (tmp_path / "store" / "trained").rename(tmp_path / "moved")
    sidecar = json.loads((tmp_path / "moved" / "weights" / "best.json").read_text())
    words = ("--run", "moved", "--split", "val", "--workers", "0", "--batch", "8", "--out", "out", "--json")
    shown = sports_ray(tmp_path, "eval-ensemble", *words)
    assert shown.code == 0, shown.err
    (entry,) = json.loads((tmp_path / "out" / "scores.json").read_text())["candidates"]
    assert entry["images"] == sidecar["scores"]["val_images"]
    assert entry["acc1"] == pytest.approx(sidecar["scores"]["ema_val_acc1"], abs=1e-12)
    assert entry["nll"] == pytest.approx(sidecar["scores"]["ema_val_loss"], abs=2e-6)


def test_the_train_split_is_scored_plainly_and_apart_from_what_validation_took_of_it(tmp_path: Path) -> None:
    """Accuracy on the images trained on, as plain torch has it without augmentation; those carved off are not among them."""
    draw_demo(tmp_path / "set", classes=3, per_class=16, size=40, seed=2)
    shutil.rmtree(tmp_path / "set" / "val")
    config = small_config(tmp_path / "set", tmp_path / "runs", "trained", loop__epochs=4)
    assert train_in_child(config) == 0
    words = ("--run", "trained", "--split", "train", "--workers", "0", "--out", "out", "--json")
    shown = sports_ray(tmp_path, "eval-ensemble", *words)
    assert shown.code == 0, shown.err
    manifest = Manifest.from_bytes((tmp_path / "runs" / "trained" / "manifest.arrow").read_bytes())
    train, carved = (manifest.rows(split).to_pydict() for split in ("train", "val"))
    (entry,) = json.loads((tmp_path / "out" / "scores.json").read_text())["candidates"]
    assert entry["images"] == len(train["path"]) == 48 - len(carved["path"]) < 48
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").column("path").to_pylist() == train["path"]
    rows = probabilities_by_hand(tmp_path, "trained", train["path"], flip=False)
    assert entry["acc1"] == pytest.approx(metrics.accuracy_score(train["label"], rows.argmax(1)), abs=1e-12)
    assert entry["nll"] == pytest.approx(metrics.log_loss(train["label"], rows, labels=range(3)), rel=1e-4)
    assert f"left out, held out for validation: {len(carved['path'])} photographs" in shown.out


def test_fitted_weights_come_from_validation_images_or_the_fallback_is_named(place: Path, tmp_path: Path) -> None:
    folder = photographs(photographs(tmp_path / "set", 80, "val", seed=5), 40, "test", seed=6)
    rows = [
        (str(path.relative_to(folder)), CLASSES.index(path.parent.name), path.parts[-3])
        for path in folder.rglob("*.jpg")
    ]
    manifest = listed(folder, sorted(rows))
    for name, seed in (("a", 1), ("b", 2)):
        make_member(tmp_path / "runs", name, seed=seed, manifest=manifest)
    words = ("eval-ensemble", "--run", "a", "--run", "b", "--workers", "0", "--weights", "fit", "--json")
    shown = sports_ray(tmp_path, *words)
    assert shown.code == 0, shown.err
    merge = next(event for event in shown.events if event["event"] == "result")["merge"]
    assert merge["asked"] == "fit" and merge["reason"] and sum(merge["weights"].values()) == pytest.approx(1)
    assert "80 validation images" in merge["reason"], merge
    without = sports_ray(tmp_path, *words_of(place, "--weights", "fit", "--json"))
    merge = next(event for event in without.events if event["event"] == "result")["merge"]
    assert (merge["used"], merge["reason"]) == ("uniform", "no list of photographs in run a")


def test_photographs_that_a_member_was_trained_on_are_told(place: Path, tmp_path: Path) -> None:
    paths = sorted(str(path.relative_to(place / "set")) for path in (place / "set").rglob("0000*.jpg"))
    rows = [(path, CLASSES.index(path.split("/")[1]), "train") for path in paths]
    make_member(tmp_path / "runs", "a", seed=1, manifest=listed(place / "set", rows))
    words = ("eval-ensemble", "--run", "a", "--workers", "0", "--data", str(place / "set"))
    shown = sports_ray(tmp_path, *words)
    assert f"! {len(rows)} of {COUNT + 1} photographs were trained on by a" in shown.out
