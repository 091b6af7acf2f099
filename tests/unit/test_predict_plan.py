"""Without --data an evaluation is of what the first member was trained on: of a list its rows, never all in its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sports_ray.config import DataConfig
from sports_ray.data.manifest import build_manifest
from sports_ray.errors import DataError
from sports_ray.predict.plan import Plan, plan_evaluation
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.members import make_member, photographs

COUNTS = {"train": 24, "val": 8, "test": 4}
LOST = "the list that the first run was trained on is not there any more: its own rows are taken"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def listed_photographs(folder: Path) -> Path:
    """A list beside the class folders of all its photographs."""
    photographs(folder.parent, sum(COUNTS.values()), folder.name)
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    paths = sorted((path.relative_to(folder) for path in folder.rglob("*.jpg")), key=lambda path: path.name)
    rows = [f"{path},{path.parts[0]},{split}" for path, split in zip(paths, splits, strict=True)]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return folder / "list.csv"


def trained(tmp_path: Path, root: str) -> None:
    """A run as `train --data ROOT` leaves it, with the root in its record as it was typed."""
    manifest = build_manifest(DataConfig(root=root), cache_dir=tmp_path / "cache")
    make_member(tmp_path / "runs", "a", manifest=manifest)
    RunDir.open(open_storage(str(tmp_path / "runs")), "a").create({"format": 1, "config": {"data": {"root": root}}})


def counted(data: str = "") -> dict[str, int]:
    plans = {split: plan_evaluation(["a"], split=split, store="runs", data=data) for split in COUNTS}
    return {split: len(plan.images) for split, plan in plans.items()}


def planned(runs: str) -> Plan:
    return plan_evaluation(["a"], split="test", store=runs)


@pytest.mark.parametrize("typed", ["c1/list.csv", "./c1/../c1/list.csv", "ABSOLUTE", "linked.csv"])
def test_a_list_is_evaluated_again_by_its_splits(tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listed_photographs(tmp_path / "c1")
    (tmp_path / "linked.csv").symlink_to(source)
    trained(tmp_path, str(source) if typed == "ABSOLUTE" else typed)
    assert counted() == COUNTS == counted(data=str(source))
    plan = planned("runs")
    assert os.path.samefile(plan.data, source) and plan.notes == ()
    if typed != "linked.csv":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        assert planned("../runs").data == str(source)


def test_of_a_list_that_is_gone_the_runs_own_rows_are_evaluated(tmp_path: Path) -> None:
    source = listed_photographs(tmp_path / "c1")
    trained(tmp_path, "c1/list.csv")
    source.unlink()
    assert counted() == COUNTS
    assert planned("runs").notes == (LOST,)
    (tmp_path / "c1").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=re.escape(f"data not found; got {tmp_path}/c1")):
        planned("runs")


@pytest.mark.parametrize("typed", ["set", "linked", "."])
def test_a_folder_is_evaluated_as_it_is_now(tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, (split, count) in enumerate(COUNTS.items()):
        photographs(tmp_path / "set", count, split, seed=seed)
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    if typed == ".":
        monkeypatch.chdir(tmp_path / "set")
    trained(tmp_path, typed)
    photographs(tmp_path / "set", 7, "test", seed=9)
    plan = planned(str(tmp_path / "runs"))
    assert plan.data == str(tmp_path / "set") and len(plan.images) == 7 and plan.notes == ()


def test_a_plain_folder_that_was_encoded_anew_may_be_what_was_trained_on(tmp_path: Path) -> None:
    """All in it counts as test, and no byte tells that the run knows it."""
    photographs(tmp_path, 40, "set")
    trained(tmp_path, "set")
    photographs(tmp_path / "anew", 40, "set", seed=5)
    photographs(tmp_path / "others", 7, "set", seed=5)
    (told,) = plan_evaluation(["a"], split="test", store="runs", data="anew/set").notes
    assert re.fullmatch(
        r"\d+ of 40 photographs have the paths of all that a was trained on: if they .* flatter it", told
    )
    assert plan_evaluation(["a"], split="test", store="runs", data="others/set").notes == ()
