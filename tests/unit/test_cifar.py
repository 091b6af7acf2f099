"""CIFAR-10 from its authors' files: every pixel and label, and nothing that a file says is ever run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.cifar_file import read_class_names, read_python_batch, read_values
from sports_ray.data.decode import decode
from sports_ray.data.files import open_files
from sports_ray.data.loader import stream
from sports_ray.data.manifest import build_manifest
from sports_ray.data.order import Request
from sports_ray.data.pack_write import write_pack
from sports_ray.data.scan import scan
from sports_ray.errors import DataError
from tests.support.cifar import CLASSES, SPLITS, drawn, python2, write_binary, write_python

DRAWN = drawn()
BATCH: dict[str, Any] = {"labels": DRAWN["test_batch"][1], "data": DRAWN["test_batch"][0].reshape(20, -1)}


@pytest.fixture(scope="module", params=["py", "bin"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar") / f"cifar-10-batches-{request.param}"
    return (write_python if request.param == "py" else write_binary)(root, DRAWN)


def test_the_format_is_that_of_python_2(tmp_path: Path) -> None:
    """What the support writes is what pickle reads: a dict with an array, whatever our reader makes of it."""
    batch = pickle.loads(python2(BATCH), encoding="bytes")
    assert batch[b"labels"] == BATCH["labels"] and np.array_equal(batch[b"data"], BATCH["data"])
    assert batch[b"data"].dtype == np.uint8 and python2(BATCH)[:3] == b"\x80\x02}"


def test_every_photograph_has_its_pixels_class_and_split(folder: Path, tmp_path: Path) -> None:
    manifest = build_manifest(DataConfig(root=str(folder), val_fraction=0.2), cache_dir=tmp_path)
    assert manifest.classes == CLASSES and manifest.table.num_rows == 120
    files, seen = open_files(manifest.root), set()
    for row in manifest.table.to_pylist():
        split, name, file = row["path"].split("/")
        batch, number = file.removesuffix(".bmp").rsplit("-", 1)
        pixels, labels = DRAWN[batch]
        found = decode(files.read(row["path"]), max_pixels=10_000)
        assert np.array_equal(found.numpy(), pixels[int(number)])
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(files.read(row["path"])))), found.permute(1, 2, 0).numpy()
        )
        assert CLASSES[labels[int(number)]] == name == manifest.classes[row["label"]]
        assert split == SPLITS[batch] and (row["split"] == "test") == (split == "test")
        assert (row["width"], row["height"]) == (32, 32)
        seen.add((batch, int(number)))
    assert len(seen) == 120
    assert {row["split"] for row in manifest.table.to_pylist()} == {"train", "val", "test"}


def test_both_versions_and_the_pack_are_the_same_photographs(tmp_path: Path) -> None:
    roots = [write_python(tmp_path / "py", DRAWN), write_binary(tmp_path / "bin", DRAWN)]
    write_pack(str(roots[0]), str(tmp_path / "packed"), cache_dir=tmp_path)
    prints = {
        build_manifest(DataConfig(root=str(root)), cache_dir=tmp_path).fingerprint()
        for root in (*roots, tmp_path / "packed")
    }
    assert len(prints) == 1


def test_the_loader_reads_them_in_processes_of_its_own(folder: Path, tmp_path: Path) -> None:
    data = DataConfig(root=str(folder), cache_gb=0)
    manifest = build_manifest(data, cache_dir=tmp_path)
    spec = ImageSpec(
        train_size=32,
        eval_size=32,
        crop_pct=1.0,
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    with stream(
        manifest, data, AugmentConfig(crop="squash", hflip=0), spec, 0, [Request("train", 0, 0, 16)], 1
    ) as batches:
        batch = next(batches)
    rows = manifest.rows("train").take(batch.rows.numpy())
    assert batch.labels.tolist() == rows.column("label").to_pylist()
    for image, path in zip(batch.images, rows.column("path").to_pylist(), strict=True):
        name, number = path.split("/")[2].removesuffix(".bmp").rsplit("-", 1)
        assert torch.equal(image, torch.from_numpy(DRAWN[name][0][int(number)]))


def test_a_scan_finds_nothing_grave_and_unknown_names_are_no_files(folder: Path, tmp_path: Path) -> None:
    report = scan(str(folder), DataConfig(root=str(folder)), cache_dir=tmp_path)
    assert report.splits == {"train": 100, "test": 20} and report.formats == {"bmp": 120} and report.findings == ()
    files = open_files(str(folder))
    for wrong in ("train/airplane/data_batch_9-00000.bmp", "test/../data_batch_1", "train/frog/data_batch_1-00000.bmp"):
        assert files.state(wrong).size == -1
        with pytest.raises(FileNotFoundError):
            files.read(wrong)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_copies_that_python_3_wrote_are_read_too(protocol: int, tmp_path: Path) -> None:
    for batch in (BATCH, {key.encode(): value for key, value in BATCH.items()}):
        (tmp_path / "batch").write_bytes(pickle.dumps(batch, protocol))
        found = read_python_batch(tmp_path / "batch")
        assert np.array_equal(found.pixels, DRAWN["test_batch"][0]) and found.labels == BATCH["labels"]


def test_an_array_in_fortran_order_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps({**BATCH, "data": np.asfortranarray(BATCH["data"])}, 2))
    assert np.array_equal(read_python_batch(tmp_path / "batch").pixels, DRAWN["test_batch"][0])


class _Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


MARK = "touched"
EVIL: dict[str, bytes] = {
    "os.system": pickle.dumps({**BATCH, "x": _Runs(os.system, f"touch {MARK}")}, 2),
    "protocol 4": pickle.dumps({**BATCH, "x": _Runs(os.system, f"touch {MARK}")}, 4),
    "eval": pickle.dumps({**BATCH, "x": _Runs(eval, f"open('{MARK}', 'w')")}, 2),
    "subprocess": pickle.dumps({**BATCH, "x": _Runs(subprocess.call, ["touch", MARK])}, 3),
    "getattr": pickle.dumps(_Runs(getattr, "x", "y"), 2),
    "numpy's load": b"\x80\x02cnumpy\nload\n" + b"U\x01x\x85R.",
    "numpy's core": b"\x80\x02cnumpy.core.multiarray\nfromfile\nU\x01x\x85R.",
    "codecs": b"\x80\x02c_codecs\nlookup\nU\x01x\x85R.",
    "a name below a name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "encode of a callable": b"\x80\x02c_codecs\nencode\ncos\nsystem\nU\x06latin1\x86R.",
    "inst": b"(S'touch touched'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nU\rtouch touched" + b"o.",
    "newobj": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "build of a dict": b"\x80\x02}U\x01aU\x01bs}b.",
    "build on a name": b"\x80\x02cnumpy\nndarray\n}U\x01aU\x01bsb.",
    "an extension code": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02U\x01xQ.",
    "object array": pickle.dumps({"data": np.array([{}, _Runs(os.system, f"touch {MARK}")], object)}, 2),
}


@pytest.mark.parametrize("name", EVIL)
def test_what_would_need_code_to_run_is_refused_and_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="refused, nothing of it was run; got .*; wanted lists, texts and arrays"):
        read_values(EVIL[name], "data_batch_1")
    assert not Path(MARK).exists()


def test_the_reader_never_imports_pickle_s_machine_nor_what_a_file_names() -> None:
    """In a new interpreter in which unpickling and importing by a file's wish would be seen."""
    program = (
        "import sys, pickle\n"
        "def no(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.loads = pickle.load = pickle.Unpickler = pickle._Unpickler = no\n"
        "from sports_ray.data.cifar_file import read_values\n"
        "data = sys.stdin.buffer.read()\n"
        "before = set(sys.modules)\n"
        "try:\n    read_values(data, 'x')\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
        "print(sorted(set(sys.modules) - before))"
    )
    content = b"\x80\x02cantigravity\nfly\n" + b")R."
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().split("\n")[:2] == ["DataError", "[]"]


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut short": python2(BATCH)[:-5000],
    "no end": python2(BATCH)[:-1],
    "text": b"<html>404</html>",
    "a length beyond the file": b"\x80\x02T" + struct.pack("<I", 1 << 31) + b"x.",
    "no mark": b"\x80\x02}u.",
    "nothing on the stack": b"\x80\x02s.",
    "an unknown memo": b"\x80\x02h\x07.",
    "append to a dict": b"\x80\x02}K\x01a.",
    "odd items": b"\x80\x02}(K\x01u.",
    "a shape that does not fit": python2(BATCH).replace(b"K\x14M\x00\x0c\x86", b"K\x15M\x00\x0c\x86"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_error(name: str) -> None:
    with pytest.raises(DataError, match="data_batch_1: (damaged|refused)"):
        read_values(DAMAGED[name], "data_batch_1")


def test_any_cut_and_any_flipped_byte_gives_values_or_one_clear_error(tmp_path: Path) -> None:
    small = {"labels": [1, 2], "data": np.zeros((2, 4), np.uint8), "filenames": ["a", "b"]}
    content, rng = python2(small), np.random.default_rng(0)
    changed = [content[:place] for place in range(len(content))]
    for place in range(len(content)):
        other = bytearray(content)
        other[place] ^= int(rng.integers(1, 256))
        changed.append(bytes(other))
    refused = 0
    for one in changed:
        (tmp_path / "batch").write_bytes(one)
        with pytest.raises(DataError):  # [2, 4] is no batch of CIFAR-10, whatever was flipped
            read_python_batch(tmp_path / "batch")
        refused += 1
    assert refused == 2 * len(content)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({**BATCH, "labels": [0] * 19}, "labels: 19 of them"),
        ({**BATCH, "labels": [0] * 19 + [10]}, "labels; got 10; wanted whole numbers from 0 to 9"),
        ({**BATCH, "labels": [0] * 19 + ["1"]}, "labels; got str"),
        ({**BATCH, "data": BATCH["data"][:, :100].copy()}, r"data: uint8 \[20, 100\]"),
        ({"labels": [1]}, "data: NoneType"),
    ],
)
def test_a_batch_that_is_none_of_cifar_is_refused(batch: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(python2(batch))
    with pytest.raises(DataError, match=said):
        read_python_batch(tmp_path / "batch")


def test_a_key_that_takes_for_ever_to_be_hashed_is_refused() -> None:
    nested = b"\x80\x02}U\x01x" + b"\x85q\x01h\x01\x86" * 20 + b"Ns."
    with pytest.raises(DataError, match="a key that is no text"):
        read_values(nested, "x")


def test_the_pixels_are_read_once_and_again_when_a_file_has_changed(tmp_path: Path) -> None:
    root = write_binary(tmp_path / "bin", DRAWN)
    before = open_files(str(root))
    path = "test/dog/test_batch-00000.bmp"
    assert open_files(str(root)) is before and before.read(path)
    content = bytearray((root / "test_batch.bin").read_bytes())
    content[1] ^= 255
    (root / "test_batch.bin").write_bytes(content)
    os.utime(root / "test_batch.bin", ns=(1, 1))
    assert open_files(str(root)).read(path) != before.read(path)


def test_a_binary_file_that_was_cut_and_missing_files_are_refused(tmp_path: Path) -> None:
    root = write_binary(tmp_path / "bin", DRAWN)
    whole = (root / "data_batch_3.bin").read_bytes()
    (root / "data_batch_3.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="data_batch_3.bin: no batch of CIFAR-10; got 61,459 bytes"):
        build_manifest(DataConfig(root=str(root)), cache_dir=tmp_path)
    for name in SPLITS:
        (root / f"{name}.bin").unlink()
    with pytest.raises(DataError, match="got no data_batch_1 to 5"):
        build_manifest(DataConfig(root=str(root)), cache_dir=tmp_path)
    (root / "batches.meta.txt").write_text("a/b\n" * 10)
    with pytest.raises(DataError, match="names of the classes"):
        read_class_names(root)
