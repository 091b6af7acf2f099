"""Scanning: every planted defect is found, and nothing else is complained of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sports_ray.cli.data import data
from sports_ray.config import DataConfig
from sports_ray.data.demo import DemoReport, draw_demo
from sports_ray.data.manifest import build_manifest
from sports_ray.data.scan import KINDS, ScanReport, _differ_in_both, _Files, _of_copies, scan
from sports_ray.errors import DataError

PLANTED = (
    "truncated", "not-an-image", "wrong-extension", "empty-file", "tiny", "huge", "unreadable", "duplicate", "leak",
    "two-classes", "near-duplicate", "near-leak", "similar-names", "one-sided", "unlabelled", "empty-class",
)  # fmt: skip


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoReport, ScanReport]:
    folder = tmp_path_factory.mktemp("dirty")
    drawn = draw_demo(folder / "set", classes=4, per_class=8, size=64, dirty=True)
    return drawn, scan(folder / "set", DataConfig(), cache_dir=folder / "cache")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=48)
    return tmp_path / "set"


def kinds(report: ScanReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def scanned(folder: Path) -> ScanReport:
    return scan(folder, DataConfig(), cache_dir=folder.parent / "cache")


@pytest.mark.parametrize("kind", PLANTED)
def test_each_planted_defect_is_found_where_it_was_planted(dirty: tuple[DemoReport, ScanReport], kind: str) -> None:
    drawn, report = dirty
    (planted,) = (record for record in drawn.planted if record["kind"] == kind)
    finding = report.finding(kind)
    assert finding is not None
    path = Path(planted["path"])
    wanted = path.parent.name if kind in ("similar-names", "one-sided") else str(path)
    (item,) = (item for item in finding.items if wanted in item)
    assert planted.get("of", wanted) in item


def test_unusual_files_are_read_without_complaint(dirty: tuple[DemoReport, ScanReport]) -> None:
    drawn, report = dirty
    fine = {record["path"] for record in drawn.planted if record["kind"] == "fine"}
    assert len(fine) == 9
    named = {name for finding in report.findings for item in finding.items for name in item}
    assert not fine & named
    assert set(report.formats) == {"jpeg", "png", "webp", "bmp", "gif"}


def test_nothing_is_found_that_was_not_planted(dirty: tuple[DemoReport, ScanReport]) -> None:
    drawn, report = dirty
    planted = {record["path"] for record in drawn.planted} | {record.get("of", "") for record in drawn.planted}
    about_files = kinds(report) - {"similar-names", "one-sided", "imbalance"}
    for kind in about_files:
        finding = report.finding(kind)
        assert finding is not None
        assert all(item[0] in planted for item in finding.items), kind
    assert kinds(report) - {"imbalance"} == set(PLANTED)


def test_training_refuses_the_dirty_set(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=48, dirty=True)
    with pytest.raises(DataError, match="only in train"):
        build_manifest(DataConfig(root=str(tmp_path / "set")), cache_dir=tmp_path / "cache")


def test_a_clean_set_has_no_findings(clean: Path) -> None:
    report = scanned(clean)
    assert report.findings == ()
    assert report.splits == {"train": 12, "val": 3, "test": 3}
    assert report.classes["tennis"] == {"test": 1, "train": 4, "val": 1}
    assert report.width == report.height == (48, 48, 48)


def test_imbalance_names_the_largest_and_the_smallest_class(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=32, imbalance=True)
    finding = scanned(tmp_path / "set").finding("imbalance")
    assert finding is not None
    assert finding.items == (("210 basketball", "3 tennis"),)


def test_a_scan_reports_where_training_refuses(clean: Path) -> None:
    shutil.copytree(clean / "val", clean / "validation")
    (clean / "raw").mkdir()
    with pytest.raises(DataError, match="more than one validation folder"):
        build_manifest(DataConfig(root=str(clean)), cache_dir=clean.parent / "cache")
    finding = scanned(clean).finding("passed-over")
    assert finding is not None
    assert finding.items == (("raw",), ("validation",))
    shutil.rmtree(clean / "train")
    assert scanned(clean).splits == {"val": 3, "test": 3}


def test_bad_rows_of_a_list_are_reported_and_the_rest_is_scanned(clean: Path) -> None:
    rows = [f"{path.relative_to(clean)},{path.parent.name},{path.parts[-3]}" for path in clean.glob("*/*/*.jpg")]
    (clean / "list.csv").write_text("\n".join(["path,label,split", *rows, "lost.jpg,tennis,train"]))
    report = scanned(clean / "list.csv")
    assert report.files == 18
    finding = report.finding("bad-rows")
    assert finding is not None
    assert finding.items[0][0].startswith("row 19 (line 20): no such file")


def test_an_empty_folder_is_reported_as_empty(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    report = scanned(tmp_path / "set")
    assert (report.files, report.splits, report.findings) == (0, {}, ())


def test_nearly_the_same_in_two_splits_is_what_a_comparison_of_all_pairs_says() -> None:
    draw, told = np.random.default_rng(0), []
    for _ in range(2000):
        equal, rank = draw.integers(0, draw.integers(1, 4), (2, draw.integers(1, 7)))
        told.append(_differ_in_both(equal, rank))
        rows = range(len(equal))
        assert told[-1] == any(equal[a] != equal[b] and rank[a] != rank[b] for a in rows for b in rows)
    assert {*told} == {True, False}


@pytest.mark.parametrize("others", [0, 1])
def test_a_film_of_20_000_frames_in_one_class_is_scanned(others: int) -> None:
    """A comparison of all pairs takes minutes: longer than a test may."""
    count = 20_000
    split = np.array(["train"] * (count - others) + ["val"] * others, dtype=object)
    digests, alike = np.array([f"{row:064x}" for row in range(count)], dtype=object), np.full(count, "", dtype=object)
    side, phash = np.full(count, 64), np.full(count, 7, np.uint64)
    film = _Files(digests, split, alike, digests, side, side, phash, alike, alike, alike)
    found = dict(_of_copies(film))
    assert [len(group) for group in found["near-duplicate"]] == [count - others]
    assert [len(group) for group in found["near-leak"]] == [count] * others


def test_the_report_is_plain_json(dirty: tuple[DemoReport, ScanReport]) -> None:
    report = dirty[1].as_dict()
    json.dumps(report)  # would refuse a numpy number
    assert [finding["kind"] for finding in report["findings"]] == sorted(
        (f["kind"] for f in report["findings"]), key=list(KINDS).index
    )


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield CliRunner()


def test_the_commands_draw_and_scan(cli: CliRunner, tmp_path: Path) -> None:
    folder = str(tmp_path / "set")
    drawn = cli.invoke(data, ["demo", folder, "--classes", "3", "--per-class", "4", "--size", "32"])
    assert drawn.exit_code == 0, drawn.output
    assert "12 train · 3 val · 3 test · 3 classes" in drawn.output
    found = cli.invoke(data, ["scan", folder])
    assert found.exit_code == 0
    assert "nothing to complain of" in found.output
    shutil.copy(tmp_path / "set" / "test" / "tennis" / "0000.jpg", tmp_path / "set" / "train" / "tennis" / "leak.jpg")
    found = cli.invoke(data, ["scan", folder])
    assert found.exit_code == 0
    assert "leak: files in two splits" in found.output
    assert "train/tennis/leak.jpg = test/tennis/0000.jpg" in found.output
    answer = json.loads(cli.invoke(data, ["scan", folder, "--json"]).output)
    assert [finding["kind"] for finding in answer["findings"]] == ["leak"]


@pytest.mark.parametrize(("folders", "got"), [("", "nothing"), ("train/golf", "train/golf")])
def test_a_folder_without_a_photograph_is_the_users_mistake(
    cli: CliRunner, tmp_path: Path, folders: str, got: str
) -> None:
    (tmp_path / "bare" / folders).mkdir(parents=True)
    error = cli.invoke(data, ["scan", str(tmp_path / "bare")]).exception
    assert isinstance(error, DataError) and error.exit_code == 2
    assert error.what == f"no photograph in {tmp_path / 'bare'}" and str(error.got).endswith(got)
    assert error.want.startswith("a folder with train/") and "`sports-ray data demo DIR`" in error.cure


def test_a_folder_that_does_not_exist_is_the_users_mistake(cli: CliRunner, tmp_path: Path) -> None:
    answer = cli.invoke(data, ["scan", str(tmp_path / "nowhere")])
    assert isinstance(answer.exception, DataError)
    assert answer.exception.exit_code == 2
    assert "data not found" in str(answer.exception)
