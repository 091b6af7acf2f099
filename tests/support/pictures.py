"""Pictures to transform, and what a model expects of them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from sports_ray.config import ImageSpec

FILL = (124, 116, 104)


def spec(**changes: object) -> ImageSpec:
    values: dict[str, object] = dict(train_size=96, eval_size=96, crop_pct=0.875, crop_mode="center")
    values |= dict(interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return ImageSpec(**(values | changes))  # type: ignore[arg-type]


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise at several scales: edges, flat parts and texture, as in a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (16, 0.3), (64, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.NEAREST))
    return Image.fromarray(total.astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
