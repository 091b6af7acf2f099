"""A folder as torchvision's ImageFolder takes it is the same data here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from sports_ray.config import DataConfig
from sports_ray.data.manifest import build_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with names that sort in their own way, several formats, and folders within folders."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for number, name in enumerate(["Zumba", "archery", "ice hockey", "10 m dive", "Äquatorlauf"]):
        for row in range(4):
            place = root / name / ("deeper/still" if row == 3 else "")
            place.mkdir(parents=True, exist_ok=True)
            suffix = [".jpg", ".png", ".JPEG", ".bmp"][row]
            Image.fromarray(rng.integers(0, 256, (40 + number, 40, 3), dtype=np.uint8)).save(place / f"{row}{suffix}")
    return root


@pytest.mark.parametrize("split", ["", "train"])
def test_classes_labels_and_files_are_image_folders(split: str, folder: Path, tmp_path: Path) -> None:
    root = folder
    if split:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / split).symlink_to(folder)
        root = tmp_path / "photos"
    theirs = ImageFolder(str(root / split))
    manifest = build_manifest(DataConfig(root=str(root)), cache_dir=tmp_path)
    assert list(manifest.classes) == theirs.classes
    rows = manifest.table.to_pylist()
    ours = {str(root / row["path"]): row["label"] for row in rows}
    assert ours == dict(theirs.samples) and len(ours) == 20
    assert {row["split"] for row in rows} == {"train", "val"}
