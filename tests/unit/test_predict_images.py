"""Every file gets a row, is known by its bytes, and is read again only when it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sports_ray.errors import DataError
from sports_ray.predict.digests import Digest, digests
from sports_ray.predict.images import list_images, list_split, manifest_split, trained_on
from tests.support.members import CLASSES, jpeg, listed, photographs


def test_rows_are_sorted_labelled_by_the_members_classes_and_bad_files_are_among_them(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "set", 8)
    (folder / "test" / "golf" / "empty.jpg").write_bytes(b"")
    (folder / "test" / "golf" / "notes.txt").write_text("no image")
    (folder / "test" / "golf" / "an image").write_bytes(jpeg(1))
    images = list_split(str(folder), "test", CLASSES)
    paths = images.column("path")
    assert images.column("id") == list(range(10)) and paths == sorted(paths)
    assert [CLASSES[label] for label in images.column("label")] == [path.split("/")[1] for path in paths]
    assert "test/golf/empty.jpg" in paths and "test/golf/an image" in paths and "test/golf/notes.txt" not in paths
    assert images.notes == ("left out, no images: 1 files",)


def test_the_fingerprint_is_that_of_the_bytes_wherever_they_lie(tmp_path: Path) -> None:
    here, there = (list_split(str(photographs(tmp_path / name, 8)), "test", CLASSES) for name in ("a", "b"))
    assert (here.content(), here.fingerprint()) == (there.content(), there.fingerprint()) and here.root != there.root
    file = tmp_path / "b" / "test" / "golf" / "00002.jpg"
    file.write_bytes(file.read_bytes() + b"x")
    changed = list_split(str(tmp_path / "b"), "test", CLASSES)
    assert changed.content() != here.content()


def test_files_are_read_again_only_when_size_time_or_inode_has_changed(tmp_path: Path) -> None:
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    for number, name in enumerate(paths):
        (tmp_path / name).write_bytes(jpeg(number))
    read: list[tuple[int, int]] = []

    def look() -> list[Digest]:
        stats = [os.stat(tmp_path / name) for name in paths]
        states = [Digest(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats]
        read.clear()
        return digests(
            str(tmp_path), paths, states, lambda done, total: read.append((done, total)), tmp_path / "memory"
        )

    first = look()
    assert read == [(3, 3)] and look() == first and not read
    (tmp_path / "b.jpg").write_bytes(jpeg(9))
    second = look()
    assert read == [(1, 1)] and second[1].sha256 != first[1].sha256 and second[::2] == first[::2]
    (memory,) = (tmp_path / "memory").iterdir()
    memory.write_bytes(memory.read_bytes()[:-3])
    assert look() == second and read == [(3, 3)]
    (tmp_path / "c.jpg").unlink()
    state = Digest(-1, 0, 0)
    (gone,) = digests(str(tmp_path), ["c.jpg"], [state], None, tmp_path / "memory")
    assert gone.sha256 == "" and gone.error == "cannot be read: No such file or directory"


def test_splits_that_are_not_there_and_unknown_classes_are_refused(tmp_path: Path) -> None:
    folder = photographs(photographs(tmp_path / "set", 4, "train"), 4, "holdout")
    assert len(list_split(str(folder), "holdout", CLASSES)) == 4
    with pytest.raises(
        DataError, match=r"no split test in .*set; got holdout, train; .*choose another with --split NAME"
    ):
        list_split(str(folder), "test", CLASSES)
    with pytest.raises(DataError, match="classes that the members do not know; got 'water polo'"):
        list_split(str(folder), "holdout", CLASSES[:3])
    some = list_split(str(folder), "holdout", CLASSES[:3], subset=True)
    assert len(some) == 3 and some.notes == ("left out, of classes that were not trained: 1 photographs",)
    plain = list_split(str(folder / "holdout"), "test", CLASSES)
    assert len(plain) == 4 and set(plain.column("label")) == {0, 1, 2, 3}


def test_carved_validation_images_are_those_of_the_runs_manifest(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "set", 12, "train")
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    rows = [(path, CLASSES.index(path.split("/")[1]), "val" if n % 3 == 0 else "train") for n, path in enumerate(paths)]
    manifest = listed(folder, rows)
    images = list_split(str(folder), "val", CLASSES, manifest)
    assert images.column("path") == [path for path, _, split in rows if split == "val"]
    assert trained_on(images, manifest) == 0 and trained_on(list_split(str(folder), "train", CLASSES), manifest) == 8
    assert manifest_split(manifest, "val", "nowhere").digests() == images.digests()
    with pytest.raises(DataError, match="no split val"):
        list_split(str(folder), "val", CLASSES)
    (folder / images.column("path")[1]).write_bytes(jpeg(77))
    with pytest.raises(DataError, match="1 photographs of val are not those of the run"):
        manifest_split(manifest, "val", str(folder))


def test_images_to_predict_come_from_any_depth_or_from_a_list_that_may_name_them(tmp_path: Path) -> None:
    for number, name in enumerate(("b.jpg", "deep/er/a.PNG", ".hidden.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(number))
    images, names = list_images(str(tmp_path))
    assert names == images.column("path") == ["b.jpg", "deep/er/a.PNG"] and images.column("label") == [-1, -1]
    (tmp_path / "list.csv").write_text("image_id;file\n7;b.jpg\n3;gone.jpg\n", encoding="utf-8")
    images, names = list_images(str(tmp_path / "list.csv"))
    assert names == ["7", "3"] and images.column("path") == ["b.jpg", "gone.jpg"]
    assert images.column("error") == [None, "cannot be read: No such file or directory"]
    for text, words in (("a,b\n", "no column of paths"), ("path\nb.jpg\nb.jpg\n", "row 2: a name given twice")):
        (tmp_path / "list.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words):
            list_images(str(tmp_path / "list.csv"))
    with pytest.raises(DataError, match="images not found"):
        list_images(str(tmp_path / "nowhere"))
