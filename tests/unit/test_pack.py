"""A pack stands for the folder or the list that it was made of: same manifest, same stream, same scan; whole or none."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow.fs import LocalFileSystem

from sports_ray.bench.pack import opened, write_synthetic
from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data import pack_write
from sports_ray.data.demo import draw_demo
from sports_ray.data.files import open_files
from sports_ray.data.loader import Batch, stream
from sports_ray.data.manifest import Manifest, build_manifest
from sports_ray.data.order import Request
from sports_ray.data.pack import PackRecord, open_pack
from sports_ray.data.pack_write import PackReport, write_pack
from sports_ray.data.scan import scan
from sports_ray.errors import DataError
from sports_ray.store.arrow import ArrowStorage

from .test_manifest import photo, tree, write

SPEC = ImageSpec(
    train_size=32, eval_size=40, crop_pct=0.875, crop_mode="center", interpolation="bicubic",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("facts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a folder may hold: other names for its splits, copies, damage, a loose image, an empty class, ..."""
    root = tree(tmp_path_factory.mktemp("photographs") / "set", ("train", "val", "test", "extra"), per=5)
    write(root / "train/golf/again.jpg", (root / "train/golf/0.jpg").read_bytes())
    write(root / "train/judo/leak.jpg", (root / "test/judo/0.jpg").read_bytes())
    write(root / "train/judo/deep/er/1.jpg", photo(900, size=160))
    write(root / "train/polo/notes.txt", b"no photograph")
    write(root / "train/polo/cut.jpg", photo(901)[:300])
    write(root / "train/loose.jpg", photo(902))
    write(root / "test/loose.jpg", photo(903))
    write(root / "root.jpg", photo(904))
    write(root / "train/golf.jpg/0.jpg", photo(905))
    write(root / "train/golf-2/é ü.png", photo(906))
    (root / "test/empty").mkdir()
    return root


@pytest.fixture(scope="module")
def pack(folder: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "pack"
    packed(folder, out, facts)
    return out


def packed(source: Path, out: Path, facts: Path, **settings: int) -> PackReport:
    return write_pack(str(source), str(out), cache_dir=facts, **settings)


def outcome(root: Path, facts: Path, config: DataConfig) -> object:
    """The manifest, or what it is refused with, without the place."""
    config = dataclasses.replace(config, root=str(root))
    try:
        manifest = build_manifest(config, cache_dir=facts)
    except DataError as error:
        return str(error).replace(str(root), "ROOT")
    return manifest.classes, manifest.table.to_pydict(), manifest.notes, manifest.fingerprint()


SAME = ("golf", "judo", "polo")


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(),
        DataConfig(leaks="drop", classes=SAME, max_bad_fraction=0.1),
        DataConfig(leaks="allow", classes=SAME, max_bad_fraction=0.1, val="carve", val_fraction=0.3),
        DataConfig(leaks="allow", classes=SAME, max_bad_fraction=0.1, val="extra"),
        DataConfig(leaks="allow", classes=SAME, max_bad_fraction=0.1, test="extra"),
        DataConfig(leaks="allow", classes=SAME, train="extra"),
        DataConfig(classes=("golf*",)),
        DataConfig(leaks="drop", classes=SAME, max_bad_fraction=0.2, max_pixels=20_000),
        DataConfig(train="nothing"),
    ],
    ids=["refused", "drop", "carved", "other val", "other test", "other train", "classes", "max_pixels", "no train"],
)
def test_every_setting_sees_in_the_pack_what_it_sees_in_the_folder(
    folder: Path, pack: Path, facts: Path, config: DataConfig
) -> None:
    wanted = outcome(folder, facts, config)
    assert isinstance(wanted, tuple) == (config.leaks != "refuse")
    assert outcome(pack, facts, config) == wanted


def test_a_plain_folder_of_classes_and_a_list_are_packed_too(tmp_path: Path, facts: Path) -> None:
    plain = tree(tmp_path / "plain", ("",))
    write(plain / "loose.jpg", photo(99))
    rows = [f"plain/{name}/{number}.jpg,{name},{'test' if number > 2 else ''}" for name in SAME for number in range(4)]
    rows += [f"{tmp_path}/plain/golf/../loose.jpg,,test", *[f"plain/{name}/v.jpg,{name},val" for name in SAME]]
    for number, name in enumerate(SAME):
        write(plain / name / "v.jpg", photo(90 + number))
    write(tmp_path / "list.csv", "\n".join(["path,label,split", *rows]).encode())
    for source in (plain, tmp_path / "list.csv"):
        out = tmp_path / f"{source.stem}.pack"
        report = packed(source, out, facts)
        for config in (DataConfig(), DataConfig(val="carve", val_fraction=0.4)):
            mine = outcome(source, facts, config)
            assert isinstance(mine, tuple) and outcome(out, facts, config) == mine
        assert report.record.fingerprint == build_manifest(DataConfig(root=str(source)), cache_dir=facts).fingerprint()


def test_scan_finds_in_a_pack_what_it_finds_in_the_folder(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=4, per_class=8, size=48, dirty=True)
    write_pack(str(tmp_path / "set"), str(tmp_path / "pack"), cache_dir=tmp_path)
    reports = [scan(tmp_path / name, DataConfig(), cache_dir=tmp_path).as_dict() for name in ("set", "pack")]
    for report in reports:
        report["source"] = ""
    assert reports[0]["findings"] and reports[0] == reports[1]


def batches(manifest: Manifest, processes: int) -> list[Batch]:
    train, val = manifest.rows("train").num_rows, manifest.rows("val").num_rows
    asked = [Request("train", epoch, start, min(start + 5, train)) for epoch in (0, 1) for start in range(0, train, 5)]
    augment = AugmentConfig(policy="rand-m7-n2", color_jitter=0.3, crop_scale=(0.2, 1.0))
    asked.insert(2, Request("val", -1, 0, val))
    with stream(manifest, DataConfig(cache_gb=0), augment, SPEC, 7, asked, processes) as coming:
        return list(coming)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a.images, b.images) and torch.equal(a.rows, b.rows) for a, b in pairs)


def test_the_stream_has_the_bits_of_the_folder(folder: Path, pack: Path, facts: Path) -> None:
    config = DataConfig(leaks="drop", classes=SAME, max_bad_fraction=0.1)
    theirs, mine = (
        build_manifest(dataclasses.replace(config, root=str(root)), cache_dir=facts) for root in (folder, pack)
    )
    wanted = batches(theirs, 0)
    assert len(wanted) > 6 and equal(batches(mine, 0), wanted) and equal(batches(mine, 2), wanted)


def test_a_smaller_pack_is_the_folder_of_its_own_files(tmp_path: Path, facts: Path) -> None:
    """Larger photographs come out upright with the short side that was asked for; smaller ones keep their bytes."""
    root = tree(tmp_path / "set")
    for number, shape in enumerate([(200, 90), (90, 200), (333, 500)]):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(root / f"train/golf/large {number}.jpg", exif=exif)
    write(root / "train/golf/large.png", (root / "train/golf/large 0.jpg").read_bytes())
    packed(root, tmp_path / "pack", facts, short_side=64)
    files = open_files(str(tmp_path / "pack"))
    manifest = build_manifest(DataConfig(root=str(tmp_path / "pack")))
    for row in manifest.table.to_pylist():
        data = files.read(row["path"])
        write(tmp_path / "unpacked" / row["path"], data)
        assert (data == (root / row["path"]).read_bytes()) != ("large" in row["path"])
    sizes = {row["path"]: (row["width"], row["height"]) for row in manifest.table.to_pylist() if "large" in row["path"]}
    name = "train/golf/large"
    assert sizes == {
        f"{name} 0.jpg": (142, 64),
        f"{name} 1.jpg": (64, 142),
        f"{name} 2.jpg": (64, 96),
        f"{name}.png": (142, 64),
    }
    again = build_manifest(DataConfig(root=str(tmp_path / "unpacked")), cache_dir=tmp_path)
    assert again.fingerprint() == manifest.fingerprint() != build_manifest(DataConfig(root=str(root))).fingerprint()
    assert equal(batches(again, 0), batches(manifest, 0))


def test_a_pack_is_packed_again_with_the_same_result(folder: Path, pack: Path, facts: Path, tmp_path: Path) -> None:
    for settings in ({"shard_mb": 1}, {"shard_mb": 1, "short_side": 40}):
        packed(folder, tmp_path / "straight", facts, **settings)
        packed(pack, tmp_path / "twice", facts, **settings)
        assert content(tmp_path / "straight") == content(tmp_path / "twice")
        shutil.rmtree(tmp_path / "straight")
        shutil.rmtree(tmp_path / "twice")


def test_shards_are_plain_arrow_files_that_can_be_mapped(folder: Path, pack: Path) -> None:
    with pa.memory_map(str(pack / "shards/00000.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.column_names == ["id", "path", "label", "split", "sha256", "width", "height", "image"]
        rows = table.to_pylist()
    assert [row["id"] for row in rows] == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file()
    )
    for row in rows:
        assert row["image"] == (folder / row["path"]).read_bytes()
        assert hashlib.sha256(row["image"]).hexdigest() == row["sha256"]


def content(pack: Path) -> dict[str, bytes]:
    return {str(path.relative_to(pack)): path.read_bytes() for path in sorted(pack.rglob("*")) if path.is_file()}


def test_only_its_own_packing_goes_on_and_nothing_else_is_overwritten(
    folder: Path, facts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    assert packed(folder, out, facts).made == 1 and packed(folder, out, facts).made == 0
    before = content(out)
    with pytest.raises(DataError, match="a pack of other photographs or settings.*another folder"):
        packed(folder, out, facts, short_side=32)
    assert content(out) == before
    with pytest.raises(DataError, match="a folder that holds extra"):
        packed(folder, folder, facts)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "broken.jpg").symlink_to("nowhere")
    with pytest.raises(DataError, match="files that cannot be read; got odd/broken.jpg .*No such file"):
        packed(tmp_path, tmp_path / "other", facts)


@pytest.mark.parametrize("storage", ["folder", "objects"])
def test_packing_again_clears_its_own_remains_and_nothing_of_the_users(
    folder: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    out = tmp_path / "pack"
    packed(folder, out, facts)
    if storage == "objects":  # what runs through pyarrow here is the code that runs on s3:// and gs://
        there = ArrowStorage(LocalFileSystem(), str(out), str(out))
        monkeypatch.setattr(pack_write, "open_storage", lambda uri: there)
    before = content(out)
    remains = ("shards/00001.arrow", "parts/00000.arrow", ".PACK.json.0f.tmp", "shards/.00000.arrow.0f.tmp")
    kept = ("README.md", "results.csv", "shards/notes.txt", "shards/1.arrow", "00007.arrow", "own/00000.arrow")
    for name in (*remains, *kept):
        write(out / name, b"it")
    assert packed(folder, out, facts).made == 0
    assert content(out) == {**before, **dict.fromkeys(kept, b"it")} and not (out / "parts").exists()
    write(out / "parts" / "of a poem.txt", b"it")
    write(out / "parts" / "00000.arrow", b"it")
    packed(folder, out, facts)
    assert [path.name for path in (out / "parts").iterdir()] == ["of a poem.txt"]


def test_damage_is_named_and_never_trained_on(folder: Path, facts: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "pack", facts)
    shard, index, record = (tmp_path / "pack" / name for name in ("shards/00000.arrow", "index.arrow", "PACK.json"))
    files = open_files(str(tmp_path / "pack"))
    with pytest.raises(FileNotFoundError):
        files.read("train/golf/nobody.jpg")
    for path, match in ((index, "index.arrow.* is damaged"), (record, "no pack; got a damaged record")):
        kept = path.read_bytes()
        path.write_bytes(kept[:2000] + bytes([kept[2000] ^ 1]) + kept[2001:] if len(kept) > 2000 else kept[:-9])
        with pytest.raises(DataError, match=match):
            open_again(tmp_path / "pack")
        path.write_bytes(kept)
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-1])
    with pytest.raises(DataError, match="shards/00000.arrow; got .* bytes; wanted .*pack the photographs again"):
        open_again(tmp_path / "pack").read("root.jpg")
    shard.write_bytes(kept[:50_000] + bytes([kept[50_000] ^ 1]) + kept[50_001:])
    with pytest.raises(DataError, match="shards/00000.arrow is damaged; got sha256"):
        scan(tmp_path / "pack", DataConfig())


def open_again(pack: Path):  # type: ignore[no-untyped-def]
    """Another place is another pack to a process that has opened it."""
    copy = pack.with_name(f"copy {len(list(pack.parent.iterdir()))}")
    shutil.copytree(pack, copy)
    return open_pack(str(copy))


def test_a_pack_of_100_000_opens_at_once_and_costs_no_memory_for_each(pack: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "large", 100_000)
    record = open_pack(str(tmp_path / "large")).record
    assert record.images == 100_000 and PackRecord.from_bytes(record.to_bytes(), "it") == record
    seconds, size = opened(pack, tmp_path / "large")
    assert seconds < 5  # how fast it is: `sports-ray bench`; a look at each photograph takes longer
    assert size < 4e6  # 40 bytes a photograph, of the allocator's; a path alone takes 100
