"""Proves from what lies in a run's folder that nothing in it is damaged, that each image was consumed as the sampler says,
and that training can go on: re-reads every byte, and loads the newest commit into a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sports_ray.config import DataConfig, TrainConfig
from sports_ray.data.files import open_files
from sports_ray.data.manifest import Manifest
from sports_ray.data.sampler import Sampler
from sports_ray.engine.learner import Progress, build_learner
from sports_ray.engine.ledger import Ledger, expected
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.world import World
from sports_ray.errors import SportsRayError
from sports_ray.model.build import create, image_spec
from sports_ray.store.codec import unseal
from sports_ray.store.commit import Commit, is_finished, list_commits, read_commit
from sports_ray.store.fence import is_orphan, read_fences
from sports_ray.store.run_dir import RunDir

TWICE = ("run.json", "settled.json")
"""Kept with a copy beside."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    text: str
    ok: bool = True


def verify_run(run_dir: RunDir, config: TrainConfig, manifest: Manifest, fingerprint: str) -> Iterator[Finding]:
    """Looks at all of a run, a finding at a time. `fingerprint`: the recorded one of the manifest.

    Raises StorageError when the store as a whole does not answer."""
    yield from _records(run_dir)
    found = manifest.fingerprint()
    yield Finding("manifest", f"{manifest.table.num_rows:,} photographs, {found[:12]}", found == fingerprint)
    commits: list[Commit] = []
    for finding, commit in _commits(run_dir):
        yield finding
        commits += [commit] if commit else []
    sampler = Sampler.of(config, manifest)
    schedule = Schedule.of(config, len(sampler), manifest.rows("val").num_rows)
    yield from _consumption(commits, schedule, manifest, sampler)
    yield from _history(run_dir, commits, schedule)
    yield from _weights(run_dir, {commit.step: commit for commit in commits})
    yield _resumable(commits, config, manifest)


def verify_photographs(manifest: Manifest, data: DataConfig | None = None) -> Iterator[Finding]:
    """Reads each photograph again; the last finding counts them. `data`: see `files.open_files`."""
    table, files, wrong = manifest.table, open_files(manifest.root, data), 0
    for path, digest in zip(table.column("path").to_pylist(), table.column("sha256").to_pylist(), strict=True):
        try:
            same = hashlib.sha256(files.read(path)).hexdigest() == digest
            reason = "other bytes than the run was started with"
        except OSError as error:
            same, reason = False, f"{error.strerror}"
        if not same:
            wrong += 1
            yield Finding("photograph", f"{path}: {reason}", ok=False)
    yield Finding("photographs", f"{table.num_rows - wrong:,} of {table.num_rows:,} are those of the run", not wrong)


def _records(run_dir: RunDir) -> Iterator[Finding]:
    for name in TWICE:
        for path in (name, name.replace(".json", ".copy.json")):
            try:
                content = run_dir.storage.find(path)
                if content is None:
                    yield Finding(path, "is missing; the next start of the run mends it", ok=False)
                    continue
                unseal(content, path)
                yield Finding(path, "agrees with its sha256")
            except SportsRayError as error:
                yield Finding(path, str(error), ok=False)


def _commits(run_dir: RunDir) -> Iterator[tuple[Finding, Commit | None]]:
    """Every checkpoint folder; the commits that count and verify."""
    fences = read_fences(run_dir.storage)
    for found in list_commits(run_dir.storage):
        what = found.folder
        if is_orphan(*found, fences):
            yield Finding(what, "of an attempt that was replaced; not read, deleted at the next start"), None
        elif not is_finished(run_dir.storage, found):
            yield Finding(what, "not finished; not read, deleted at the next start"), None
        else:
            try:
                commit = read_commit(run_dir.storage, *found)
                size = sum(entry["size"] for entry in commit.files.values())
                yield Finding(what, f"{len(commit.files)} files, {size / 1e6:.1f} MB, every byte verifies"), commit
            except SportsRayError as error:
                yield Finding(what, str(error), ok=False), None


def _consumption(commits: list[Commit], schedule: Schedule, manifest: Manifest, sampler: Sampler) -> Iterator[Finding]:
    """Compares each commit's digest with the sampler's."""
    ledger = Ledger(manifest.rows("train").column("sha256"))
    wanted = expected(ledger, schedule, sampler, max((commit.step for commit in commits), default=0))
    for commit in commits:
        if commit.state.get("consumed") is None:
            yield Finding(f"consumed to step {commit.step}", "not recorded by the version that wrote this commit")
            continue
        epochs, rest = divmod(commit.step, schedule.steps_per_epoch)
        text = f"every image {sampler.words} for {epochs} epochs" + (f" and {rest} steps as sampled" if rest else "")
        same = commit.state.get("consumed") == wanted[commit.step]
        text = text if same else "other images, or in another order, than the sampler says"
        yield Finding(f"consumed to step {commit.step}", text, same)


def _history(run_dir: RunDir, commits: list[Commit], schedule: Schedule) -> Iterator[Finding]:
    """Each commit's history goes on from the one before, and metrics.jsonl is the newest one's."""
    lines: list[dict[str, Any]] = []
    for commit in commits:
        what = f"history at step {commit.step}"
        progress = Progress.from_json(commit.state)
        steps = [line["step"] for line in progress.history]
        due = [step for step in range(1, progress.evaluated + 1) if schedule.evaluates_after(step)]
        if progress.history[: len(lines)] != lines:
            yield Finding(what, "is not a continuation of the commit before", ok=False)
        elif progress.step != commit.step or steps != due:
            yield Finding(what, f"evaluations at steps {steps}, wanted {due}", ok=False)
        elif commit is commits[-1] and progress.best_step not in {0, *(other.step for other in commits)}:
            yield Finding(what, f"the best commit, of step {progress.best_step}, is not there", ok=False)
        else:
            yield Finding(what, f"{len(steps)} evaluations, in order")
        lines = progress.history
    metrics = run_dir.read_metrics()
    behind = len(lines) - len(metrics)
    text = f"{len(metrics)} lines" + (
        f", {behind} behind the newest commit; the next one mends it" if behind > 0 else ""
    )
    yield Finding("metrics.jsonl", text, metrics == lines[: len(metrics)])


def _weights(run_dir: RunDir, commits: dict[int, Commit]) -> Iterator[Finding]:
    """Published weights fit their description and, where it still exists, the commit that they were taken from."""
    for name in ("best", "last"):
        if not any(run_dir.storage.exists(f"weights/{name}.{kind}") for kind in ("safetensors", "json")):
            continue
        what = f"weights/{name}.safetensors"
        try:
            tensors, sidecar = run_dir.read_weights(name)
        except SportsRayError as error:
            yield Finding(what, str(error), ok=False)
            continue
        commit = commits.get(sidecar["step"])
        if commit is None:
            yield Finding(what, f"of step {sidecar['step']}, fits its description")
            continue
        source = commit.load(sidecar["weights"])
        same = source.keys() == tensors.keys() and all(torch.equal(source[key], tensors[key]) for key in source)
        text = f"those of the commit at step {commit.step}" if same else f"differ from the commit of step {commit.step}"
        yield Finding(what, text, same)


def _resumable(commits: list[Commit], config: TrainConfig, manifest: Manifest) -> Finding:
    """Whether the newest commit really loads into the run's model, optimiser and EMA."""
    if not commits:
        return Finding("resumable", "no commit that verifies: the run has nothing to go on from", ok=False)
    newest = commits[-1]
    model = create(config.model, len(manifest.classes), config.data.image_size, sure=True)
    learner = build_learner(config, model, image_spec(model, config.data.image_size), 0.1, 0.9, "fp32", World())
    try:
        learner.load(newest.load)
    except (SportsRayError, RuntimeError, KeyError, ValueError) as error:
        return Finding("resumable", f"step {newest.step} does not load: {str(error).splitlines()[0]}", ok=False)
    return Finding("resumable", f"step {newest.step} loads into {config.model.name}, its optimiser and EMA")
