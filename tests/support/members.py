"""Members without a training: run folders with drawn weights, and photographs to predict, made in milliseconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from sports_ray.config import ModelConfig
from sports_ray.data.manifest import Manifest
from sports_ray.model.build import create, image_spec
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage

CLASSES = ("archery", "bowling", "golf", "water polo")


def make_member(
    store: Path,
    name: str,
    *,
    model: str = "test_resnet",
    classes: Sequence[str] = CLASSES,
    size: int = 32,
    seed: int = 0,
    val_acc1: float | None = None,
    manifest: Manifest | None = None,
    kind: str = "best",
) -> Path:
    """A run folder with weights drawn from `seed`; its logits differ from image to image. The folder."""
    torch.manual_seed(seed)
    built = create(ModelConfig(name=model), len(classes), size)
    with torch.no_grad():
        head = built.get_classifier()  # type: ignore[operator]
        head.weight.mul_(20.0)
    spec = image_spec(built, size)
    sidecar = {
        "model": model,
        "classes": list(classes),
        "step": 1,
        "epochs": 1,
        "weights": "model",
        "scores": {} if val_acc1 is None else {"val_acc1": val_acc1, "val_images": 100},
        "preprocessing": asdict(spec),
    }
    run_dir = RunDir.open(open_storage(str(store)), name)
    run_dir.publish_weights(kind, built.state_dict(), sidecar)
    if manifest is not None:
        run_dir.write_manifest(manifest.to_bytes())
    return store / name


def jpeg(seed: int, width: int = 44, height: int = 40) -> bytes:
    """A small photograph of a few soft blobs."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def photographs(folder: Path, count: int, split: str = "test", classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """`count` photographs of different sizes below folder/split/<class>/. The folder."""
    for number in range(count):
        place = folder / split / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        data = jpeg(seed * 1_000_003 + number, 36 + number % 17, 34 + number % 13)
        (place / f"{number:05d}.jpg").write_bytes(data)
    return folder


def listed(folder: Path, rows: Sequence[tuple[str, int, str]], classes: Sequence[str] = CLASSES) -> Manifest:
    """A manifest of (path below the folder, label, split), as training writes it."""
    import hashlib

    content = [(folder / path).read_bytes() for path, _, _ in rows]
    ordered = sorted(zip(rows, content, strict=True))
    table = pa.table(
        {
            "id": [row[0] for row, _ in ordered],
            "path": [row[0] for row, _ in ordered],
            "label": pa.array([row[1] for row, _ in ordered], pa.int32()),
            "split": [row[2] for row, _ in ordered],
            "sha256": [hashlib.sha256(data).hexdigest() for _, data in ordered],
            "width": pa.array([0] * len(rows), pa.int32()),
            "height": pa.array([0] * len(rows), pa.int32()),
        }
    )
    return Manifest(str(folder), tuple(classes), table)


def tree(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """Bytes of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern)) if path.is_file()}
