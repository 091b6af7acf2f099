"""Each recipe as a user starts it, on drawn photographs, with a small model in the place of its own; one step of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sports_ray.config import PhaseConfig, TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.model.build import create, head_parameters
from sports_ray.model.loss import mixed_cross_entropy
from sports_ray.model.optim import create_optimizer, learning_rate
from sports_ray.orchestrate.local import train_here
from sports_ray.orchestrate.plan import make_plan
from sports_ray.predict.member import find_member, load_model
from sports_ray.recipe import build_config, config_to_dict, recipe_names
from sports_ray.store.commit import list_commits
from sports_ray.store.storage import open_storage

STEPS = 2
"""An epoch: 16 photographs."""
STAND_INS = {"convnext": "test_convnext", "vit": "test_vit", "swin": "test_vit", "resnet": "test_resnet",
             "regnet": "test_resnet"}  # fmt: skip
SMALL: dict[str, Any] = {
    "model.weights": "none",
    "data.image_size": 32,
    "data.loader_processes": 0,
    "loop.global_batch": 8,
    "loop.lanes": 2,
    "loop.eval_batch": 8,
    "loop.precision": "fp32",
    "cluster.workers": "0",
    "cluster.threads": 1,
}
"""What differs from the recipe, besides the model and the number of epochs."""


IN_SHORT = {
    *("sports102-convnext", "vlg-resnet50", "pixelplay-convnext-tiny", "keras-mobilenetv3-large"),
    *("sports-vit-b16", "swin-tiny", "quick"),
}
"""Of each system at least one; the others are variants of these, and tried in the long form."""
NAMES = [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.long) for name in recipe_names()]

SIDES = {
    "resnet50": 64,
    "efficientnet-b0": 64,
    "vit-b16": 32,
    "convnext-tiny": 32,
    "swin-tiny": 64,
    "regnety-400mf": 64,
}
"""Of recipes for fine-tuning: an image side at which a step of the very model is quick, px."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=8, size=40, seed=3)
    return folder


def stand_in(model: str) -> str:
    return next((small for large, small in STAND_INS.items() if large in model), "test_efficientnet")


def small_recipe(name: str, photos: Path, store: Path) -> TrainConfig:
    recipe = build_config(name)
    phases = [config_to_dict(PhaseConfig(train=one.train, lr_scale=one.lr_scale)) for one in recipe.loop.phases]
    epochs = 6 if recipe.optim.schedule == "step" else len(phases) + 1
    course = {
        "loop.epochs": epochs,
        "loop.phases": phases,
        "store.keep_epochs": [1] if recipe.store.keep_epochs else [],
    }
    places = {"data.root": str(photos), "store.root": str(store), "store.run": name}
    return build_config(name, {**SMALL, **course, **places, "model.name": stand_in(recipe.model.name)})


@contextmanager
def rates_applied() -> Iterator[list[float]]:
    """The rate that the optimiser really had in each step, by torch's own hook."""
    found: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: found.append(max(one["lr"] for one in optimizer.param_groups))
    )
    yield found
    hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_recipe_trains_its_stand_in_to_the_end_at_its_rates_and_the_result_predicts(
    name: str, photos: Path, tmp_path: Path
) -> None:
    config = small_recipe(name, photos, tmp_path)
    with rates_applied() as applied:
        assert train_here(make_plan(config), lambda event: None).status == "done"
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    loop, optim = config.loop, config.optim
    assert len(lines) == loop.epochs or (loop.early_stop and len(lines) > loop.early_stop)
    planned = [learning_rate(k, optim.lr, optim, loop.phases, STEPS, loop.epochs) for k in range(len(lines) * STEPS)]
    assert applied == pytest.approx(planned)
    if name == "vlg-resnet50":
        assert applied == pytest.approx([1e-4] * 5 * STEPS + [1e-5] * STEPS)
    assert all(math.isfinite(line["train_loss"]) and math.isfinite(line["val_loss"]) for line in lines)
    assert ("ema_val_loss" in lines[0]) == config.ema.enabled
    member = find_member(name, str(tmp_path))
    model = load_model(member, torch.device("cpu"))
    assert member.head == config.model.head and model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    kept = {found.step for found in list_commits(open_storage(str(tmp_path / name)))}
    assert not config.store.keep_epochs or STEPS in kept


@pytest.mark.parametrize("name", sorted(SIDES))
def test_one_step_of_the_recipe_reaches_every_parameter_and_stays_finite(name: str) -> None:
    torch.manual_seed(0)
    config = build_config(name)
    model = create(config.model, 7, SIDES[name])
    optimizer = create_optimizer(model, config.optim, config.optim.lr)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ends = [0, *(names.index(key) for key in head_parameters(model))]
    before = [parameters[index].detach().clone() for index in ends]
    model.train()
    logits = model(torch.randn(2, 3, SIDES[name], SIDES[name]))
    loss = mixed_cross_entropy(logits, torch.tensor([1, 4]), None, None, config.augment.smoothing).mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert [key for key, parameter in zip(names, parameters, strict=True) if parameter.grad is None] == []
    assert all(torch.isfinite(parameter).all() for parameter in parameters)
    assert not [names[index] for index, old in zip(ends, before, strict=True) if torch.equal(parameters[index], old)]
