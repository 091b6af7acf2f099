"""What is frozen stays as it is, to the last bit, statistics of batch norm included, however a step is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.engine.learner import Progress
from sports_ray.engine.world import World
from tests.support.learners import assert_same_bits, new_learner, snapshot, take_step
from tests.support.ranks import on_ranks

SETTINGS: dict[str, Any] = {
    "model__name": "test_resnet",
    "model__head": "8-bn-relu-linear",
    "optim__name": "adamw",
    "optim__weight_decay": 0.1,
    "images": 20,
}


def train(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """A step of everything, two of the head alone, and one of everything: what there was before, between and after."""
    learner, schedule = new_learner(world, **settings)
    progress, left = Progress(micro_batch=learner.config.loop.micro_batch), []
    take_step(learner, schedule, progress, lr=1e-2)
    for pattern, steps in (("head", 2), (None, 1)):
        left.append(snapshot(learner))
        learner.enter_phase(pattern)
        for _ in range(steps):
            take_step(learner, schedule, progress, lr=1e-2)
    return {"before": left[0], "frozen": left[1], "after": snapshot(learner)}


WAYS = {"plain": {}, "strict": {"loop__strict": True}, "accumulated": {"loop__micro_batch": 4}}


@pytest.mark.parametrize(
    ("way", "ranks"),
    [("plain", 1), ("strict", 1), ("accumulated", 1), pytest.param("plain", 2, marks=pytest.mark.long)],
)
def test_frozen_weights_moments_and_statistics_are_bit_equal_and_learn_again_when_thawed(
    way: str, ranks: int, tmp_path: Path
) -> None:
    settings = {**SETTINGS, **WAYS[way]}
    (found, *_) = [train(World(), settings)] if ranks == 1 else on_ranks(tmp_path, ranks, train, settings)
    of_body = [name for name in found["before"] if ".fc." not in name and "/fc." not in name]
    of_head = [name for name in found["before"] if name.startswith("model/fc.")]
    still = [name for name in of_body if not name.startswith("ema/")]  # the average still follows the first step
    assert len(of_head) == 9 and any("running_var" in name for name in still)
    assert_same_bits({n: found["frozen"][n] for n in still}, {n: found["before"][n] for n in still})
    assert not [n for n in of_head if torch.equal(found["frozen"][n], found["before"][n])]
    everything = [name for name in found["after"] if name.startswith("model/")]
    assert not [n for n in everything if torch.equal(found["after"][n], found["frozen"][n])]
