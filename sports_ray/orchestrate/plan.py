"""Settles all that a run needs before anything starts: every mistake of the user's ends here, before any worker.

torch is imported only where it is needed: to check a model for the first time, and the weights of a new run."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sports_ray import __version__
from sports_ray.config import LossConfig, TrainConfig
from sports_ray.data import folds, policy, sampler
from sports_ray.data.manifest import Manifest, build_manifest
from sports_ray.data.sampler import Sampler
from sports_ray.engine.schedule import Schedule
from sports_ray.errors import ConfigError, DataError, RunError, WeightsError
from sports_ray.model.facts import full_name, model_facts
from sports_ray.orchestrate.extend import check_new, extended, record_extension
from sports_ray.recipe import changed_keys, config_from_dict, config_to_dict, digest, identity
from sports_ray.store.run_dir import RunDir, recorded
from sports_ray.store.storage import open_storage, parted, without_keys


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can start: checked, with its data listed."""

    config: TrainConfig
    name: str
    store: str
    manifest: Manifest
    schedule: Schedule
    workers: tuple[int, int]
    """Least and most workers; (0, 0): in this process."""
    gpus: int
    """GPUs that workers can take: cluster.gpus, or those of this machine."""
    parameters: int
    checkpoint_bytes: int
    image_size: int
    status: str
    """new, resume or finished."""
    notes: tuple[str, ...]
    lengthened: bool = False
    """Whether the run gets more epochs than it had."""

    @property
    def run_dir(self) -> RunDir:
        return RunDir.open(open_storage(self.store), self.name)


def make_plan(
    config: TrainConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    manifest: Manifest | None = None,
    extend: str = "",
) -> Plan:
    """Checks model, data, store and workers, and finds out whether the run is new. Writes nothing.

    `manifest`: the photographs, where they are listed already; `extend`: the schedule of more epochs, see extend.py. Raises
    UserError for anything that the user has to mend.
    """
    given_name = config.model.name
    config, workers, gpus = _checked(config)
    manifest = manifest or build_manifest(config.data, progress=progress)
    train, val = manifest.rows("train").num_rows, manifest.rows("val").num_rows
    if config.loss != LossConfig():
        from sports_ray.engine.multilabel import check_labels

        check_labels(config, manifest)
    if not train:
        raise DataError("training images", got="none", want="at least one", cure="see `sports-ray data scan`")
    model = model_facts(config, len(manifest.classes))
    name = config.store.run or f"{re.sub(r'[^A-Za-z0-9._-]', '_', given_name)}-{digest(config, manifest.fingerprint())}"
    store = config.store.root if "://" in config.store.root else _local_store(config.store.root)
    config = dataclasses.replace(config, store=dataclasses.replace(config.store, root=store, run=name))
    plan = Plan(
        config=config,
        name=name,
        store=store,
        manifest=manifest,
        schedule=Schedule.of(config, len(Sampler.of(config, manifest)), val),
        workers=workers,
        gpus=gpus,
        parameters=model.parameters,
        checkpoint_bytes=checkpoint_size(config, model.parameters),
        image_size=model.image_size,
        status="new",
        notes=manifest.notes,
    )
    record = plan.run_dir.read_record()
    if record is not None:
        return _continued(plan, record, extend)
    check_new(name, extend)
    if config.model.weights != "none":
        _check_coverage(config, manifest)
    return plan


def _checked(config: TrainConfig) -> tuple[TrainConfig, tuple[int, int], int]:
    """The config with the model's full name, the workers and the GPUs, after all that can be checked without the data."""
    if not config.model.name:
        raise ConfigError(
            "model.name", got="nothing", want="a timm model", cure="--model NAME; see `sports-ray models`"
        )
    if not config.data.root:
        raise DataError("data.root", got="nothing", want="a folder of photographs", cure="--data DIR")
    _check_weights(config.model.weights)
    for check in (folds.check, sampler.check):
        check(config.data)
    policy.parse(config.augment.policy)
    gpus = gpu_count() if config.cluster.gpus < 0 else config.cluster.gpus
    workers = parse_workers(config.cluster.workers, min(gpus, config.loop.lanes))
    if workers[1] > config.loop.lanes:
        raise ConfigError(
            "workers",
            got=workers[1],
            want=f"at most loop.lanes = {config.loop.lanes}",
            cure=f"--set loop.lanes={workers[1]}",
        )
    model = dataclasses.replace(config.model, name=full_name(config, workers[1]))
    return dataclasses.replace(config, model=model), workers, gpus


def _check_coverage(config: TrainConfig, manifest: Manifest) -> None:
    """Weights that do not fit, or cannot be had, are told before any worker starts: on the meta device loading only
    compares."""
    from sports_ray.model.build import create
    from sports_ray.model.shapes import shapes_only
    from sports_ray.model.weights import load_weights

    with shapes_only():
        model = create(config.model, len(manifest.classes), config.data.image_size)
    load_weights(model, config.model.weights, config.model.name, manifest.classes)


def checkpoint_size(config: TrainConfig, parameters: int) -> int:
    """Bytes of one checkpoint, without its small change: float32 weights, optimiser moments and EMA."""
    copies = 1 + (2 if config.optim.name != "sgd" else 1) + config.ema.enabled
    return 4 * parameters * copies


def parse_workers(text: str, gpus: int) -> tuple[int, int]:
    """`auto`, `N` or `MIN:MAX` -> (least, most)."""
    if text == "auto":
        return (max(1, gpus), max(1, gpus))
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not match:
        raise ConfigError("workers", got=text, want="0, N or MIN:MAX", cure="for example --workers 2 or --workers 1:4")
    low, high = int(match[1]), int(match[2] or match[1])
    if low > high or (match[2] and low < 1):
        raise ConfigError("workers", got=text, want="MIN:MAX with 1 <= MIN <= MAX")
    return low, high


def gpu_count() -> int:
    """GPUs of this machine that torch can use. Where Linux has no device of any, it is not asked: its import takes long."""
    kinds = ("nvidia*", "nvhost*", "kfd", "dxg")
    if sys.platform == "linux" and not any(place for kind in kinds for place in Path("/dev").glob(kind)):
        return 0
    import torch

    return torch.cuda.device_count()


def _check_weights(weights: str) -> None:
    if weights not in ("auto", "none") and not Path(weights).is_file():
        raise WeightsError("weights", got=weights, want="auto, none or a file", cure="check the path")


def _local_store(root: str) -> str:
    """Absolute path of a store; ConfigError where no folder can be made."""
    path = Path(root).absolute()
    standing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        reason = "may not be written" if standing.is_dir() else "is no folder"
        raise ConfigError(
            "store", got=f"{root}: {standing} {reason}", want="a folder that can be written", cure="another --store DIR"
        )
    return str(path)


def _continued(plan: Plan, record: dict[str, Any], extend: str) -> Plan:
    """The plan of a run that exists: it goes on, or is finished. Refuses one whose identity or data differ."""
    changed = changed_keys(record["identity"], identity(plan.config))
    if record["data"]["fingerprint"] != plan.manifest.fingerprint():
        changed.append(f"data: {_counts(record['data'])} -> {_counts(_data_facts(plan))}, content differs")
    if changed:
        raise RunError(
            f"run {plan.name} exists with other settings",
            got="; ".join(changed),
            want="the settings it was started with",
            cure="another --run NAME, or the old settings",
        )
    before = int(record["config"]["loop"]["epochs"])
    config = extended(plan.config, record, plan.name, extend, _stopped_at(plan, before))
    return dataclasses.replace(
        plan,
        config=config,
        schedule=Schedule.of(config, plan.schedule.train_images, plan.schedule.val_images),
        status="finished" if plan.run_dir.finished_epochs() >= config.loop.epochs else "resume",
        lengthened=config.loop.epochs > before,
    )


def _stopped_at(plan: Plan, epochs: int) -> int:
    """The epoch in which early stopping ended the run, which had so many; 0: it did not."""
    last = plan.run_dir.describe_weights("last")
    each = plan.schedule.steps_per_epoch
    over = last is not None and plan.run_dir.finished_epochs() >= epochs and last["step"] < epochs * each
    return last["step"] // each if last is not None and over else 0


def _data_facts(plan: Plan) -> dict[str, Any]:
    manifest = plan.manifest
    counts = {split: manifest.rows(split).num_rows for split in ("train", "val", "test")}
    facts = {"fingerprint": manifest.fingerprint(), "root": manifest.root, **counts}
    return {**facts, "positions": plan.schedule.train_images}


def _counts(facts: dict[str, Any]) -> str:
    return f"{facts['train']} train, {facts['val']} val, {facts['test']} test images"


def write_record(plan: Plan) -> None:
    """Creates the run's record, or notes more epochs and a moved folder of photographs; the lease must be held."""
    run_dir = plan.run_dir
    record = run_dir.read_record()
    run_dir.write_manifest(plan.manifest.to_bytes())
    if record is None:
        labels: dict[str, Any] = {}
        if plan.manifest.multilabel:
            from sports_ray.engine.multilabel import label_facts

            labels["multilabel"] = label_facts(plan.config, plan.manifest)
        run_dir.create(
            {
                "format": 1,
                "config": recorded(config_to_dict(plan.config)),
                "identity": identity(plan.config),
                "classes": list(plan.manifest.classes),
                "data": _data_facts(plan),
                **labels,
                "extensions": [],
                "command": [os.path.basename(sys.argv[0]), *map(without_keys, sys.argv[1:])],
                "version": __version__,
            }
        )
        return
    record_extension(record, plan.config, plan.name)
    # How the run is computed may change from session to session; the newest way is what workers read.
    record["config"], record["data"] = recorded(config_to_dict(plan.config)), _data_facts(plan)
    run_dir.write_record(record)


def load_run(run_dir: RunDir) -> tuple[TrainConfig, Manifest]:
    """Config and manifest of an existing run, as a worker needs them."""
    record = run_dir.read_record()
    if record is None:
        raise RunError("run", got=run_dir.storage.uri, want="a run of this store", cure="see `sports-ray status`")
    return config_from_dict(record["config"]), Manifest.from_bytes(run_dir.read_manifest())


def safe_step(plan: Plan) -> int:
    """The newest step whose commit was finished; 0: none was."""
    from sports_ray.store.commit import is_finished, list_commits

    storage = plan.run_dir.storage
    return max((found.step for found in list_commits(storage) if is_finished(storage, found)), default=0)


def find_run(run: str, store: str) -> tuple[str, str, dict[str, Any]]:
    """`run`, a name in `store` or the path or URI of a run's folder -> (store, name, record); RunError if there is none."""
    root, name = parted(run)
    for where, called in ((root, name), (store, run)):
        if (
            where
            and called
            and "/" not in called
            and (record := RunDir.open(open_storage(where), called).read_record())
        ):
            return where, called, record
    raise RunError("run", got=run, want=f"a run in {store}, or the path of one", cure="see `sports-ray status`")
