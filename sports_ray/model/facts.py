"""What has to be known of a model before a run begins: checked once, then remembered, so that the same command again
needs no torch and no timm for it, whose imports take four seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from sports_ray.config import ModelConfig, TrainConfig
from sports_ray.remembered import place_of, recall, remember


class ModelFacts(NamedTuple):
    parameters: int
    """Frozen ones included, shared ones once."""
    image_size: int
    """Of training, px."""


def full_name(config: TrainConfig, workers: int) -> str:
    """The model's name as timm has it, for an alias too; `workers`: the most.

    Raises WeightsError for a model that timm has not, ConfigError for a head that does not fit the batch."""

    def find_out() -> str:
        from sports_ray.model.build import resolve_name

        return resolve_name(config.model.name)

    def check() -> None:
        from sports_ray.model.head import check_head

        check_head(config.model.head, config.loop, workers)

    if config.model.head != ModelConfig().head:
        _once(["head", config.model.head, asdict(config.loop), workers], check)
    return str(_once(["name", config.model.name], find_out))


def model_facts(config: TrainConfig, classes: int) -> ModelFacts:
    """Of the model that `config` builds for so many classes; its name is timm's.

    Raises ConfigError for an image size that it cannot take, a head or phases that it has no place for."""

    def find_out() -> list[int]:
        from sports_ray.model.build import create, image_spec, parameter_count, trainable
        from sports_ray.model.shapes import shapes_only

        with shapes_only():
            model = create(config.model, classes, config.data.image_size)
        for phase in config.loop.phases:
            trainable(model, phase.train)
        return [parameter_count(model), image_spec(model, config.data.image_size).train_size]

    phases = [phase.train for phase in config.loop.phases]
    return ModelFacts(*_once(["facts", asdict(config.model), config.data.image_size, phases, classes], find_out))


def _once(question: list[Any], find_out: Callable[[], Any]) -> Any:
    """The answer, in JSON's types, as it was found out before with the same versions of all that takes part in it."""
    versions = [version("torch"), version("timm"), _own_version()]
    place = place_of("model", json.dumps([versions, question], sort_keys=True))
    known = recall(place)
    if known is not None:
        return json.loads(bytes(known))
    found = find_out()
    remember(place, json.dumps(found).encode())
    return found


@cache
def _own_version() -> str:
    """Of the code that answers. A checkout changes without its version, so it is named by what it says."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
