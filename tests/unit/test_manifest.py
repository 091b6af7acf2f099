"""The manifest: which photographs a run uses, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sports_ray.config import DataConfig
from sports_ray.data import facts
from sports_ray.data.manifest import COLUMNS, Manifest, build_manifest
from sports_ray.errors import DataError


def photo(key: int, quality: int = 90, size: int = 48) -> bytes:
    """A JPEG that is near to no other key's."""
    pixels = np.random.default_rng(key).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree(
    root: Path,
    splits: tuple[str, ...] = ("train", "val", "test"),
    classes: tuple[str, ...] = ("golf", "judo", "polo"),
    per: int = 4,
) -> Path:
    """A folder tree in which every photograph is another."""
    key = 0
    for split in splits:
        for name in classes:
            for number in range(per):
                write(root / split / name / f"{number}.jpg", photo(key := key + 1))
    return root


def build(root: Path, tmp_path: Path, **settings: object) -> Manifest:
    return build_manifest(DataConfig(root=str(root), **settings), cache_dir=tmp_path / "cache")  # type: ignore[arg-type]


def refused(root: Path, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        build(root, tmp_path, **settings)
    return str(caught.value)


def splits(manifest: Manifest) -> dict[str, int]:
    return {split: len(manifest.rows(split)) for split in ("train", "val", "test") if len(manifest.rows(split))}


def test_a_tree_becomes_a_table_of_what_is_in_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    manifest = build(root, tmp_path)
    assert manifest.root == str(root.resolve())
    assert manifest.classes == ("golf", "judo", "polo")
    assert tuple(manifest.table.column_names) == COLUMNS
    assert [str(manifest.table.schema.field(name).type) for name in COLUMNS] == [
        "string",
        "string",
        "int32",
        "string",
        "string",
        "int32",
        "int32",
    ]
    assert splits(manifest) == {"train": 12, "val": 12, "test": 12}
    rows = manifest.table.to_pylist()
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        data = (root / row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert manifest.classes[row["label"]] == row["id"].split("/")[1]
        assert (row["width"], row["height"]) == (48, 48)
    assert manifest.notes == ()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_folder_may_have_any_of_three_names(tmp_path: Path, name: str) -> None:
    assert splits(build(tree(tmp_path / "photos", ("train", name)), tmp_path)) == {"train": 12, "val": 12}


def test_two_validation_folders_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val", "valid"))
    assert "data.val=val" in refused(root, tmp_path)
    assert splits(build(root, tmp_path, val="valid")) == {"train": 12, "val": 12}


@pytest.mark.parametrize("layout", [("train",), ("train", "test")])
def test_validation_is_carved_where_there_is_none(tmp_path: Path, layout: tuple[str, ...]) -> None:
    manifest = build(tree(tmp_path / "photos", layout, per=8), tmp_path, val_fraction=0.25)
    assert splits(manifest) == {"train": 18, "val": 6} | ({"test": 24} if "test" in layout else {})
    assert all(row["id"].startswith("train/") for row in manifest.rows("val").to_pylist())


def test_a_plain_folder_of_classes_is_all_train(tmp_path: Path) -> None:
    manifest = build(tree(tmp_path / "photos", ("",), per=8), tmp_path)
    assert manifest.classes == ("golf", "judo", "polo")
    assert splits(manifest) == {"train": 21, "val": 3}


def test_carve_always_carves_and_a_folder_may_become_the_test_split(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "valid"))
    manifest = build(root, tmp_path, test="valid")
    assert splits(manifest) == {"train": 9, "val": 3, "test": 12}
    assert all(row["id"].startswith("valid/") for row in manifest.rows("test").to_pylist())
    assert splits(build(root, tmp_path, val="carve")) == {"train": 9, "val": 3}


def test_an_unlabelled_test_folder_has_label_minus_one(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    write(root / "test" / "a.jpg", photo(900))
    assert build(root, tmp_path).rows("test").to_pylist()[0] | {"sha256": ""} == {
        "id": "test/a.jpg", "path": "test/a.jpg", "label": -1, "split": "test", "sha256": "", "width": 48, "height": 48
    }  # fmt: skip


def test_exif_orientation_turns_width_and_height(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(photo(901))).resize((60, 40)).save(root / "train" / "golf" / "turned.jpg", exif=exif)
    row = next(row for row in build(root, tmp_path).table.to_pylist() if row["id"].endswith("turned.jpg"))
    assert (row["width"], row["height"]) == (40, 60)


def test_102_classes_and_those_missing_on_one_side_are_named(tmp_path: Path) -> None:
    names = tuple(f"sport {number:03d}" for number in range(102))
    root = tree(tmp_path / "photos", ("train", "test"), names, per=1)
    for name in names:
        write(root / "train" / name / "more.jpg", photo(5000 + int(name[-3:])))
    assert len(build(root, tmp_path).classes) == 102
    shutil.rmtree(root / "test" / "sport 017")
    shutil.rmtree(root / "train" / "sport 042")
    assert "1 class in train but not in test; got 'sport 017'" in refused(root, tmp_path)
    tree(root, ("test",), ("sport 017",), per=1)
    assert "1 class in test but not in train; got 'sport 042'" in refused(root, tmp_path)
    assert len(build(root, tmp_path, classes=("sport 00*",)).classes) == 10


def test_classes_are_chosen_by_name_or_pattern(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"), ("air hockey", "ice hockey", "judo", "odd [name]"))
    assert build(root, tmp_path, classes=("*hockey",)).classes == ("air hockey", "ice hockey")
    assert build(root, tmp_path, classes=("judo", "odd [name]")).classes == ("judo", "odd [name]")
    assert "did you mean ice hockey" in refused(root, tmp_path, classes=("ice hokey",))
    assert "fewer than two classes" in refused(root, tmp_path, classes=("judo",))


def test_broken_files_are_named_and_left_out_only_within_the_limit(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"), per=10)
    data = photo(902)
    write(root / "train" / "golf" / "cut.jpg", data[: len(data) // 2])
    write(root / "train" / "judo" / "text.jpg", b"no photograph")
    text = refused(root, tmp_path)
    assert "2 of 32 images of train cannot be read" in text
    assert "train/golf/cut.jpg (truncated)" in text and "train/judo/text.jpg (not-an-image)" in text
    manifest = build(root, tmp_path, max_bad_fraction=0.1)
    assert splits(manifest) == {"train": 30, "val": 30}
    assert manifest.notes == (
        "left out, cannot be read: train/golf/cut.jpg (truncated), train/judo/text.jpg (not-an-image)",
    )


def test_a_bomb_is_refused_by_its_pixels_and_other_files_are_passed_over_with_a_note(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    write(root / "train" / "golf" / "readme.txt", b"taken in May")
    write(root / "train" / "golf" / ".DS_Store", b"x")
    assert build(root, tmp_path).notes == ("left out, no images: train/golf/readme.txt",)
    assert "(huge)" in refused(root, tmp_path, max_pixels=48 * 48 - 1)


def test_leaks_are_refused_dropped_or_allowed(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    shutil.copy(root / "test" / "judo" / "0.jpg", root / "train" / "judo" / "leak.jpg")
    text = refused(root, tmp_path)
    assert "1 file of train also in a held-out split" in text
    assert "train/judo/leak.jpg = test/judo/0.jpg" in text and "data.leaks=drop" in text
    dropped = build(root, tmp_path, leaks="drop")
    assert splits(dropped)["train"] == 12 and "taken out of train" in dropped.notes[0]
    allowed = build(root, tmp_path, leaks="allow")
    assert splits(allowed)["train"] == 13 and "leak allowed" in allowed.notes[0]


def test_dropping_leaks_must_not_empty_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    shutil.rmtree(root / "train" / "polo")
    shutil.copytree(root / "val" / "polo", root / "train" / "polo")
    text = refused(root, tmp_path, leaks="drop")
    assert "no image of train is left for 1 class" in text and "train/polo" in text


def test_near_duplicates_across_splits_are_noted_and_never_carved_apart(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "test"), per=6)
    write(root / "test" / "golf" / "again.jpg", photo(1, quality=40, size=96))
    assert build(root, tmp_path).notes == ("near-duplicate: train/golf/0.jpg ~ test/golf/again.jpg",)
    for number in range(6):
        write(root / "train" / "judo" / f"{number}b.jpg", photo(7 + number, quality=50))
    held = {row["id"] for row in build(root, tmp_path, val_fraction=0.5).rows("val").to_pylist() if "judo" in row["id"]}
    assert len(held) == 6
    assert {name.replace("b.jpg", ".jpg") for name in held if "b" in name} == {name for name in held if "b" not in name}


def test_a_moved_folder_has_the_same_fingerprint_and_a_changed_byte_another(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    first = build(root, tmp_path).fingerprint()
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert build(moved, tmp_path).fingerprint() == first
    write(moved / "train" / "golf" / "0.jpg", photo(903))
    assert build(moved, tmp_path).fingerprint() != first


def test_a_saved_manifest_loads_equal(tmp_path: Path) -> None:
    manifest = build(tree(tmp_path / "photos", ("train", "test")), tmp_path, leaks="allow")
    manifest.save(tmp_path / "manifest.arrow")
    loaded = Manifest.load(tmp_path / "manifest.arrow")
    assert loaded == manifest
    assert loaded.fingerprint() == manifest.fingerprint()
    (tmp_path / "manifest.arrow").write_bytes(b"something else")
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.load(tmp_path / "manifest.arrow")


class Counted:
    """Counts the files that were read."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, done: int, total: int) -> None:
        self.read = done


def test_a_second_manifest_reads_only_what_has_changed(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    config, cache = DataConfig(root=str(root)), tmp_path / "cache"
    first, again, changed = Counted(), Counted(), Counted()
    manifest = build_manifest(config, progress=first, cache_dir=cache)
    assert build_manifest(config, progress=again, cache_dir=cache) == manifest
    write(root / "train" / "golf" / "0.jpg", photo(904))
    write(root / "train" / "golf" / "new.jpg", photo(905))
    (root / "train" / "golf" / "1.jpg").unlink()
    third = build_manifest(config, progress=changed, cache_dir=cache)
    assert (first.read, again.read, changed.read) == (36, 0, 2)
    assert third == build_manifest(config, cache_dir=tmp_path / "fresh")


def test_a_file_of_the_same_size_and_time_but_another_inode_is_read_again(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    build(root, tmp_path)
    target = root / "train" / "golf" / "0.jpg"
    before = target.stat()
    other = write(tmp_path / "other.jpg", target.read_bytes()[:-2] + b"\xff\xd9"[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(target)
    assert "cannot be read" in refused(root, tmp_path)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "text"])
def test_a_damaged_memory_is_ignored(tmp_path: Path, harm: str) -> None:
    root = tree(tmp_path / "photos")
    manifest = build(root, tmp_path)
    (place,) = (tmp_path / "cache").iterdir()
    data = place.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    place.write_bytes({"cut": data[:middle], "flip": flipped, "empty": b"", "text": b"x" * 999}[harm])
    assert build(root, tmp_path) == manifest
    assert place.read_bytes() == data


def test_an_interrupted_inspection_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tree(tmp_path / "photos", per=8), tmp_path / "cache"
    monkeypatch.setattr(facts, "_CHUNK", 4)

    def interrupt(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_manifest(DataConfig(root=str(root)), progress=interrupt, cache_dir=cache)
    rest = Counted()
    build_manifest(DataConfig(root=str(root)), progress=rest, cache_dir=cache)
    assert 0 < rest.read <= 72 - 20


def test_missing_data_is_one_clear_line(tmp_path: Path) -> None:
    tree(tmp_path / "photos", ("train", "val"))
    assert f"did you mean {tmp_path / 'photos'}?" in refused(tmp_path / "photo", tmp_path)
    assert "data.test: no such folder" in refused(tmp_path / "photos", tmp_path, test="tset")
    (tmp_path / "nothing").mkdir()
    assert "no class folder with images" in refused(tmp_path / "nothing", tmp_path)
    with pytest.raises(DataError, match="no data given"):
        build_manifest(DataConfig())
    shutil.rmtree(tmp_path / "photos" / "train")
    assert "no train/ in" in refused(tmp_path / "photos", tmp_path)


def test_a_key_to_the_photographs_is_refused_and_not_shown(tmp_path: Path) -> None:
    """All who may read a run may read where its photographs lie."""
    told = refused("s3://id:secret@bucket/packed?region=x", tmp_path)
    assert "a key in it; wanted s3://bucket/packed?region=x" in told and "secret" not in told


def listed(root: Path, header: str, delimiter: str = ",", changes: dict[int, str] | None = None) -> Path:
    """A list of all of the tree's files; `changes` puts other text into rows."""
    rows = []
    for path in sorted(root.glob("*/*/*.jpg")):
        split, name, _ = path.relative_to(root).parts
        rows.append(delimiter.join([str(path.relative_to(root)), name, split]))
    for number, text in (changes or {}).items():
        rows[number - 1] = text
    target = root / "list.csv"
    target.write_text("\n".join([header.replace(",", delimiter), *rows]) + "\n")
    return target


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["path,label,split", "Path,LABEL,Split", "filepaths,labels,data set"])
def test_a_csv_list_gives_the_same_manifest_as_its_tree(tmp_path: Path, header: str, delimiter: str) -> None:
    root = tree(tmp_path / "photos")
    manifest = build(listed(root, header, delimiter), tmp_path)
    assert manifest == build(root, tmp_path)


def test_rows_outside_the_lists_folder_have_absolute_paths(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos")
    outside = write(tmp_path / "other" / "x.jpg", photo(906))
    row = next(
        r
        for r in build(
            listed(root, "path,label,split", changes={1: f"{outside},golf,train"}), tmp_path
        ).table.to_pylist()
        if r["id"].endswith("x.jpg")
    )
    assert row["path"] == str(outside.resolve())


def test_bad_rows_are_named_by_their_number(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write(root / "a.jpg", photo(1))
    rows = [f"links/{number}.jpg,{'golf' if number % 2 else 'judo'},train" for number in range(1, 6001)]
    (root / "links").mkdir()
    for number in range(1, 6001):
        os.link(root / "a.jpg", root / "links" / f"{number}.jpg")
    rows[5620] = "links/lost.jpg,golf,train"
    write(root / "list.csv", "\n".join(["path,label,split", *rows]).encode())
    assert "1 bad row; got row 5621 (line 5622): no such file 'links/lost.jpg'" in refused(root / "list.csv", tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("train/golf/0.jpg,golf", "2 fields where the header has 3"),
        ("train/golf/0.jpg,golf,dev", "unknown split 'dev'"),
        ("train/golf/0.jpg,,train", "no label"),
        (",golf,train", "no path"),
        ("train/golf/1.jpg,golf,train", "stands already in row"),
        ("train/golf,golf,train", "no file but a folder"),
    ],
)
def test_each_kind_of_bad_row_says_what_is_wrong(tmp_path: Path, row: str, words: str) -> None:
    root = tree(tmp_path / "photos")
    text = refused(listed(root, "path,label,split", changes={36: row}), tmp_path)
    assert "row 36 (line 37)" in text and words in text


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    assert "no column path" in refused(write(tmp_path / "a.csv", b"colour,taste\nred,sweet\n"), tmp_path)
    assert "UTF-8" in refused(write(tmp_path / "b.csv", b"path,label\n\xff\xfe\x00"), tmp_path)
    assert "an empty file" in refused(write(tmp_path / "c.csv", b""), tmp_path)


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("train", "val"))
    (root / "train" / "golf" / "deeper").mkdir()
    write(root / "train" / "golf" / "deeper" / "x.jpg", photo(907))
    (root / "train" / "golf" / "deeper" / "up").symlink_to(root / "train" / "golf")
    assert splits(build(root, tmp_path)) == {"train": 13, "val": 12}


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_fingerprint_is_that_of_one_text_however_many_parts_it_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("sports_ray.data.manifest._ROWS_AT_ONCE", rows)
    manifest = build(tree(tmp_path / "set"), tmp_path)
    columns = [manifest.table.column(name).to_pylist() for name in ("id", "label", "split", "sha256")]
    text = json.dumps([manifest.classes, sorted(zip(*columns, strict=True))])
    assert manifest.fingerprint() == hashlib.sha256(text.encode()).hexdigest()
    shuffled = dataclasses.replace(manifest, table=manifest.table.take(list(range(len(columns[0])))[::-1]))
    assert shuffled.fingerprint() == manifest.fingerprint()
    empty = dataclasses.replace(manifest, table=manifest.table.slice(0, 0))
    assert empty.fingerprint() == hashlib.sha256(json.dumps([manifest.classes, []]).encode()).hexdigest()
