"""An evaluation's folder that nobody predicted: made-up probabilities, scored by the real scorer, with drawn photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sports_ray.data.demo import class_names, encoded
from sports_ray.score.evaluate import Candidate, evaluate_predictions

DRAWN = "basketball"
"""What the photographs of classes show that the demo set cannot draw."""


def made_up(
    folder: Path, classes: int | Sequence[str] = 102, each: int = 12, seed: int = 0, photographs: bool = True
) -> dict[str, Any]:
    """Writes scores.json, predictions.parquet and the photographs that a page shows below `folder`; returns the scores.

    Two members, their view choices and an ensemble. Classes of one sport are taken for each other more than others;
    rare ones are harder; one is never recognised and some always are; two files cannot be read."""
    names = list(class_names(classes)) if isinstance(classes, int) else list(classes)
    rng = np.random.default_rng(seed)
    frequency = rng.integers(5, 180, len(names))
    labels = np.repeat(np.arange(len(names)), rng.integers(max(1, each // 2), 2 * each, len(names)))
    rng.shuffle(labels)
    columns = _columns(names, labels, frequency, rng)
    bad = np.zeros(len(labels), dtype=bool)
    bad[[1, 5]] = True
    weights = {"convnext": 0.62, "swin": 0.38}
    candidates = [
        *(Candidate(name=name, kind="member", tta="hflip") for name in weights),
        *(Candidate(name=f"{name}/none", kind="view") for name in weights),
        Candidate(name="ensemble", kind="ensemble", tta="hflip", weights=weights, temperature=1.31),
    ]
    scored = np.where(bad, -1, labels)
    scores = evaluate_predictions(
        columns, scored, names, candidates=candidates, best_single="convnext/none", train_images=frequency
    )
    paths = [f"test/{index // 100:03d}/{index:05d}.jpg" for index in range(len(labels))]
    errors = ["truncated JPEG: 50 of 4,211 bytes" if broken else None for broken in bad]
    _write_predictions(folder, columns, paths, labels, errors, names)
    record = {
        "format": 1,
        "data": {
            "root": str(folder / "photographs"), "split": "test", "fingerprint": "5d0c7a91" * 8, "images": len(labels),
            "bad": [{"path": paths[i], "error": errors[i]} for i in np.flatnonzero(bad)],
        },
        "classes": names,
        "members": [{"name": name, "run": str(folder.parent / "runs" / name)} for name in weights],
        **scores,
        "merge": {"asked": "fit", "used": "fit", "reason": "lower loss on validation in 5 of 5 folds, p = 0.002"},
        "versions": {"sports-ray": "0.1.0", "python": "3.11.7", "torch": "2.14.1", "timm": "1.0.31"},
        "command": ["sports-ray", "eval-ensemble", "--data", "photos of sports", "--run", "convnext", "--run", "swin",
                    "--tta", "hflip", "--weights", "fit"],
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(record))
    if photographs:
        _draw(folder / "photographs", record, paths, labels, names)
    return record


def _columns(names: list[str], labels: np.ndarray, frequency: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Probabilities float32 [N, K] by column."""
    sport = np.array([sum(map(ord, name.split()[-1])) for name in names])
    alike = (sport[:, None] == sport[None]) & ~np.eye(len(names), dtype=bool)
    skill = 3.4 + 1.3 * np.log(frequency / 40) + rng.normal(0, 1, len(names))
    skill[0], skill[1 : len(names) // 6 + 1] = -9.0, 14.0
    shared = rng.normal(0, 1, (len(labels), len(names)))
    found: dict[str, Any] = {}
    logits = {}
    for member, noise in (("convnext", 1.2), ("swin", 1.35)):
        logits[member] = skill[labels][:, None] * np.eye(len(names))[labels] + 1.7 * alike[labels]
        logits[member] = logits[member] + shared + noise * rng.normal(0, 1, shared.shape)
        plain = logits[member] + 0.5 * rng.normal(0, 1, shared.shape)
        found[member], found[f"{member}/none"] = _softmax(1.6 * logits[member]), _softmax(1.6 * plain)
    found["ensemble"] = 0.62 * found["convnext"] + 0.38 * found["swin"]
    order = ["convnext", "swin", "convnext/none", "swin/none", "ensemble"]
    return {name: found[name].astype(np.float32) for name in order}


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _write_predictions(
    folder: Path,
    columns: dict[str, Any],
    paths: list[str],
    labels: np.ndarray,
    errors: list[str | None],
    names: list[str],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "id": pa.array(range(len(paths)), pa.int64()), "path": pa.array(paths),
        "label": pa.array(labels.tolist(), pa.int32()), "error": pa.array(errors, pa.string()),
    }  # fmt: skip
    for name, table in columns.items():
        rows = [None if error else row for row, error in zip(table.tolist(), errors, strict=True)]
        data[name] = pa.array(rows, pa.list_(pa.float32()))
    table = pa.table(data).replace_schema_metadata({"classes": json.dumps(names)})
    pq.write_table(table, folder / "predictions.parquet")


def _draw(root: Path, record: dict[str, Any], paths: list[str], labels: np.ndarray, names: list[str]) -> None:
    """The photographs that the page asks for; one of them is missing, and one damaged."""
    wanted = [one["id"] for one in record["worst"]] + [i for pair in record["confused_pairs"] for i in pair["ids"][:4]]
    known = set(class_names(128))
    for index in dict.fromkeys(wanted[1:]):
        name = names[labels[index]]
        path = root / paths[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(name if name in known else DRAWN, 160, Random(index)))
    damaged = root / paths[wanted[2]]
    damaged.write_bytes(damaged.read_bytes()[:300])
