"""The photographs that a bench reads: the user's, or a drawn set."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
from PIL import Image

from sports_ray.bench.figure import Say
from sports_ray.config import DataConfig
from sports_ray.data.demo import draw_demo
from sports_ray.data.files import open_files
from sports_ray.data.manifest import Manifest, build_manifest


def photographs(data: str, folder: Path, size: int, per_class: int, say: Say) -> Path:
    """`data` where it is given, else a set of eight sports drawn into `folder`, `size` px."""
    if data:
        return Path(data)
    say(f"drawing {8 * (per_class + 2 * max(1, per_class // 4)):,} photographs of {size} px")
    draw_demo(folder / "photographs", classes=8, per_class=per_class, size=size)
    return folder / "photographs"


def listed(root: Path, folder: Path) -> Manifest:
    """The manifest of a set; leaks between its splits do not matter to a clock."""
    return build_manifest(DataConfig(root=str(root), leaks="allow"), cache_dir=folder / "facts")


def enlarged(manifest: Manifest, folder: Path, count: int, width: int = 1024, height: int = 768) -> Manifest:
    """At most `count` training photographs, blown up to width x height px, as JPEGs of quality 90 in `folder`."""
    folder.mkdir(parents=True)
    files = open_files(manifest.root)
    rows = manifest.rows("train")
    count = min(count, rows.num_rows)
    chosen = rows.take([index * rows.num_rows // count for index in range(count)])
    names = [f"{index:05d}.jpg" for index in range(chosen.num_rows)]
    for name, path in zip(names, chosen.column("path").to_pylist(), strict=True):
        with Image.open(io.BytesIO(files.read(path))) as image:
            large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        large.save(folder / name, quality=90)
    columns = {
        "path": pa.array(names),
        "width": pa.array([width] * len(names), pa.int32()),
        "height": pa.array([height] * len(names), pa.int32()),
    }
    for key, column in columns.items():
        chosen = chosen.set_column(chosen.column_names.index(key), key, column)
    return Manifest(str(folder), manifest.classes, chosen)


def linked(manifest: Manifest, folder: Path, count: int, split: str = "train", repeat: bool = False) -> Path:
    """At most `count` training photographs, evenly chosen, as links (of a pack: files) in a tree SPLIT/CLASS/FILE that all
    sides read. repeat: exactly `count`; where there are fewer, they come again."""
    files = open_files(manifest.root)
    rows = manifest.rows("train")
    count = count if repeat else min(count, rows.num_rows)
    chosen = rows.take([index * rows.num_rows // count for index in range(count)])
    pairs = zip(chosen.column("path").to_pylist(), chosen.column("label").to_pylist(), strict=True)
    for index, (path, label) in enumerate(pairs):
        link = folder / split / f"{label:05d}" / f"{index:07d}{Path(path).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        original = Path(manifest.root) / path
        if original.exists():
            link.symlink_to(original)
        else:
            link.write_bytes(files.read(path))
    return folder
