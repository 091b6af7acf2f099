"""What is true of the real photographs is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sports_ray.config import DataConfig
from sports_ray.data.manifest import build_manifest
from sports_ray.data.scan import ScanReport, scan
from sports_ray.errors import DataError

TEN = (
    "air hockey",
    "ampute football",
    "archery",
    "arm wrestling",
    "axe throwing",
    "balance beam",
    "barell racing",
    "baseball",
    "basketball",
    "baton twirling",
)
NEAR = {
    ("balance beam/006", "balance beam/050"),
    ("balance beam/010", "balance beam/019"),
    ("balance beam/011", "balance beam/072"),
    ("balance beam/016", "balance beam/042"),
    ("balance beam/026", "balance beam/132"),
    ("balance beam/036", "balance beam/052"),
    ("balance beam/083", "balance beam/090"),
    ("air hockey/066", "air hockey/084"),
    ("barell racing/010", "barell racing/088"),
    ("barell racing/029", "barell racing/105"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(photographs: Path, cache: Path) -> ScanReport:
    return scan(photographs, DataConfig(), cache_dir=cache)


def test_the_450_leaks_are_found(report: ScanReport) -> None:
    finding = report.finding("leak")
    assert finding is not None
    assert len(finding.items) == 450
    assert not {item[0].split("/")[1] for item in finding.items} & set(TEN)


def test_the_near_duplicates_of_the_ten_large_classes_are_found_and_nothing_else(report: ScanReport) -> None:
    finding = report.finding("near-duplicate")
    assert finding is not None
    found = {
        tuple(name.removeprefix("train/").removesuffix(".jpg") for name in item)
        for item in finding.items
        if item[0].startswith("train/")
    }
    assert {pair for pair in found if pair[0].split("/")[0] in TEN} == NEAR


def test_imbalance_is_found_and_every_photograph_is_read(report: ScanReport) -> None:
    assert report.splits == {"train": 1667, "val": 500}
    assert report.formats == {"jpeg": 2167}
    assert report.finding("imbalance") is not None
    assert not {finding.kind for finding in report.findings} & {
        "truncated",
        "unreadable",
        "tiny",
        "one-sided",
        "similar-names",
    }


def test_training_on_the_leaking_set_is_refused(photographs: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="450 files of train also in a held-out split"):
        build_manifest(DataConfig(root=str(photographs)), cache_dir=cache)
    with pytest.raises(DataError, match="no image of train is left for 90 classes"):
        build_manifest(DataConfig(root=str(photographs), leaks="drop"), cache_dir=cache)


def test_the_ten_large_classes_train_with_a_carved_split_that_no_twin_crosses(photographs: Path, cache: Path) -> None:
    manifest = build_manifest(DataConfig(root=str(photographs), test="valid", classes=TEN), cache_dir=cache)
    train, val, test = (manifest.rows(split) for split in ("train", "val", "test"))
    assert (len(train) + len(val), len(test)) == (1217, 50)
    split = {name.removeprefix("train/").removesuffix(".jpg"): "train" for name in train.column("id").to_pylist()}
    split |= {name.removeprefix("train/").removesuffix(".jpg"): "val" for name in val.column("id").to_pylist()}
    assert all(split[one] == split[other] for one, other in NEAR)
    share = np.bincount(val.column("label")) / np.bincount(np.concatenate([train.column("label"), val.column("label")]))
    assert (np.abs(share - 0.15) < 0.04).all()
    assert manifest.notes == ("near-duplicate: train/arm wrestling/08.jpg ~ valid/arm wrestling/1.jpg",)
