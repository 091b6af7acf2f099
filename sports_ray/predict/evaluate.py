"""The whole of an evaluation: compute what is missing, prove that each image is there once, merge, score, write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.data.label_sets import matrix
from sports_ray.errors import SportsRayError, TrainingError
from sports_ray.predict.blocks import sweep
from sports_ray.predict.columns import ENSEMBLE, SPACES, Table, Tables
from sports_ray.predict.images import Images, manifest_split
from sports_ray.predict.member import manifest_of
from sports_ray.predict.plan import Plan
from sports_ray.predict.record import best_single, candidates, facts, merge_facts, thresholds_of, train_images
from sports_ray.predict.run import OnProgress
from sports_ray.predict.work import Compute, Sink, Work
from sports_ray.predict.write import PREDICTIONS, PredictionsFile, write_scores
from sports_ray.score.evaluate import evaluate_predictions
from sports_ray.score.evaluate_multilabel import evaluate_multilabel
from sports_ray.score.merge import Merge, fit_merge, uniform

if TYPE_CHECKING:
    from sports_ray.score.breakdown import Groups

OVERLAP = 0.05
"""Share of the scored photographs that may be validation images, where weights are fitted on those."""


def evaluate(
    plan: Plan, compute: Compute, on_progress: OnProgress, command: Sequence[str], *, batch: int = 0, device: str = ""
) -> dict[str, Any]:
    """Carries a plan out and returns its scores, which are then on disk. Killed at any moment, it goes on from the blocks
    that were finished."""
    from sports_ray.score.breakdown import read_groups

    groups = read_groups(plan.groups, plan.classes) if plan.groups else None
    work = Work.of(plan, plan.images, compute, on_progress, batch=batch, device=device)
    work.complete()
    merge = _merge(work)
    on_progress({"kind": "scoring"})
    files: list[PredictionsFile] = []

    def sink() -> Sink:
        files.append(_predictions_file(work, merge))
        return files[-1].add

    tables = work.gather(merge, sink)
    if (rows := files[-1].close()) != len(plan.images):
        raise TrainingError(PREDICTIONS, got=f"{rows} rows", want=f"{len(plan.images)}")
    scores = _scores(plan, tables, merge, groups)
    storage = plan.storage()
    sweep(storage)
    written = {PREDICTIONS: files[-1].put(storage)}
    record = facts(work, tables.errors, work.forget_unread(tables.errors))
    record |= {**scores, "merge": merge_facts(plan, merge), "files": written, "command": list(command)}
    return write_scores(storage, record)


def _scores(plan: Plan, tables: Tables, merge: Merge | None, groups: Groups | None) -> dict[str, Any]:
    labels, named = _labels(plan.images, tables.errors), candidates(plan, merge)
    about: dict[str, Any] = {"candidates": named, "best_single": best_single(plan), "train_images": train_images(plan)}
    if not plan.multilabel:
        return evaluate_predictions(tables.columns, labels, plan.classes, groups=groups, **about)
    known = labels >= 0
    targets = np.zeros((len(labels), len(plan.classes)), dtype=bool)
    targets[known] = matrix(plan.images.label_sets, len(plan.classes))[labels[known]] > 0
    cuts = {one.name: thresholds_of(plan, one.name, merge) for one in named}
    return evaluate_multilabel(tables.columns, targets, known, plan.classes, cuts, **about)


def predict(
    plan: Plan, compute: Compute, on_progress: OnProgress, *, batch: int = 0, device: str = ""
) -> tuple[Table, list[str | None]]:
    """Probabilities [N, K] of the ensemble, or of the only member, and the error of each image."""
    work = Work.of(plan, plan.images, compute, on_progress, batch=batch, device=device)
    work.complete()
    merge = _uniform(plan)
    tables = work.gather(merge)
    work.forget_unread(tables.errors)
    return tables.columns[ENSEMBLE if merge else plan.members[0].name][: len(plan.images)], tables.errors


def _predictions_file(work: Work, merge: Merge | None) -> PredictionsFile:
    plan = work.plan
    meta: dict[str, Any] = {"classes": plan.classes, "members": [member.name for member in plan.members]}
    if plan.multilabel:
        meta["thresholds"] = {
            one.name: thresholds_of(plan, one.name, merge).tolist() for one in candidates(plan, merge)
        }
    columns = [one.name for one in candidates(plan, merge)]
    return PredictionsFile(work.images, columns, {**meta, "weights": merge_facts(plan, merge)["weights"]})


def _labels(images: Images, errors: Sequence[str | None]) -> NDArray[np.int64]:
    """Labels int64 [N]; -1, which no score counts, for an image that could not be read."""
    labels = np.array(images.column("label"), dtype=np.int64)
    labels[[row for row, error in enumerate(errors) if error is not None]] = -1
    return labels


def _merge(work: Work) -> Merge | None:
    """How members are merged; None for a single one."""
    plan = work.plan
    plain = _uniform(plan)
    if plain is None or plan.weights != "fit":
        return plain
    try:
        images = _validation(plan)
    except SportsRayError as error:
        return Merge(plain.weights, 1.0, plain.space, "fit", "uniform", str(error))
    work.on_progress({"kind": "fitting", "images": len(images)})
    held = work.on(images)
    held.complete()
    tables = held.gather(None)
    held.forget_unread(tables.errors)
    columns = {member.name: tables.columns[member.name] for member in plan.members}
    return fit_merge(columns, _labels(images, tables.errors), space=SPACES[plan.average])


def _uniform(plan: Plan) -> Merge | None:
    if len(plan.members) < 2:
        return None
    return uniform([member.name for member in plan.members], SPACES[plan.average])


def _validation(plan: Plan) -> Images:
    """The validation images that all members share; SportsRayError, saying why, where there are none to be trusted."""
    manifests = [manifest_of(member) for member in plan.members]
    for member, manifest in zip(plan.members, manifests, strict=True):
        if manifest is None:
            raise TrainingError(f"no list of photographs in run {member.name}")
        if manifest.classes != plan.classes:
            raise TrainingError(f"the list of photographs of {member.name} has other classes than its weights")
    held = [sorted(one.rows("val").column("sha256").to_pylist()) for one in manifests if one is not None]
    for member, digests in zip(plan.members, held, strict=True):
        if digests != held[0]:
            raise TrainingError(f"{member.name} was validated on other photographs than {plan.members[0].name}")
    known = set(held[0])
    if sum(digest in known for digest in plan.images.digests()) > OVERLAP * len(plan.images):
        raise TrainingError("the photographs to be scored are validation photographs themselves")
    assert manifests[0] is not None
    return manifest_split(manifests[0], "val", plan.data)
