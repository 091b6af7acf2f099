"""Settings name the rows of a list as they name folders: what is named takes the place of what it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from sports_ray.config import DataConfig
from sports_ray.data.listing import list_files
from sports_ray.data.pack_write import write_pack
from sports_ray.errors import DataError
from tests.support.members import jpeg

WORDS = {"": 1, "train": 2, "Training": 3, "val": 4, "valid": 5, "test": 6, "testing": 7}
"""How often the list has each word of a split."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


def write_list(folder: Path, words: dict[str, int]) -> Path:
    """Photographs of the class golf, but for those of test, which lack a label."""
    named = [word for word, count in words.items() for _ in range(count)]
    rows = [f"{number}.jpg,{'' if word.startswith('test') else 'golf'},{word}" for number, word in enumerate(named)]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return folder / "list.csv"


def counted(source: Path, config: DataConfig) -> dict[str, int]:
    listing = list_files(source, config)
    assert not listing.bad_rows
    splits = listing.table.column("split").to_pylist()
    assert set(splits) == set(listing.folders)
    return {split: splits.count(split) for split in sorted(set(splits))}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (DataConfig(), {"test": 13, "train": 6, "val": 9}),
        (DataConfig(val="carve"), {"test": 13, "train": 6}),
        (DataConfig(test=""), {"train": 6, "val": 9}),
        (DataConfig(test="", val="carve"), {"train": 6}),
        (DataConfig(test="Testing", train="training", val="validation"), {"test": 13, "train": 6, "val": 9}),
        (DataConfig(test="valid"), {"test": 9, "train": 6}),
        (DataConfig(test="", val="test"), {"train": 6, "val": 13}),
        (DataConfig(train="", test=""), {"val": 9}),
    ],
    ids=["default", "carve", "no test", "neither", "synonyms", "val as test", "test as val", "no train"],
)
def test_a_list_and_its_pack_have_the_rows_that_the_settings_name(
    photos: Path, config: DataConfig, wanted: dict[str, int]
) -> None:
    source = write_list(photos, WORDS)
    if config.val == "test":
        source.write_text(source.read_text().replace(",,test", ",golf,test"))
    write_pack(str(source), str(photos / "pack"), cache_dir=photos / "cache")
    assert counted(source, config) == wanted
    assert counted(photos / "pack", config) == wanted


def test_a_list_without_splits_is_all_train_whatever_test_is_called(photos: Path) -> None:
    (photos / "list.csv").write_text("path,label\n" + "".join(f"{number}.jpg,golf\n" for number in range(5)))
    for config in (DataConfig(), DataConfig(test="")):
        assert counted(photos / "list.csv", config) == {"train": 5}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (DataConfig(train="extra"), {"test": 13, "train": 8, "val": 9}),
        (DataConfig(val="Extra"), {"test": 13, "train": 6, "val": 8}),
        (DataConfig(test="extra"), {"test": 8, "train": 6, "val": 9}),
    ],
    ids=["train", "val", "test"],
)
def test_rows_that_are_named_replace_those_of_the_default(
    photos: Path, config: DataConfig, wanted: dict[str, int]
) -> None:
    assert counted(write_list(photos, {**WORDS, "extra": 8}), config) == wanted


@pytest.mark.parametrize("kind", ["list", "pack"])
@pytest.mark.parametrize("key", ["train", "val", "test"])
def test_a_name_that_no_row_has_is_refused(photos: Path, key: str, kind: str) -> None:
    source = write_list(photos, WORDS)
    if kind == "pack":
        write_pack(str(source), str(photos / "pack"), cache_dir=photos / "cache")
        source = photos / "pack"
    message = rf"data.{key}: no such rows; got extra \(there is test, train, val\); cure: name others with --set data.{key}=NAME"
    with pytest.raises(DataError, match=message):
        list_files(source, DataConfig(**{key: "extra"}))


def test_a_name_for_two_splits_is_refused(photos: Path) -> None:
    source = write_list(photos, WORDS)
    for config in (DataConfig(val="test"), DataConfig(test="training"), DataConfig(train="valid", val="val")):
        with pytest.raises(DataError, match="one name for two splits"):
            list_files(source, config)


@pytest.mark.parametrize(("val", "got"), [("val", "val"), ("valid", "valid"), ("", "''")])
def test_a_val_that_is_named_is_not_carved_where_no_row_has_it(photos: Path, val: str, got: str) -> None:
    source = write_list(photos, {"train": 5, "test": 3})
    message = rf"data.val: no such rows; got {got} \(there is test, train\); cure: name others with --set data.val=NAME"
    with pytest.raises(DataError, match=message):
        list_files(source, DataConfig(val=val))
    for known in ("auto", "carve"):
        assert counted(source, DataConfig(val=known)) == {"test": 3, "train": 5}
    if val:
        assert counted(write_list(photos, WORDS), DataConfig(val=val))["val"] == 9
