"""The drawn photograph set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sports_ray.data.demo import MARK, class_names, draw_demo, picture
from sports_ray.errors import DataError

DRAWINGS = 16


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_set_has_the_splits_classes_and_sizes_asked_for(tmp_path: Path) -> None:
    report = draw_demo(tmp_path / "set", classes=3, per_class=8, size=48)
    assert report.images == {"train": 24, "val": 6, "test": 6}
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        assert sorted(path.name for path in (tmp_path / "set" / split).iterdir()) == sorted(report.classes)
        for name in report.classes:
            files = list((tmp_path / "set" / split / name).iterdir())
            assert len(files) == count
            assert Image.open(files[0]).size == (48, 48)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_demo(tmp_path / name, classes=3, per_class=4, size=32, seed=seed, dirty=True)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    drawn = [name for name in first if Path(name).stem.isdigit()]
    assert len(drawn) >= 18
    assert all(first[name] != other[name] for name in drawn)


def test_a_set_may_be_drawn_over_but_nothing_else(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=8, size=32, dirty=True)
    draw_demo(tmp_path / "set", classes=2, per_class=4, size=32)
    assert len(list((tmp_path / "set" / "train" / "basketball").iterdir())) == 4
    assert not (tmp_path / "set" / "planted.json").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="something else than a demo set"):
        draw_demo(tmp_path / "own")
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 1000}, {"per_class": 3}, {"size": 8}])
def test_impossible_sets_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
        draw_demo(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_there_are_102_classes_and_more_with_names_of_their_own() -> None:
    names = class_names(102)
    assert len({name.casefold() for name in names}) == 102
    for name in names[::9]:
        assert picture(name, 32, Random(name)).size == (32, 32)


def test_imbalance_is_seventy_to_one_with_three_images_at_least(tmp_path: Path) -> None:
    report = draw_demo(tmp_path / "set", classes=4, per_class=4, size=32, imbalance=True)
    counts = [len(list((tmp_path / "set" / "train" / name).iterdir())) for name in report.classes]
    assert min(counts) >= 3
    assert 60 <= max(counts) / min(counts) <= 80
    assert sum(counts) == report.images["train"]


def test_every_drawing_differs_more_between_classes_than_within() -> None:
    """Not by colour: classes that share a surface are told apart by a nearest mean of edges."""
    names = class_names(DRAWINGS)

    def edges(name: str, key: int) -> np.ndarray:
        grey = np.asarray(picture(name, 64, Random(f"{name}{key}")).convert("L"), dtype=float)
        return np.abs(np.fft.rfft2(grey - grey.mean())).clip(1)[:16, :16].ravel() ** 0.5

    means = {name: np.mean([edges(name, key) for key in range(10)], axis=0) for name in names}
    right = 0
    for name in names:
        for key in range(100, 104):
            here = edges(name, key)
            right += min(names, key=lambda other: np.linalg.norm(here - means[other])) == name
    assert right / (4 * DRAWINGS) > 4 / DRAWINGS


def test_mean_colour_alone_does_not_give_the_class_away() -> None:
    names = class_names(6)
    colour = {
        name: np.array([np.asarray(picture(name, 32, Random(f"{name}{key}"))).mean((0, 1)) for key in range(24)])
        for name in names
    }
    means = {name: values[:16].mean(0) for name, values in colour.items()}
    right = [
        min(names, key=lambda other: np.linalg.norm(row - means[other])) == name
        for name in names
        for row in colour[name][16:]
    ]
    assert np.mean(right) < 0.8


def test_dirty_lists_what_it_plants_outside_the_splits(tmp_path: Path) -> None:
    report = draw_demo(tmp_path / "set", classes=3, per_class=4, size=32, dirty=True)
    listed = json.loads((tmp_path / "set" / "planted.json").read_text())
    assert listed == list(report.planted)
    assert all((tmp_path / "set" / record["path"]).exists() for record in listed)
    assert sum(record["kind"] == "fine" for record in listed) == 9
