"""CIFAR-10's files as its authors wrote them: pickles of Python 2, instruction by instruction, and the binary ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
Photographs = dict[str, tuple[NDArray[np.uint8], list[int]]]


def drawn(images: int = 20) -> Photographs:
    """For each file pixels uint8 [images, 3, 32, 32] and labels; no two photographs are alike."""
    rng = np.random.default_rng(10)
    found: Photographs = {}
    for number, name in enumerate(SPLITS):
        pixels = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
        found[name] = pixels, [(number + row) % 10 for row in range(images)]
    return found


def write_python(folder: Path, photographs: Photographs) -> Path:
    """cifar-10-batches-py, by protocol 2 of Python 2's cPickle."""
    folder.mkdir(parents=True)
    for number, (name, (pixels, labels)) in enumerate(photographs.items(), 1):
        batch = {
            "batch_label": "testing batch 1 of 1" if name == "test_batch" else f"training batch {number} of 5",
            "labels": labels,
            "data": pixels.reshape(len(pixels), -1),
            "filenames": [f"{CLASSES[label]}_s_{row:06d}.png" for row, label in enumerate(labels)],
        }
        (folder / name).write_bytes(python2(batch))
    meta = {"num_cases_per_batch": 10000, "label_names": list(CLASSES), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2(meta))
    (folder / "readme.html").write_text("<meta HTTP-EQUIV='REFRESH' content='0; url=…'>\n")
    return folder


def write_binary(folder: Path, photographs: Photographs) -> Path:
    """cifar-10-batches-bin."""
    folder.mkdir(parents=True)
    for name, (pixels, labels) in photographs.items():
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(len(pixels), -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def python2(value: Any) -> bytes:
    """What cPickle.dumps(value, 2) of Python 2 gives for dicts, lists, str, int and arrays of uint8."""
    memo = iter(range(1, 1 << 30))

    def put() -> bytes:
        number = next(memo)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(word: bytes) -> bytes:
        head = b"U" + bytes([len(word)]) if len(word) < 256 else b"T" + struct.pack("<I", len(word))
        return head + word + put()

    def whole(number: int) -> bytes:
        if 0 <= number < 256:
            return b"K" + bytes([number])
        return b"M" + struct.pack("<H", number) if 0 <= number < 65536 else b"J" + struct.pack("<i", number)

    def array(rows: NDArray[np.uint8]) -> bytes:
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        made += b"K\x00\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
        kind = b"cnumpy\ndtype\n" + put() + text(b"u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
        kind += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
        shape = b"".join(map(whole, rows.shape)) + b"\x86" + put()
        return made + b"(K\x01" + shape + kind + b"\x89" + text(rows.tobytes()) + b"t" + put() + b"b"

    def dump(one: Any) -> bytes:
        if isinstance(one, dict):
            return b"}" + put() + b"(" + b"".join(dump(key) + dump(item) for key, item in one.items()) + b"u"
        if isinstance(one, list):
            return b"]" + put() + b"(" + b"".join(map(dump, one)) + b"e"
        by_kind: dict[type, Callable[[Any], bytes]] = {
            str: lambda word: text(word.encode()),
            int: whole,
            np.ndarray: array,
        }
        return by_kind[type(one)](one)

    return b"\x80\x02" + dump(value) + b"."
