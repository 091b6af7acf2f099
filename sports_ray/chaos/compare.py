"""What two finished runs must have in common, to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sports_ray.errors import SportsRayError
from sports_ray.store.commit import Commit, newest
from sports_ray.store.storage import open_storage

FILES = (
    "weights/last.safetensors",
    "weights/last.json",
    "weights/best.safetensors",
    "weights/best.json",
    "metrics.jsonl",
)


def differences(unbroken: Path, other: Path) -> list[str]:
    """What differs, in words; empty if the runs are equal: weights, scores, and the newest checkpoint with its state.

    The checkpoint's optimiser, EMA and model are compared by the sha256 that has just been verified. Attempt numbers
    and clocks are no part of it.
    """
    found = [words for name in FILES if (words := _file_differs(unbroken / name, other / name, name))]
    try:
        first, second = (_newest(run) for run in (unbroken, other))
    except SportsRayError as error:
        return [*found, str(error)]
    return found + [f"checkpoint: {part}" for part in first if first[part] != second.get(part)]


def _file_differs(path: Path, other: Path, name: str) -> str:
    try:
        same = path.read_bytes() == other.read_bytes()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return "" if same else name


def _newest(run: Path) -> dict[str, Any]:
    commit, passed_over = newest(open_storage(str(run)))
    parts: dict[str, Any] = {"damaged ones": passed_over, "step": commit.step if commit else None}
    return {**parts, **_contents(commit)} if commit else parts


def _contents(commit: Commit) -> dict[str, Any]:
    return {"state": commit.state, **{name: entry["sha256"] for name, entry in commit.files.items()}}
