"""Every file gets a row, is known by its bytes, and is read again only when it has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sports_ray.config import DataConfig
from sports_ray.data.manifest import Manifest, build_manifest
from sports_ray.data.pack_write import write_pack
from sports_ray.errors import DataError
from sports_ray.predict.digests import Digest, digests
from sports_ray.predict.images import list_images, list_split, manifest_split, seem_trained_on, trained_on
from tests.support.cifar import CLASSES as CIFAR
from tests.support.cifar import drawn, write_binary
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


@pytest.mark.parametrize("kind", ["list", "pack", "tree"])
def test_each_name_of_a_split_selects_its_rows_and_an_unknown_one_none(tmp_path: Path, kind: str) -> None:
    """12 photographs of train, 8 of val and 4 of test, under the words that lists use."""
    folder = photographs(photographs(photographs(tmp_path / "set", 12, "train"), 8, "val", seed=1), 4, "test", seed=2)
    source = folder
    if kind != "tree":
        source = csv_of(folder, {"train": "Training", "val": "valid", "test": "test"})
    if kind == "pack":
        write_pack(str(source), str(tmp_path / "pack"), cache_dir=tmp_path)
        source = tmp_path / "pack"
    for names, split, count in (
        (("train", "training", "Training"), "train", 12),
        (("val", "valid", "validation"), "val", 8),
        (("test", "testing"), "test", 4),
    ):
        for name in names:
            found = list_split(str(source), name, CLASSES).column("path")
            assert len(found) == count and {path.split("/")[0] for path in found} == {split}, name
    with pytest.raises(
        DataError,
        match=r"no split nonsense in .*; got nonsense/? \(there is test.* train.* val.*choose another with --split NAME",
    ):
        list_split(str(source), "nonsense", CLASSES)


def test_a_split_of_a_list_by_a_word_of_its_own_is_those_rows_alone(tmp_path: Path) -> None:
    folder = photographs(photographs(photographs(tmp_path / "set", 4, "train"), 8, "holdout", seed=1), 4, seed=2)
    words = {"train": "", "holdout": "Holdout", "test": "test"}
    source = str(csv_of(folder, words))
    assert len(list_split(source, "holdout", CLASSES)) == 8
    images = list_split(source, "test", CLASSES)
    assert len(images) == 4 and images.notes == ("passed over, rows of other splits: holdout",)
    with pytest.raises(DataError, match=r"no split val in .*list.csv; got holdout, test, train"):
        list_split(source, "val", CLASSES)


@pytest.mark.parametrize("others", [{}, {"val": "val"}], ids=["alone", "beside val"])
def test_rows_that_only_a_runs_settings_name_keep_no_split_from_being_evaluated(
    tmp_path: Path, others: dict[str, str]
) -> None:
    folder = tmp_path / "set"
    for seed, (split, count) in enumerate({"train": 12, "dev": 8, "test": 4, "val": 4}.items()):
        photographs(folder, count if split != "val" or others else 0, split, seed=seed)
    source = csv_of(folder, {"train": "train", "dev": "dev", "test": "test", **others})
    run = build_manifest(DataConfig(root=str(source), val="dev"), cache_dir=tmp_path)
    for split, count in (("train", 12), ("val", 8), ("test", 4), ("dev", 8)):
        assert len(list_split(str(source), split, CLASSES, run)) == count, split
    held = list_split(str(source), "val", CLASSES, run)
    assert held.column("path") == run.rows("val").column("path").to_pylist()
    with pytest.raises(DataError, match="unknown split 'dev'"):
        build_manifest(DataConfig(root=str(source)), cache_dir=tmp_path)


def test_a_split_that_cifar_does_not_have_is_refused(tmp_path: Path) -> None:
    source, classes = str(write_binary(tmp_path / "bin", drawn())), CIFAR
    assert len(list_split(source, "training", classes)) == 100 and len(list_split(source, "testing", classes)) == 20
    for name, called in (("nonsense", "nonsense"), ("valid", "val")):
        with pytest.raises(DataError, match=f"no split {called} in .*; got test, train; .*another with --split NAME"):
            list_split(source, name, classes)


def csv_of(folder: Path, words: dict[str, str]) -> Path:
    """A list of all photographs of a tree; `words`: what it calls the split of each folder."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*.jpg"))
    rows = [f"{path},{path.parts[1]},{words[path.parts[0]]}" for path in found]
    (folder / "list.csv").write_text("\n".join(["filepaths,labels,data set", *rows]) + "\n")
    return folder / "list.csv"


def plain(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Photographs in folders of their classes, and no folder of a split."""
    return photographs(folder.parent, count, folder.name, seed=seed) / folder.name


def carved(folder: Path, every: int = 3) -> Manifest:
    """What a run was trained on that held out each n-th photograph below a folder."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.jpg"))
    splits = ["train" if number % every else "val" for number in range(len(paths))]
    rows = [(str(path), CLASSES.index(path.parts[-2]), split) for path, split in zip(paths, splits, strict=True)]
    return listed(folder, rows)


def test_of_a_plain_folder_val_is_what_the_run_held_out(tmp_path: Path) -> None:
    folder = plain(tmp_path / "set")
    manifest = carved(folder)
    held = manifest.rows("val").column("path").to_pylist()
    shutil.copytree(folder, tmp_path / "copy")
    write_pack(str(folder), str(tmp_path / "pack"), cache_dir=tmp_path)
    for source in (folder, tmp_path / "copy", tmp_path / "pack"):
        for name in ("val", "valid"):
            images = list_split(str(source), name, CLASSES, manifest)
            assert images.column("path") == held and len(held) == 4, source
            assert images.column("label") == manifest.rows("val").column("label").to_pylist()
            assert trained_on(images, manifest) == 0
        assert len(list_split(str(source), "train", CLASSES, manifest)) == 8
        assert len(list_split(str(source), "test", CLASSES, manifest)) == 12
    (folder / held[0]).unlink()
    assert list_split(str(folder), "val", CLASSES, manifest).column("path") == held[1:]


def test_of_a_plain_folder_that_was_encoded_anew_val_is_what_the_run_held_out(tmp_path: Path) -> None:
    """Packed anew after the training, or trained on the pack: no bytes are the same, and most was trained on."""
    folder = plain(tmp_path / "set", 24)
    write_pack(str(folder), str(tmp_path / "pack"), short_side=16, cache_dir=tmp_path)
    for trained, here in ((folder, tmp_path / "pack"), (tmp_path / "pack", folder)):
        run = build_manifest(DataConfig(root=str(trained), val_fraction=0.25), cache_dir=tmp_path)
        held = run.rows("val").column("path").to_pylist()
        images = list_split(str(here), "val", CLASSES, run)
        assert images.column("path") == held and 0 < len(held) < 12
        assert images.digests() != run.rows("val").column("sha256").to_pylist()
        assert images.notes == ("val is what the first run held out, known by paths alone: the bytes are others",)
        whole = list_split(str(here), "test", CLASSES, run)
        assert trained_on(whole, run) == 0 and seem_trained_on(whole, run) == 24 - len(held), "all counts as test"
        assert seem_trained_on(images, run) == 0


def test_a_plain_folder_of_other_photographs_counts_as_val(tmp_path: Path) -> None:
    manifest = carved(plain(tmp_path / "set"))
    fewer, others = plain(tmp_path / "fewer", 3), plain(tmp_path / "others", 12, seed=7)
    for path in [*others.rglob("*.jpg")]:
        path.rename(path.with_name(f"x{path.name}"))
    for other, notes in (
        (others, ()),
        (fewer, ("all count as val: of the 4 paths that the first run held out, 3 are here",)),
    ):
        images = list_split(str(other), "val", CLASSES, manifest)
        assert images.table == list_split(str(other), "val", CLASSES).table and images.notes == notes


def test_a_val_beside_what_was_held_out_and_encoded_anew_is_told(tmp_path: Path) -> None:
    folder = photographs(photographs(tmp_path / "set", 16, "train"), 8, "val", seed=1)
    write_pack(str(folder), str(tmp_path / "pack"), short_side=16, cache_dir=tmp_path)
    run = build_manifest(DataConfig(root=str(folder), folds=2), cache_dir=tmp_path)
    images = list_split(str(tmp_path / "pack"), "val", CLASSES, run)
    told = "val is what is called so: what the first run held out is here by its paths, with other bytes"
    assert len(images) == 8 and images.notes == (told,)


def test_photographs_that_a_run_names_by_absolute_paths_are_not_taken_for_those_of_another_folder(
    tmp_path: Path,
) -> None:
    folder = photographs(tmp_path / "set", 8, "train")
    rows = [(str(path), CLASSES.index(path.parts[-2]), "val") for path in folder.rglob("*.jpg")]
    other = photographs(tmp_path / "other", 4, "val", seed=5)
    images = list_split(str(other), "val", CLASSES, listed(tmp_path, rows))
    assert len(images) == 4 and {path.split("/")[0] for path in images.column("path")} == {"val"}


@pytest.mark.parametrize("settings", [{"val": "carve"}, {"folds": 2, "fold": 1}, {"val": "extra"}, {"train": "extra"}])
def test_val_is_what_the_run_held_out_whatever_its_settings(tmp_path: Path, settings: dict[str, object]) -> None:
    """Beside a folder val/, which another run would have validated on."""
    folder = tmp_path / "set"
    for seed, split in enumerate(("train", "val", "extra")):
        photographs(folder, 16, split, seed=seed)
    run = build_manifest(DataConfig(root=str(folder), val_fraction=0.25, **settings), cache_dir=tmp_path)  # type: ignore[arg-type]
    held = run.rows("val").column("path").to_pylist()
    if settings.get("train"):  # its val is val/
        assert {path.split("/")[0] for path in held} == {"val"}
    images = list_split(str(folder), "val", CLASSES, run)
    assert images.column("path") == held and trained_on(images, run) == 0
    told = "val is what the first run held out, not all that is called so"
    assert images.notes == (() if settings.get("train") else (told,))
    photographs(folder, 20, "val", seed=1)
    assert len(list_split(str(folder), "val", CLASSES)) == 20
    if settings.get("train"):
        assert len(list_split(str(folder), "val", CLASSES, run)) == 20, "photographs that came later count too"


def test_folds_of_a_list_are_known_again_and_another_list_in_the_same_folder_is_its_own(tmp_path: Path) -> None:
    folder = photographs(photographs(tmp_path / "set", 16, "train"), 8, "val", seed=1)
    source = csv_of(folder, {"train": "train", "val": "val"})
    run = build_manifest(DataConfig(root=str(source), folds=2), cache_dir=tmp_path)
    held = run.rows("val").column("path").to_pylist()
    assert list_split(str(source), "val", CLASSES, run).column("path") == held
    assert list_split(str(folder), "val", CLASSES, run).column("path") == held
    other = folder / "other.csv"
    lines = source.read_text().splitlines()
    other.write_text("\n".join([lines[0], *[line for line in lines if line.startswith("val/")], lines[1]]))
    assert len(list_split(str(other), "val", CLASSES, run)) == 8


def test_the_root_of_a_runs_photographs_is_absolute_wherever_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "copy")
    manifest = carved(folder)
    for name in ("copy", "./copy", "~/copy"):
        assert manifest_split(manifest, "val", name).root == str(tmp_path / "copy")
    assert manifest_split(manifest, "val", "nowhere").root == str(folder)


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
