"""`sports-ray data pack` from a user's side, and every command that takes photographs on a pack of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.members import make_member, photographs
from tests.support.shell import sports_ray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", 30)
    make_member(folder / "runs", "a", seed=1)
    shown = sports_ray(folder, "data", "pack", "set", "packed")
    assert shown.code == 0 and not shown.err, shown.err
    return folder


def test_a_packing_is_summed_up_for_people_and_for_machines(place: Path, tmp_path: Path) -> None:
    again = sports_ray(place, "data", "pack", "set", "packed")
    assert "30 test" in again.out and "1, " in again.out and "1 of them made before" in again.out
    assert "training would refuse them: no train/ in the pack" in again.out and "\x1b" not in again.out
    shown = sports_ray(place, "data", "pack", "set", str(tmp_path / "small"), "--short-side", "32", "--json")
    assert shown.code == 0
    facts = json.loads(shown.out)
    assert (
        facts["images"] == 30 and facts["splits"] == {"test": 30} and facts["short_side"] == 32 and facts["made"] == 1
    )
    assert facts["fingerprint"] is None and facts["bytes"] < json.loads(
        sports_ray(place, "data", "pack", "set", "packed", "--json").out
    )["bytes"]  # fmt: skip
    for words, line in (
        (("set", "x", "--short-side", "4"), "--short-side; got 4; wanted from 16 to 8192 px"),
        (("set", "x", "--shard-mb", "0"), "--shard-mb; got 0; wanted from 1 to 512"),
        (("nothing", "x"), "data not found; got nothing"),
        (("set", "runs"), "got a folder that holds a; wanted a new or empty folder"),
    ):
        refused = sports_ray(place, "data", "pack", *words)
        assert refused.code == 2 and line in refused.err and refused.err.count("\n") == 1, refused.err
    assert not (place / "x").exists()


def test_an_evaluation_and_a_prediction_on_the_pack_are_those_on_the_folder(place: Path, tmp_path: Path) -> None:
    found, pages = [], []
    for data in ("set", "packed"):
        store = str(tmp_path / f"store of {data}")
        words = ("--run", str(place / "runs" / "a"), "--store", store)
        out = tmp_path / f"scored {data}"
        shown = sports_ray(
            place, "eval-ensemble", "--data", data, *words, "--workers", "0", "--tta", "hflip", "--out", str(out)
        )
        assert shown.code == 0, shown.err
        scores = json.loads((out / "scores.json").read_text())
        submission = tmp_path / f"{data}.csv"
        shown = sports_ray(place, "predict", "--images", data, *words, "--out", str(submission))
        assert shown.code == 0, shown.err
        table = pq.read_table(out / "predictions.parquet").to_pydict()
        found.append((table, scores["candidates"], submission.read_bytes()))
        page = sports_ray(place, "report", str(out))
        assert page.code == 0, page.err
        pages.append((out / "report.html").read_text().count("data:image/jpeg"))
    assert found[0] == found[1]
    assert pages[0] == pages[1] > 0


def test_what_was_computed_for_the_folder_is_not_computed_again_for_the_pack(place: Path, tmp_path: Path) -> None:
    words = ("--run", str(place / "runs" / "a"), "--store", "store", "--workers", "0", "--json")
    to_do = []
    for number, data in enumerate(("set", "packed")):
        shown = sports_ray(tmp_path, "eval-ensemble", "--data", str(place / data), *words, "--out", f"out {number}")
        assert shown.code == 0, shown.err
        to_do += [event.get("to_do", 0) for event in shown.events if event["event"] == "work"]
    assert to_do in ([30, 0], [30])


def test_photographs_of_a_run_are_verified_in_the_pack(place: Path, tmp_path: Path) -> None:
    from sports_ray.data.demo import draw_demo

    draw_demo(tmp_path / "set", classes=2, per_class=6, size=40)
    assert sports_ray(tmp_path, "data", "pack", "set", "packed").code == 0
    words = (
        "train",
        "--data",
        "packed",
        "--model",
        "test_resnet",
        "--weights",
        "none",
        "--workers",
        "0",
        "--epochs",
        "1",
    )
    settings = ("--precision", "fp32", "--set", "data.image_size=32", "--set", "cluster.threads=1", "--run", "run")
    planned = sports_ray(tmp_path, *words, *settings, "--dry-run")
    assert planned.code == 0 and "photos      12 train · 2 validation · test: 2" in planned.out, planned.out
    assert sports_ray(tmp_path, *words, *settings).code == 0
    shown = sports_ray(tmp_path, "verify", "runs/run", "--photos")
    assert shown.code == 0, shown.out
    moved = sports_ray(tmp_path, "verify", "runs/run", "--photos", "--data", "set")
    assert moved.code == 0, moved.out
    shard = tmp_path / "packed" / "shards" / "00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert sports_ray(tmp_path, "verify", "runs/run", "--photos").code != 0
