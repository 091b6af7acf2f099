"""A run with a head of several layers: killed it ends with the same bits, and what it leaves predicts and is handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.errors import ConfigError
from sports_ray.model.build import create, head_tensors
from sports_ray.model.weights import load_weights
from sports_ray.orchestrate.plan import make_plan
from sports_ray.predict.member import find_member, load_model
from tests.support.runs import results, small_config, train_in_child

HEAD = "8-bn-dropout0.5-relu-linear"
SETTINGS: dict[str, Any] = {
    "model__head": HEAD,
    "data__image_size": 64,
    "loop__global_batch": 5,
    "loop__micro_batch": 0,
    "loop__phases": [{"epochs": 1, "train": "head"}],
    "augment__policy": "none",
    "store__every_steps": 1,
}
"""Lanes of one image and of two, alone where the run is strict: batch norm meets both."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=5, size=40, seed=3)
    return folder


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.long)], ids=["strict", "plain"])
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> TrainConfig:
    config = small_config(photos, tmp_path_factory.mktemp("done"), **SETTINGS, loop__strict=request.param)
    assert train_in_child(config) == 0
    return config


def test_run_killed_within_the_heads_phase_and_after_it_equals_the_unbroken_one(
    photos: Path, done: TrainConfig, tmp_path: Path
) -> None:
    config = small_config(photos, tmp_path, **SETTINGS, loop__strict=done.loop.strict)
    assert [train_in_child(config, kill_at=look) for look in (2, 4)] == [-9, -9]
    assert train_in_child(config) == 0
    assert results(config) == results(done)


def test_weights_that_a_run_leaves_predict_with_their_head_and_start_another_run(done: TrainConfig) -> None:
    store = Path(done.store.root)
    assert json.loads((store / "run/weights/best.json").read_text())["head"] == HEAD
    member = find_member("run", str(store))
    model = load_model(member, torch.device("cpu"))
    norm = model.get_submodule("fc.1")
    assert isinstance(norm, torch.nn.BatchNorm1d) and bool(norm.running_mean.any())  # type: ignore[union-attr]
    file = str(store / "run/weights/best.safetensors")
    other = create(done.model, 2, 64)
    assert load_weights(other, file, "test_resnet", member.classes).head == "kept: same classes"
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())
    turned = create(done.model, 2, 64)
    assert (
        load_weights(turned, file, "test_resnet", member.classes[::-1]).head
        == "new: other classes, or in another order"
    )
    own = head_tensors(turned) - {"fc.1.weight", "fc.1.bias", "fc.1.num_batches_tracked"}
    assert not [n for n in own if torch.equal(turned.state_dict()[n], model.state_dict()[n]) and n.endswith("weight")]


def test_plan_refuses_a_head_that_cannot_be_built_or_trained_before_anything_starts(
    photos: Path, tmp_path: Path
) -> None:
    for settings, message in [
        ({"model__head": "bn"}, "model.head; got 'bn'; wanted words joined by -"),
        ({"model__head": HEAD, "loop__micro_batch": 1}, "got one image a forward pass; wanted two or more for bn"),
        ({"model__name": "deit_tiny_distilled_patch16_224", "model__head": HEAD, "data__image_size": 224},
         "whose classifier is no single linear layer"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError) as error:
            make_plan(small_config(photos, tmp_path, **settings))
        assert message in str(error.value)
    assert (
        make_plan(small_config(photos, tmp_path, model__head=HEAD)).parameters
        != make_plan(small_config(photos, tmp_path)).parameters
    )
