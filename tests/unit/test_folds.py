"""Folds: a pure function of the photographs, stratified, with duplicates kept together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sports_ray.config import DataConfig
from sports_ray.data import folds
from sports_ray.data.demo import draw_demo
from sports_ray.data.folds import assign_folds
from sports_ray.data.manifest import build_manifest, fold_manifests
from sports_ray.data.split import duplicate_groups
from sports_ray.errors import ConfigError, DataError
from tests.unit.test_split import made

NAMES = [f"class {label}" for label in range(7)]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_no_duplicate_or_near_duplicate_crosses_the_folds(count: int, seed: int) -> None:
    digests, hashes, labels = made(600, 7, seed)
    found = assign_folds(digests, hashes, labels, NAMES, count)
    group = duplicate_groups(digests, hashes, labels)
    assert len(np.unique(group)) < 600  # there are groups
    assert all(len(np.unique(found[group == one])) == 1 for one in np.unique(group))
    assert sorted(np.unique(found).tolist()) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_each_fold_has_its_share_of_each_class_and_of_all(count: int) -> None:
    rng = np.random.default_rng(count)
    digests = np.array([f"{number:064x}" for number in rng.permutation(1003)])
    labels = np.sort(rng.integers(0, 7, 1003))
    found = assign_folds(digests, np.zeros(1003, np.uint64), labels, NAMES, count)
    for label in range(7):
        sizes = np.bincount(found[labels == label], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(found, minlength=count)) <= 2


def test_groups_cost_a_class_at_most_their_size() -> None:
    digests, hashes, labels = made(2000, 7)
    found = assign_folds(digests, hashes, labels, NAMES, 5)
    for label in range(7):
        assert np.ptp(np.bincount(found[labels == label], minlength=5)) <= 4


def test_folds_do_not_look_at_the_order_of_rows() -> None:
    digests, hashes, labels = made(500, 7)
    found = assign_folds(digests, hashes, labels, NAMES, 5)
    order = np.random.default_rng(1).permutation(500)
    again = assign_folds(digests[order], hashes[order], labels[order], NAMES, 5)
    assert dict(zip(digests[order], again, strict=True)) == dict(zip(digests, found, strict=True))


def test_a_class_whose_images_are_all_the_same_is_refused() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    digests = np.array(["a", "a", "a", "b", "c", "d"])
    with pytest.raises(DataError, match="got 'class 0'; wanted two different photographs or more of each class"):
        assign_folds(digests, np.zeros(6, np.uint64), labels, NAMES, 2)
    digests = np.array(["a", "e", "a", "b", "c", "d"])
    assert len(set(assign_folds(digests, np.zeros(6, np.uint64), labels, NAMES, 2)[:2])) == 2
    with pytest.raises(DataError, match="data.folds; got 6; wanted at most 5"):
        assign_folds(digests, np.zeros(6, np.uint64), labels, NAMES, 6)


@pytest.mark.parametrize(("data", "said"), [((1, 0), "wanted 2 or more"), ((3, 3), "from 0 to 2"), ((0, 1), "besides")])
def test_a_fold_that_is_not_there_is_refused(data: tuple[int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        folds.check(DataConfig(folds=data[0], fold=data[1]))


def test_manifests_of_the_folds_are_those_that_each_fold_builds(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=40)
    config = DataConfig(root=str(tmp_path / "set"), folds=3)
    found = fold_manifests(config, cache_dir=tmp_path)
    for fold, manifest in enumerate(found):
        alone = build_manifest(DataConfig(root=config.root, folds=3, fold=fold), cache_dir=tmp_path)
        assert alone.to_bytes() == manifest.to_bytes()
        assert manifest.rows("test").equals(found[0].rows("test"))
    held = [path for manifest in found for path in manifest.rows("val").column("path").to_pylist()]
    assert len(held) == len(set(held)) == 15 and {path.partition("/")[0] for path in held} == {"train", "val"}
    assert len({manifest.fingerprint() for manifest in found}) == 3


def test_a_copy_in_val_joins_its_original_in_train_and_one_in_test_is_a_leak(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=40)
    photo = next((tmp_path / "set/train").glob("*/*"))
    copy = tmp_path / "set/val" / photo.parent.name / "copy.jpg"
    copy.write_bytes(photo.read_bytes())
    config = DataConfig(root=str(tmp_path / "set"), folds=3)
    both = {str(one.relative_to(tmp_path / "set")) for one in (photo, copy)}
    for manifest in fold_manifests(config, cache_dir=tmp_path):
        assert len(both & set(manifest.rows("val").column("path").to_pylist())) in (0, 2)
    (tmp_path / "set/test" / photo.parent.name / "copy.jpg").write_bytes(photo.read_bytes())
    with pytest.raises(DataError, match="leak: 2 files of train"):
        fold_manifests(config, cache_dir=tmp_path)
