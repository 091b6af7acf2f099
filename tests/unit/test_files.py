"""Which files a folder holds, for all that ask: links are followed, and what cannot be read is named and never passed over."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sports_ray.config import DataConfig
from sports_ray.data.files import Folder
from sports_ray.data.listing import list_whole_tree
from sports_ray.data.manifest import build_manifest
from sports_ray.data.scan import scan
from sports_ray.errors import DataError
from sports_ray.predict.images import list_images, list_split

from .test_manifest import photo, tree, write

Readers = dict[str, Callable[[Path], object]]
READERS: Readers = {
    "train": lambda root: build_manifest(DataConfig(root=str(root)), cache_dir=root.parent / "cache"),
    "scan": lambda root: scan(root, DataConfig(), cache_dir=root.parent / "cache"),
    "eval": lambda root: list_split(str(root), "test", ("golf", "judo", "polo")),
    "pack": list_whole_tree,
    "predict": lambda root: list_images(str(root)),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "photos", per=1)


def test_images_to_predict_are_those_of_linked_folders_too(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "deep" / "1.jpg", photo(50))
    write(tmp_path / "elsewhere" / ".hidden" / "1.jpg", photo(51))
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    images, names = list_images(str(root))
    assert "linked/deep/1.jpg" in names and len(names) == 10
    assert not any(images.column("error"))
    assert names == list_whole_tree(root)[0].table.column("id").to_pylist(), "a pack of the folder holds the same"


def test_links_in_a_circle_are_walked_once(root: Path) -> None:
    before = Folder(str(root)).paths()
    (root / "train" / "up").symlink_to(root)
    (root / "train" / "here").symlink_to(root / "train")
    assert Folder(str(root)).paths() == before


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("folder", ["", "test", "test/golf"])
def test_a_folder_that_cannot_be_read_is_named(
    root: Path, folder: str, reader: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = str(root / folder), os.scandir

    def refusing(path: str | Path = "."):  # type: ignore[no-untyped-def]
        if str(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # tests that run as root may read everything
    with pytest.raises(DataError, match=rf"folder that cannot be read; got .*{folder} \(Permission denied\); .*cure: "):
        reader(root)


def test_a_link_to_itself_is_a_file_that_cannot_be_read(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "golf" / "loop.jpg").symlink_to("loop.jpg")
        (root / split / "rugby").symlink_to("rugby")  # where a class may have been meant
    finding = scan(root, DataConfig(), cache_dir=root.parent / "cache").finding("unreadable")
    assert finding is not None
    lost = [f"{split}/{name}" for split in ("test", "train") for name in ("golf/loop.jpg", "rugby")]
    assert [path for path, _ in finding.items] == lost
    assert all("Too many levels of symbolic links" in words for _, words in finding.items)
    images = list_split(str(root), "test", ("golf", "judo", "polo"))
    errors = dict(zip(images.column("path"), images.column("error"), strict=True))
    assert "Too many levels" in errors["test/golf/loop.jpg"] and sum(map(bool, errors.values())) == 1
    assert images.notes == ("left out, no images: 1 files",)
    _, names = list_images(str(root))
    assert "train/golf/loop.jpg" in names and len(names) == 11
    with pytest.raises(DataError, match="train/golf/loop.jpg"):
        build_manifest(DataConfig(root=str(root)), cache_dir=root.parent / "cache")


def test_a_loop_beside_photographs_does_not_keep_anyone_from_training(root: Path) -> None:
    (root / "train" / "rugby").symlink_to("rugby")
    manifest = build_manifest(DataConfig(root=str(root)), cache_dir=root.parent / "cache")
    assert manifest.classes == ("golf", "judo", "polo") and len(manifest.rows("train")) == 3


def test_names_that_are_no_text_are_refused_in_one_line(root: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(root) + b"/notes\xff.txt")), b"no photograph")
    assert len(list_images(str(root))[1]) == 9
    for number in range(7):
        write(Path(os.fsdecode(os.fsencode(root) + b"/b%d\xff/1.jpg" % number)), photo(50))
    with pytest.raises(DataError) as caught:
        list_images(str(root))
    told = str(caught.value)
    assert told.startswith(r"file names that are not UTF-8; got 'b0\udcff/1.jpg', ") and "and 2 more" in told
    assert told.endswith("cure: rename them") and told.encode()


def test_a_pipe_or_device_is_an_image_that_cannot_be_read_and_nobody_waits_for_it(root: Path) -> None:
    """Opening a pipe waits for a writer; /dev/zero has no end."""
    os.mkfifo(root / "test" / "golf" / "pipe.jpg")
    (root / "test" / "judo" / "zero.jpg").symlink_to("/dev/zero")
    (root / "test" / "polo" / "link.jpg").symlink_to(next((root / "test" / "polo").iterdir()))
    lost = ["test/golf/pipe.jpg", "test/judo/zero.jpg"]
    finding = scan(root, DataConfig(), cache_dir=root.parent / "cache").finding("unreadable")
    assert finding is not None and finding.items == tuple((path, "a pipe or device") for path in lost)
    for images in (list_images(str(root))[0], list_split(str(root), "test", ("golf", "judo", "polo"))):
        told = zip(images.column("path"), images.column("error"), strict=True)
        wrong = {path.removeprefix(f"{root}/"): error for path, error in told if error}
        assert wrong == dict.fromkeys(lost, "cannot be read: a pipe or device")
    with pytest.raises(DataError, match="2 of 6 images of test cannot be read; got test/golf/pipe.jpg"):
        build_manifest(DataConfig(root=str(root)), cache_dir=root.parent / "cache")
