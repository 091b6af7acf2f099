"""`sports-ray predict`: a submission with every image once, sorted, also those that cannot be read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from sports_ray.predict.write import submission
from tests.support.members import CLASSES, jpeg, make_member, photographs
from tests.support.shell import sports_ray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", 30)
    (folder / "flat").mkdir()
    for number, path in enumerate(sorted((folder / "set").rglob("*.jpg"))):
        (folder / "flat" / f"{number}.jpg").write_bytes(path.read_bytes())
    make_member(folder / "runs", "a", seed=1)
    make_member(folder / "runs", "b", model="test_efficientnet", size=40, seed=2)
    return folder


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_csv_is_complete_sorted_and_says_what_the_evaluation_says(place: Path) -> None:
    """Byte for byte the photographs of set/test: evaluated there with labels, predicted here without."""
    runs = ("--run", "a", "--run", "b", "--tta", "hflip")
    shown = sports_ray(place, "predict", "--images", "flat", *runs, "--header", "id,label", "--out", "out/sub.csv")
    assert shown.code == 0 and not shown.err, shown.err
    head, *rows = rows_of(place / "out" / "sub.csv")
    assert head == ["id", "label"] and [row[0] for row in rows] == sorted(f"{number}.jpg" for number in range(30))
    scored = sports_ray(place, "eval-ensemble", "--data", "set", *runs, "--workers", "0", "--out", "scored")
    assert scored.code == 0, scored.err
    import pyarrow.parquet as pq

    ensemble = np.array(pq.read_table(place / "scored" / "predictions.parquet").column("ensemble").to_pylist())
    assert {row[0]: row[1] for row in rows} == {
        f"{n}.jpg": CLASSES[label] for n, label in enumerate(ensemble.argmax(1))
    }


def test_bad_images_get_a_row_and_strict_an_exit_code(place: Path, tmp_path: Path) -> None:
    for name, data in (("b.jpg", jpeg(1)), ("a.jpg", jpeg(2)[:250]), ("c.jpg", b"")):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    words = ("predict", "--images", "in", "--run", str(place / "runs" / "a"), "--store", "store")
    shown = sports_ray(tmp_path, *words, "--json")
    assert shown.code == 0
    head, *rows = rows_of(tmp_path / "predictions.csv")
    assert head == ["image_id", "class"] and [row[0] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert rows[0][1] == rows[2][1] == "" and rows[1][1] in CLASSES
    events = {event["event"]: event for event in shown.events}
    assert [one["path"] for one in events["bad"]["images"]] == ["a.jpg", "c.jpg"]
    filled = sports_ray(tmp_path, *words, "--fill", "golf", "--strict", "--out", "filled.csv")
    assert filled.code == 2 and "2 images without a prediction; got a.jpg: " in filled.err
    assert [row[1] for row in rows_of(tmp_path / "filled.csv")[1::2]] == ["golf", "golf"]
    assert "! 2 images without a prediction" in filled.out


def test_top_k_adds_classes_and_probabilities_in_falling_order(place: Path, tmp_path: Path) -> None:
    words = ("predict", "--images", str(place / "flat"), "--run", str(place / "runs" / "a"), "--top", "3")
    assert sports_ray(tmp_path, *words, "--store", "store").code == 0
    head, *rows = rows_of(tmp_path / "predictions.csv")
    assert head == ["image_id", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    for row in rows:
        values = [float(value) for value in row[2::2]]
        assert values == sorted(values, reverse=True) and sum(values) <= 1.00001 and len({*row[1::2]}) == 3


def test_a_list_names_its_images_and_a_missing_file_is_a_bad_one(place: Path, tmp_path: Path) -> None:
    text = f"id,path\n20,{place}/flat/3.jpg\n7,gone.jpg\n100,{place}/flat/5.jpg\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    shown = sports_ray(
        tmp_path, "predict", "--images", "list.csv", "--run", str(place / "runs" / "a"), "--store", "store", "--json"
    )
    assert shown.code == 0, shown.err
    rows = rows_of(tmp_path / "predictions.csv")[1:]
    assert [row[0] for row in rows] == ["100", "20", "7"] and rows[2][1] == "" and rows[0][1] in CLASSES
    assert json.loads(shown.out.splitlines()[-1])["bad"][0]["error"] == "cannot be read: No such file or directory"


def test_names_that_a_csv_must_quote_read_back() -> None:
    names = ['b, "x".jpg', "a\nb.jpg", "ü.jpg"]
    table = np.eye(3, 4, dtype=np.float32)
    text = submission(names, table, [None, "bad", None], CLASSES, ("id", "class"))
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["id", "class"], ["a\nb.jpg", ""], ['b, "x".jpg', CLASSES[0]], ["ü.jpg", CLASSES[2]]]


def test_mistakes_end_in_one_line(place: Path, tmp_path: Path) -> None:
    run, mine = ("--run", str(place / "runs" / "a")), tmp_path / "mine.csv"
    mine.write_text("path\na.jpg\n")
    for words, text in (
        (("--images", "nowhere", *run), "images not found; got nowhere"),
        (("--images", str(place / "flat"), *run, "--header", "id"), "--header; got 'id'; wanted two different names"),
        (("--images", str(place / "runs"), *run), "no image in"),
        (("--images", str(place / "flat"), *run, "--out", "."), "--out; got .; wanted the name of a file"),
        (("--images", str(place / "flat"), *run, "--out", str(place)), "wanted the name of a file"),
        (("--images", str(mine), *run, "--out", str(mine)), "mine.csv; wanted another file than the list of images"),
    ):
        shown = sports_ray(tmp_path, "predict", *words)
        assert shown.code == 2 and shown.err.count("\n") == 1 and text in shown.err, shown.err
    assert not (tmp_path / "predictions.csv").exists() and mine.read_text() == "path\na.jpg\n"
