"""What an exported file says of itself: one JSON object that stands in the file and holds all that is needed to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sports_ray import __version__
from sports_ray.predict.member import Member

KEY = "sports_ray"
"""Name of the description in a file: a key of its metadata, or the name before .json of a file inside it."""
FILE = f"{KEY}.json"
INPUT, OUTPUT = "images", "logits"


def describe(member: Member, sidecar: Mapping[str, Any], part: str, dynamic: bool) -> dict[str, Any]:
    """The description of a member's weights; `part`: ema or model, `dynamic`: whether a batch may have any size.

    `sidecar` is the record beside the weights; thresholds of a model with several labels an image are taken from it."""
    spec = member.spec
    batch = "batch" if dynamic else 1
    about: dict[str, Any] = {
        "made_by": f"sports-ray {__version__}",
        "run": member.name,
        "model": member.model,
        "weights": {"kind": member.kind, "part": part, "step": sidecar.get("step"), "sha256": member.sha256},
        "scores": dict(sidecar.get("scores", {})),
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "layout": "NCHW",
            "shape": [batch, 3, spec.eval_size, spec.eval_size],
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [batch, len(member.classes)]},
        "activation": "sigmoid" if "thresholds" in sidecar else "softmax",
        "classes": list(member.classes),
        "preprocessing": {
            "colours": "RGB",
            "resize": math.floor(spec.eval_size / spec.crop_pct),
            "size": spec.eval_size,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "interpolation": spec.interpolation,
            "scale": 255,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
    }
    if "thresholds" in sidecar:
        about["thresholds"] = sidecar["thresholds"]
    return json.loads(to_json(about))  # type: ignore[no-any-return]  # as it is read back: lists, no tuples


def to_json(about: Mapping[str, Any]) -> str:
    return json.dumps(about, ensure_ascii=False, sort_keys=True)
