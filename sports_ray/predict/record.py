"""What scores.json says besides the scores: who was asked, on what, and with what."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.predict.columns import ENSEMBLE
from sports_ray.predict.member import Member, manifest_of
from sports_ray.predict.plan import FORMAT, Plan
from sports_ray.predict.work import Work
from sports_ray.score.evaluate import Candidate
from sports_ray.score.main_score import score_of
from sports_ray.score.merge import Merge
from sports_ray.store import weights
from sports_ray.store.storage import without_keys

PACKAGES = ("sports-ray", "torch", "timm", "numpy", "pyarrow", "pillow", "simplejpeg", "ray")


def candidates(plan: Plan, merge: Merge | None) -> list[Candidate]:
    """What the columns are: each member with the chosen views, then without any, then the ensemble."""
    found = [Candidate(name=member.name, kind="member", tta=plan.tta) for member in plan.members]
    if plan.tta != "none":
        found += [Candidate(name=f"{member.name}/none", kind="view") for member in plan.members]
    if merge is not None:
        shares = {name: float(weight) for name, weight in merge.weights.items()}
        temperature = float(merge.temperature)
        found.append(Candidate(name=ENSEMBLE, kind="ensemble", tta=plan.tta, weights=shares, temperature=temperature))
    return found


def best_single(plan: Plan) -> str | None:
    """The member with the best validation score in training, without views; None unless all were validated."""
    scores = {member.name: validated(member) for member in plan.members}
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < len(scores):
        return None
    best = max(known, key=known.__getitem__)
    return best if plan.tta == "none" else f"{best}/none"


def validated(member: Member) -> float | None:
    """Accuracy (multi-label: mAP) of the member's weights on its validation images, as training found it."""
    scores = (weights.describe(member.storage(), member.kind) or {}).get("scores", {})
    found = score_of(scores)
    return None if found is None else float(found)


def train_images(plan: Plan) -> NDArray[np.int64] | None:
    """Images of each class that the first member was trained on, [K]; None where its folder does not tell."""
    manifest = manifest_of(plan.members[0])
    if manifest is None or manifest.classes != plan.classes:
        return None
    return manifest.class_images("train")


def thresholds_of(plan: Plan, column: str, merge: Merge | None) -> NDArray[np.float64]:
    """From which probability on each class is predicted, [K]: the member's own, fitted on its validation images, whatever the
    views; of the ensemble the members' mean by their weights."""
    own = {member.name: np.array(member.thresholds) for member in plan.members}
    if column != ENSEMBLE or merge is None:
        return own[column if column in own else column.removesuffix("/none")]
    return np.sum([weight * own[name] for name, weight in merge.weights.items()], axis=0)


def chosen_thresholds(plan: Plan) -> NDArray[np.float64]:
    """Those of a prediction, [K]: of the only member, or of the uniform ensemble."""
    return np.mean([member.thresholds for member in plan.members], axis=0)


def merge_facts(plan: Plan, merge: Merge | None) -> dict[str, Any]:
    if merge is None:
        return {"asked": plan.weights, "used": "single", "reason": "one member", "weights": None, "temperature": None}
    shares = {name: float(weight) for name, weight in merge.weights.items()}
    return {**merge.describe(), "weights": shares, "temperature": float(merge.temperature)}


def facts(work: Work, errors: Sequence[str | None], unread: int) -> dict[str, Any]:
    """Photographs, members and the way they were predicted. `unread`: files that could be read only for a time."""
    plan = work.plan
    paths = plan.images.column("path")
    bad = [{"path": paths[row], "error": error} for row, error in enumerate(errors) if error is not None]
    return {
        "format": FORMAT,
        "digest": plan.digest,
        "data": {
            "source": without_keys(plan.data),
            "root": without_keys(plan.images.root),
            "split": plan.split,
            "fingerprint": plan.images.fingerprint(),
            "images": len(plan.images),
            "labelled": sum(label >= 0 for label in plan.images.column("label")),
            "bad": bad,
            "unread": unread,
            "notes": list(plan.notes),
        },
        "classes": list(plan.classes),
        "members": [_member(member) for member in plan.members],
        "tta": plan.tta,
        "average": plan.average,
        "device": work.device,
        "batch": work.batch,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what the bits depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _member(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "model": member.model,
        "run": member.storage().uri,
        "weights": member.kind,
        "sha256": member.sha256,
        "precision": member.precision,
        "preprocessing": member.preprocessing(),
        "val_map" if member.multilabel else "val_acc1": validated(member),
    }
