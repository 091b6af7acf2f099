"""Settles all that a sweep needs before anything starts, as `plan` does for a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sports_ray.config import ClusterConfig, TrainConfig
from sports_ray.data.manifest import Manifest
from sports_ray.errors import ConfigError, DataError
from sports_ray.orchestrate.plan import Plan, gpu_count, make_plan
from sports_ray.orchestrate.tune import cluster_nodes, joins
from sports_ray.recipe import build_config
from sports_ray.store.run_dir import RunDir
from sports_ray.sweep.folder import SweepDir
from sports_ray.sweep.halving import Halving, make_halving
from sports_ray.sweep.resources import Share, settle_share, to_come
from sports_ray.sweep.space import grid_size, parse_space, random_params, space_of
from sports_ray.sweep.spec import Backbone, SweepSpec, continued, labels
from sports_ray.sweep.suggest import check_installed

SAMPLES = 8
_BASE = "the-base-of-a-sweep"
"""Name of a run that is planned, to check what all trials have in common, and never made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A sweep as the command line has it."""

    models: str
    recipes: tuple[str, ...]
    """None, one for all backbones, or one for each."""
    flags: Mapping[str, Any]
    overrides: tuple[str, ...]
    space: tuple[str, ...]
    search: str
    samples: int | None
    scheduler: str
    reduction: int
    grace: int
    seed: int
    name: str
    store: str
    workers: int
    cpus: float
    gpus: float | None
    concurrent: int
    keep_weights: int


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep that can start."""

    spec: SweepSpec
    folder: SweepDir
    manifest: Manifest
    plans: tuple[Plan, ...]
    """What the trials of each backbone have in common."""
    concurrent: int
    status: str
    """new or resume."""

    def write(self, command: Sequence[str]) -> None:
        """Makes the sweep, or notes what is another now: samples, resources, the place of the photographs; trials read it there.

        RunError if another driver has made another sweep of this name since this one was planned. The lease must be held."""
        old = self.folder.read_spec()
        if old is not None:
            continued(old, self.spec)
            if old.to_json() == self.spec.to_json() and self.folder.has_manifest(self.manifest):
                return
        self.folder.create(self.spec, self.manifest, command)


def plan_sweep(asked: Asked, *, progress: Callable[[int, int], None] | None = None) -> SweepPlan:
    """Checks models, settings, space, data and resources, and finds out whether the sweep is new. Writes nothing.

    Raises UserError for anything that the user has to mend."""
    models = [name.strip() for name in asked.models.split(",") if name.strip()]
    if not models:
        raise ConfigError("--models", got="none", want="one or more timm models", cure="--models A,B")
    names, configs = labels(models), _configs(models, asked)
    _check_metric(models, configs)
    space = parse_space(asked.space, models)
    _check_search(asked, space, models)
    halving = _halving(asked, configs, {one.key for one in space})
    share, concurrent = _resources(configs[0].cluster, asked, len(models))
    plans: list[Plan] = []
    for config in configs:
        plans.append(make_plan(config, progress=progress, manifest=plans[0].manifest if plans else None))
    manifest, facts = plans[0].manifest, _data_facts(plans[0])
    if not facts["val"]:
        raise DataError("validation images", got="none", want="at least one: they choose among the trials")
    spec = SweepSpec(
        name=asked.name,
        backbones=tuple(
            Backbone(model, label, config, config.loop.precision)
            for model, label, config in zip(models, names, configs, strict=True)
        ),
        space=space,
        search=asked.search,
        samples=0 if asked.search == "grid" else asked.samples or SAMPLES,
        seed=asked.seed,
        halving=halving,
        share=share,
        threads=configs[0].cluster.threads or share.threads,
        keep_weights=asked.keep_weights,
        data=facts,
    )
    spec = dataclasses.replace(spec, name=spec.name or f"sweep-{_digest(spec)}")
    folder = SweepDir.open(plans[0].store, spec.name)
    if RunDir(folder.storage).read_record() is not None:
        raise ConfigError("--sweep", got=f"{spec.name}, a run", want="a name that no run has", cure="another --sweep")
    old = folder.read_spec()
    spec = continued(old, spec) if old else _settled(spec, plans)
    return SweepPlan(spec, folder, manifest, tuple(plans), concurrent, "resume" if old else "new")


def _resources(cluster: ClusterConfig, asked: Asked, backbones: int) -> tuple[Share, int]:
    """What a trial gets, and how many there are at once, on what there is and what `cluster` says will be."""
    gpus = 0.0 if asked.gpus is None and not cluster.gpus else asked.gpus
    wanted: dict[str, Any] = {"workers": asked.workers, "concurrent": asked.concurrent, "gpus": gpus}
    wanted["cpus"] = asked.cpus or cluster.cpus_per_worker
    nodes = cluster_nodes(cluster.address, cluster.usage_stats)
    if joins(cluster.address):
        nodes += to_come(nodes, declared=cluster.gpus, **wanted)
    return settle_share(nodes, backbones, **wanted)


def _configs(models: Sequence[str], asked: Asked) -> list[TrainConfig]:
    """What the trials of each backbone have in common."""
    recipes: list[str | None] = [*asked.recipes] or [None]
    if len(recipes) == 1:
        recipes *= len(models)
    if len(recipes) != len(models):
        raise ConfigError(
            "--recipe", got=f"{len(recipes)} for {len(models)} backbones", want="one for all, or one for each, in order"
        )
    workers = str(asked.workers) if asked.workers > 1 else "0"
    fixed = {"store.root": asked.store, "store.run": _BASE, "cluster.workers": workers, "loop.seed": asked.seed}
    return [
        build_config(recipe, {**asked.flags, **fixed, "model.name": model}, asked.overrides)
        for model, recipe in zip(models, recipes, strict=True)
    ]


def _check_metric(models: Sequence[str], configs: Sequence[TrainConfig]) -> None:
    """One metric ranks all trials; a trial that chose its weights by another would show the score of another epoch."""
    metrics = [config.loop.early_stop_metric for config in configs]
    if len(set(metrics)) > 1:
        raise ConfigError(
            "loop.early_stop_metric",
            got=", ".join(f"{metric} for {model}" for model, metric in zip(models, metrics, strict=True)),
            want="the same for all backbones: it ranks the trials",
            cure=f"--set loop.early_stop_metric={metrics[0]}",
        )


def _check_search(asked: Asked, space: Sequence[Any], models: Sequence[str]) -> None:
    if asked.search == "optuna":
        check_installed()
    if asked.samples is not None and asked.samples < 1:
        raise ConfigError("--samples", got=asked.samples, want="at least 1")
    for model in models:
        mine = space_of(space, model)
        if asked.search == "grid":
            grid_size(mine)
            if asked.samples is not None:
                raise ConfigError("--samples", got=asked.samples, want="none: a grid has as many as its space")
        elif not mine and (asked.samples or SAMPLES) > 1:
            raise ConfigError(
                "--space",
                got=f"nothing to search for {model}",
                want="keys with values",
                cure="--space optim.lr=log:1e-4..1e-2",
            )
        elif asked.search == "random" and (count := asked.samples or SAMPLES):
            there = len(random_params(mine, asked.seed, model, count))
            if there < count and asked.samples:
                raise ConfigError(
                    "--samples",
                    got=f"{count}, of which {there} differ",
                    want="settings that differ",
                    cure="--search grid",
                )


def _halving(asked: Asked, configs: Sequence[TrainConfig], searched: set[str]) -> Halving | None:
    if asked.scheduler == "none":
        return None
    if found := searched & {"loop.epochs", "loop.eval_every"}:
        raise ConfigError(
            "--scheduler asha", got=f"{', '.join(sorted(found))} in --space", want="trials of the same length"
        )
    lengths = {(config.loop.epochs, config.loop.eval_every) for config in configs}
    if len(lengths) > 1:
        raise ConfigError("--scheduler asha", got="recipes of different length", want="the same --epochs for all")
    epochs, every = lengths.pop()
    return make_halving(epochs, every, asked.reduction, asked.grace)


def _data_facts(plan: Plan) -> dict[str, Any]:
    counts = {split: plan.manifest.rows(split).num_rows for split in ("train", "val", "test")}
    facts = {"fingerprint": plan.manifest.fingerprint(), "root": plan.config.data.root, **counts}
    return facts | ({"multilabel": True} if plan.manifest.multilabel else {})


def _digest(spec: SweepSpec) -> str:
    content = json.dumps(spec.identity(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _settled(spec: SweepSpec, plans: Sequence[Plan]) -> SweepSpec:
    """With the precision of each backbone, which is measured where it is left open."""
    backbones = [
        dataclasses.replace(one, precision=_precision(plan, spec.share.gpus > 0)) if one.precision == "auto" else one
        for one, plan in zip(spec.backbones, plans, strict=True)
    ]
    return dataclasses.replace(spec, backbones=tuple(backbones))


def _precision(plan: Plan, on_gpus: bool) -> str:
    """That of the model as a trial will train it.

    auto where trials have GPUs and this machine has none: each then takes what its GPU can do, which is looked up and not
    measured, and so the same on all GPUs of a kind."""
    if on_gpus and not gpu_count():
        return "auto"
    import torch

    from sports_ray.engine.learner import choose_precision
    from sports_ray.model.build import create, image_spec
    from sports_ray.model.convolution import speed_up

    model = create(plan.config.model, len(plan.manifest.classes), plan.config.data.image_size)
    device = torch.device("cuda" if on_gpus else "cpu")
    if device.type == "cpu" and not plan.config.model.compile:
        speed_up(model)
    return choose_precision(plan.config, model, image_spec(model, plan.config.data.image_size), device)
