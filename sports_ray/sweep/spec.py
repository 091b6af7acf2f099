"""All that a sweep is, in one record: what is tried, with what, and how. Written once, read by every process of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sports_ray.config import ClusterConfig, StoreConfig, TrainConfig
from sports_ray.errors import ConfigError, RunError
from sports_ray.recipe import changed_keys, config_from_dict, config_to_dict, identity
from sports_ray.store.run_dir import recorded
from sports_ray.sweep.halving import Halving
from sports_ray.sweep.resources import Share
from sports_ray.sweep.space import Parameter, Params, grid_params, grid_size, parse_space, random_params, space_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Backbone:
    name: str
    """As it was given: a timm model or an alias."""
    label: str
    """The same as part of a folder's name."""
    config: TrainConfig
    """What its trials have in common, as it was asked for."""
    precision: str
    """Settled once for all of its trials: measured for each, it could differ, and the scores with it."""


@dataclass(frozen=True, slots=True)
class Trial:
    name: str
    """Of its run in the sweep's folder."""
    backbone: Backbone
    index: int
    """From 0, among those of its backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    name: str
    backbones: tuple[Backbone, ...]
    space: tuple[Parameter, ...]
    search: str
    """random, grid or optuna."""
    samples: int
    """Settings tried of each backbone; a grid's number follows from its space, and may differ between backbones."""
    seed: int
    halving: Halving | None
    share: Share
    threads: int
    """Of one tensor operation; settled once, for another number may change the last bits."""
    keep_weights: int
    """The best trials of each backbone whose weights stay."""
    data: Mapping[str, Any]
    """fingerprint, root, the number of images of each split, and multilabel where a photograph shows several classes."""

    @property
    def metric(self) -> str:
        """acc1 or loss: what ranks trials, as the engine picks the best epoch."""
        return self.backbones[0].config.loop.early_stop_metric

    @property
    def score_name(self) -> str:
        """acc1 or map: the score that people read, whatever ranks."""
        return "map" if self.data.get("multilabel") else "acc1"

    def trials(self) -> list[Trial]:
        """All trials, backbone by backbone."""
        return [
            Trial(f"{backbone.label}-{index:03d}", backbone, index)
            for backbone in self.backbones
            for index in range(self.count(backbone))
        ]

    def count(self, backbone: Backbone) -> int:
        space = space_of(self.space, backbone.name)
        if self.search == "grid":
            return grid_size(space)
        if self.search == "random":
            return len(random_params(space, self.seed, backbone.name, self.samples))
        return self.samples

    def drawn(self) -> dict[str, Params]:
        """Settings of all trials by name, where they follow from the trials' numbers; none for optuna."""
        found: dict[str, Params] = {}
        for backbone in self.backbones if self.search != "optuna" else ():
            space, count = space_of(self.space, backbone.name), self.count(backbone)
            if self.search == "grid":
                settings = [grid_params(space, index) for index in range(count)]
            else:
                settings = random_params(space, self.seed, backbone.name, count)
            found |= {f"{backbone.label}-{index:03d}": params for index, params in enumerate(settings)}
        return found

    def config(self, trial: Trial, params: Mapping[str, Any], store: str) -> TrainConfig:
        """The trial's config, with its run in `store`. ConfigError where the values do not go together."""
        settings = config_to_dict(trial.backbone.config)
        settings["loop"]["precision"] = trial.backbone.precision
        for key, value in params.items():
            section, name = key.split(".")
            settings[section][name] = value
        settings["store"] |= {"root": store, "run": trial.name}
        if settings["data"]["loader_processes"] < 0 and self.share.gpus:
            # By itself a run takes the cores of its machine, which it has to share here.
            settings["data"]["loader_processes"] = max(1, min(8, int(self.share.cpus) - 1))
        workers = "0" if self.share.workers == 1 else str(self.share.workers)
        settings["cluster"] |= {"workers": workers, "threads": self.threads, "cpus_per_worker": self.share.cpus}
        return config_from_dict(settings)

    def recipe(self, trial: Trial, params: Mapping[str, Any]) -> TrainConfig:
        """The trial's settings without its place and its photographs, for `train --recipe`: it gives the same bits."""
        config = self.config(trial, params, "runs")
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, root=""),
            store=StoreConfig(),
            cluster=ClusterConfig(workers=config.cluster.workers, threads=self.threads),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "backbones": [
                {
                    "name": one.name,
                    "label": one.label,
                    "config": recorded(config_to_dict(one.config)),
                    "precision": one.precision,
                }
                for one in self.backbones
            ],
            "space": [f"{one.backbone}:{one.key}={one.text}".lstrip(":") for one in self.space],
            "search": self.search,
            "samples": self.samples,
            "seed": self.seed,
            "halving": self.halving and {"rungs": list(self.halving.rungs), "reduction": self.halving.reduction},
            "share": {"workers": self.share.workers, "cpus": self.share.cpus, "gpus": self.share.gpus},
            "threads": self.threads,
            "keep_weights": self.keep_weights,
            "data": dict(self.data),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SweepSpec:
        """The inverse of `to_json`. RunError for a record of another version."""
        if record.get("format") != FORMAT:
            raise RunError("sweep", got=f"format {record.get('format')}", want=f"format {FORMAT}")
        backbones = tuple(
            Backbone(one["name"], one["label"], config_from_dict(one["config"]), one["precision"])
            for one in record["backbones"]
        )
        halving = record["halving"] and Halving(tuple(record["halving"]["rungs"]), record["halving"]["reduction"])
        return cls(
            name=record["name"], backbones=backbones,
            space=parse_space(record["space"], [one.name for one in backbones]), search=record["search"],
            samples=record["samples"], seed=record["seed"], halving=halving, share=Share(**record["share"]),
            threads=record["threads"], keep_weights=record["keep_weights"], data=record["data"],
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What makes a sweep this sweep: more samples, other resources or another place of the photographs do not."""
        record = self.to_json()
        found = {name: record[name] for name in ("space", "search", "seed", "halving")}
        for one in self.backbones:
            found |= {f"{one.name}:{key}": value for key, value in identity(one.config).items()}
            found[f"{one.name}:loop.epochs"] = one.config.loop.epochs
        return found | {"workers": self.share.workers, "data": self.data["fingerprint"]}


def labels(models: Sequence[str]) -> list[str]:
    """Names of models as parts of folders' names. ConfigError if two are the same."""
    found = [re.sub(r"[^A-Za-z0-9._-]", "_", model)[:80] for model in models]
    if len(set(found)) < len(found):
        raise ConfigError("--models", got=", ".join(models), want="each model once")
    return found


def continued(old: SweepSpec, new: SweepSpec) -> SweepSpec:
    """The sweep that goes on: what was settled stays, with as many samples as are asked for now.

    RunError, naming the keys, if the command asks for another one."""
    before, now = old.identity(), new.identity()
    changed = changed_keys(before, now)
    if new.samples < old.samples:
        changed.append(f"samples: {old.samples} -> {new.samples}")
    if changed:
        raise RunError(
            f"sweep {old.name} exists with other settings",
            got="; ".join(changed),
            want="those it was started with, or more --samples",
            cure="another --sweep NAME, or the old settings",
        )
    return dataclasses.replace(
        new,
        name=old.name,
        backbones=tuple(
            dataclasses.replace(one, precision=kept.precision)
            for one, kept in zip(new.backbones, old.backbones, strict=True)
        ),
        threads=old.threads,
    )
