"""Lists of photographs that show several classes: what is read, what is refused row by row, and how they are split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sports_ray.config import DataConfig
from sports_ray.data.label_sets import matrix
from sports_ray.data.loader import Reader
from sports_ray.data.manifest import Manifest, build_manifest
from sports_ray.data.order import Request
from sports_ray.data.pack_write import write_pack
from sports_ray.data.scan import scan
from sports_ray.errors import DataError
from sports_ray.recipe import build_config
from tests.support.members import jpeg

SETS = {"a": "ball|net", "b": "net", "c": "|", "d": "ball|flag", "e": "flag|net", "f": "ball"}
SPLITS = {"a": "train", "b": "train", "c": "train", "d": "train", "e": "val", "f": "test"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate([*SETS, *"gh"]):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(number))
    return tmp_path


def listed(folder: Path, text: str, **settings: object) -> Manifest:
    path = folder / "list.csv"
    path.write_text(text)
    return build_manifest(DataConfig(root=str(path), **settings), cache_dir=folder / "cache")  # type: ignore[arg-type]


def in_one_column(separator: str = "|", name: str = "labels", more: Sequence[str] = ()) -> str:
    rows = [f"{key}.jpg,{word.replace('|', separator)},{SPLITS[key]}" for key, word in SETS.items()]
    return "\n".join([f"path,{name},split", *rows, *more]) + "\n"


def in_columns(more: Sequence[str] = ()) -> str:
    rows = []
    for key, word in SETS.items():
        cells = ",".join(str(int(name in word.split("|"))) for name in ("net", "ball", "flag"))
        rows.append(f"{key}.jpg,{cells},{SPLITS[key]}")
    return "\n".join(["path,net,ball,flag,split", *rows, *more]) + "\n"


def shown(manifest: Manifest, split: str) -> dict[str, set[str]]:
    """Classes of each photograph."""
    table = manifest.rows(split).to_pydict()
    flags = matrix(manifest.label_sets, len(manifest.classes))
    return {
        path: {manifest.classes[k] for k in np.flatnonzero(flags[label])}
        for path, label in zip(table["path"], table["label"], strict=True)
    }


@pytest.mark.parametrize("separator", ["|", ";", " | "])
def test_labels_in_one_column_are_read_whatever_separates_them(photos: Path, separator: str) -> None:
    manifest = listed(photos, in_one_column(separator))
    assert manifest.classes == ("ball", "flag", "net") and manifest.multilabel
    assert shown(manifest, "train") == {
        "a.jpg": {"ball", "net"}, "b.jpg": {"net"}, "c.jpg": set(), "d.jpg": {"ball", "flag"},
    }  # fmt: skip
    assert shown(manifest, "val") == {"e.jpg": {"flag", "net"}} and shown(manifest, "test") == {"f.jpg": {"ball"}}
    assert manifest.class_images("train").tolist() == [2, 1, 2]


def test_a_column_for_each_class_says_the_same(photos: Path) -> None:
    first, second = listed(photos, in_columns()), listed(photos, in_one_column())
    assert first.fingerprint() == second.fingerprint() and first.label_sets == second.label_sets


def test_the_order_of_labels_does_not_matter_and_another_set_is_another_content(photos: Path) -> None:
    first = listed(photos, in_one_column())
    assert listed(photos, in_one_column().replace("ball|net", "net|ball")).fingerprint() == first.fingerprint()
    other = listed(photos, in_one_column().replace("ball|flag", "ball|flag|net"))
    assert other.fingerprint() != first.fingerprint()
    assert Manifest.from_bytes(first.to_bytes()).label_sets == first.label_sets


def test_lists_of_one_class_a_photograph_stay_what_they_were(photos: Path) -> None:
    text = "path,label,split\n" + "".join(f"{key}.jpg,{'one' if key < 'c' else 'two'},train\n" for key in "abcdef")
    assert not listed(photos, text).multilabel
    assert not listed(photos, text.replace("label", "labels")).multilabel, "without a separator each shows one"
    assert listed(photos, text, labels="multi").multilabel
    odd = listed(photos, text.replace("one", "a|b"))
    assert odd.classes == ("a|b", "two") and not odd.multilabel, "a column label holds one class, whatever its name"
    with pytest.raises(DataError, match="no column label"):
        listed(photos, in_columns(), labels="single")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("g.jpg,ball||net,train", "row 7 (line 8): an empty label in 'ball||net': 'g.jpg'"),
        ("g.jpg,ball|ball,train", "row 7 (line 8): label 'ball' twice in 'ball|ball': 'g.jpg'"),
        ("g.jpg,,train", "row 7 (line 8): no label, which only test images may lack: 'g.jpg'"),
        ("z.jpg,ball,train", "row 7 (line 8): no such file 'z.jpg'"),
        ("a.jpg,ball,train", "row 7 (line 8): 'a.jpg' stands already in row 1"),
    ],
)
def test_bad_rows_are_told_one_by_one_and_refused(photos: Path, row: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        listed(photos, in_one_column(more=[row]))
    assert str(caught.value).startswith(f"{photos / 'list.csv'}: 1 bad row; got {message}; cure: ")
    finding = scan(photos / "list.csv", DataConfig(), cache_dir=photos / "cache").finding("bad-rows")
    assert finding is not None and finding.items == ((message,),)


def test_cells_of_class_columns_are_0_or_1(photos: Path) -> None:
    more = ["g.jpg,1,2,0,train", "h.jpg,1,,0,train"]
    with pytest.raises(DataError) as caught:
        listed(photos, in_columns(more))
    assert "2 bad rows" in str(caught.value)
    assert "row 7 (line 8): '2' in column 'ball', wanted 0 or 1: 'g.jpg'; row 8 (line 9): '' in column 'ball'" in str(
        caught.value
    )
    assert -1 in listed(photos, in_columns(["g.jpg,,,,test"])).rows("test").column("label").to_pylist()


def test_a_class_of_test_that_training_never_sees_is_refused_and_one_that_it_lacks_is_told(photos: Path) -> None:
    with pytest.raises(DataError, match="1 class in test but not in train; got 'puck'"):
        listed(photos, in_one_column(more=["g.jpg,ball|puck,test"]))
    notes = listed(photos, in_one_column()).notes
    assert "no image of test shows flag, net: not scored there" in notes


def test_chosen_classes_leave_photographs_that_show_none_of_them(photos: Path) -> None:
    manifest = listed(photos, in_one_column(), classes=("ball", "net"))
    assert manifest.classes == ("ball", "net")
    assert shown(manifest, "train")["d.jpg"] == {"ball"} and shown(manifest, "train")["c.jpg"] == set()


def test_a_carved_split_has_every_class_on_both_sides_and_no_copy_across(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), ["path,labels"]
    for number in range(60):
        names = [name for name, chance in (("ball", 0.6), ("net", 0.3), ("flag", 0.1)) if random.random() < chance]
        names = names or (["flag"] if number % 3 else [])
        for copy in range(1 + (number % 5 == 0)):
            (tmp_path / f"{number}-{copy}.jpg").write_bytes(jpeg(number))
            rows.append(f"{number}-{copy}.jpg,{'|'.join(names) or '|'}")
    manifest = listed(tmp_path, "\n".join(rows) + "\n", val_fraction=0.2)
    train, val = (shown(manifest, split) for split in ("train", "val"))
    assert not {path.split("-")[0] for path in train} & {path.split("-")[0] for path in val}
    held, there = (np.array(manifest.class_images(split)) for split in ("val", "train"))
    share = held / (held + there)
    assert ((share > 0.1) & (share < 0.45)).all(), share
    assert any(not names for names in val.values()), "photographs that show nothing are held out too"


def test_photographs_whose_sets_all_differ_are_carved_by_their_classes(tmp_path: Path) -> None:
    random, names, rows = np.random.default_rng(1), "abcdefghij", ["path,labels"]
    for number in range(80):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append(f"{number}.jpg,{'|'.join(name for name in names if random.random() < 0.4) or '|'}")
    manifest = listed(tmp_path, "\n".join(rows) + "\n", val_fraction=0.2)
    assert len(manifest.label_sets) > 70
    held, there = manifest.class_images("val"), manifest.class_images("train")
    share = held / (held + there)
    assert ((share > 0.1) & (share < 0.35)).all() and 8 <= manifest.rows("val").num_rows <= 26, share


def test_what_the_loader_gives_is_a_row_of_0_and_1_for_each_photograph(photos: Path) -> None:
    manifest = listed(photos, in_one_column())
    config = build_config(None, {"model.name": "test_resnet", "data.cache_gb": 0.0})
    from sports_ray.config import ImageSpec

    spec = ImageSpec(
        train_size=32,
        eval_size=32,
        crop_pct=1.0,
        crop_mode="center",
        interpolation="bilinear",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    reader = Reader(manifest, config.data, config.augment, spec, 0)
    request = Request("train", 0, 0, 4)
    labels = reader.labels(request, reader.rows(request))
    assert labels.dtype == np.uint8 and labels.shape == (4, 3)
    expected = shown(manifest, "train")
    for row, flags in zip(reader.rows(request).tolist(), labels, strict=True):
        names = {manifest.classes[k] for k in np.flatnonzero(flags)}
        assert names == expected[reader.path("train", row)]


def test_a_pack_of_the_list_is_read_as_the_list(photos: Path) -> None:
    more = ["g.jpg,,test"]
    first = listed(photos, in_one_column(more=more))
    report = write_pack(str(photos / "list.csv"), str(photos / "packed"), cache_dir=photos / "cache")
    assert report.record.names == ["ball", "flag", "net"] and report.record.fingerprint == first.fingerprint()
    again = build_manifest(DataConfig(root=str(photos / "packed")), cache_dir=photos / "cache")
    assert again.fingerprint() == first.fingerprint() and again.label_sets == first.label_sets


def test_folds_of_photographs_with_several_classes_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="data.folds; got a multi-label list"):
        listed(photos, in_one_column(), folds=2)


def test_sizes_of_classes_in_a_scan_count_each_photograph_for_all_that_it_shows(photos: Path) -> None:
    listed(photos, in_one_column())
    report = scan(photos / "list.csv", DataConfig(), cache_dir=photos / "cache")
    assert report.classes == {
        "ball": {"test": 1, "train": 2}, "flag": {"train": 1, "val": 1}, "net": {"train": 2, "val": 1},
    }  # fmt: skip
    assert dataclasses.asdict(report)["files"] == 6
