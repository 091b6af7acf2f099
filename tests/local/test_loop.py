"""Whole small runs: what EMA, phases, the schedule, early stopping and the best checkpoint leave on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.data.loader import stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request
from sports_ray.errors import RunError
from sports_ray.model.build import create, image_spec
from sports_ray.orchestrate.plan import make_plan
from sports_ray.store.commit import read_commit
from sports_ray.store.storage import open_storage
from tests.support.learners import assert_same_bits
from tests.support.runs import results, small_config, train_in_child

STEPS = 6
"""Three epochs of two steps."""
SETTINGS: dict[str, Any] = {
    "loop__epochs": 3,
    "loop__phases": [{"epochs": 1, "train": "head", "lr_scale": 0.5}],
    "optim__lr": 2e-3,
    "optim__min_lr": 0.2,
    "store__every_steps": 1,
    "store__keep": 100,
    "augment__policy": "none",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=6, size=40, seed=3)
    return folder


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Begun with the weights of a model that knew seven other classes."""
    folder = tmp_path_factory.mktemp("done")
    torch.manual_seed(7)
    known = create(small_config(photos, folder).model, 7, 32).state_dict()
    drawn = {name: torch.rand_like(tensor) for name, tensor in known.items() if "running" in name}
    save_file({**known, **drawn}, folder / "known.safetensors")
    config = small_config(photos, folder, model__weights=str(folder / "known.safetensors"), **SETTINGS)
    assert train_in_child(config) == 0
    return config


def folder_of(config: TrainConfig) -> Path:
    return Path(config.store.root) / config.store.run


def metrics(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]


def at_step(config: TrainConfig, step: int, part: str = "model") -> dict[str, Tensor]:
    return read_commit(open_storage(str(folder_of(config))), step).load(part)


def at_start(config: TrainConfig) -> dict[str, Tensor]:
    """All that the given weights bring, under a head that follows from the seed."""
    torch.manual_seed(config.loop.seed)
    drawn = create(config.model, 4, config.data.image_size).state_dict()
    brought = {name: tensor for name, tensor in load_file(config.model.weights).items() if not name.startswith("fc.")}
    assert 0 < len(drawn) - len(brought) <= 2 and not any(
        torch.equal(drawn[name], tensor) for name, tensor in brought.items() if name.endswith("conv1.weight")
    )
    return {**drawn, **brought}


def test_ema_of_every_step_is_the_closed_form_over_the_weights(done: TrainConfig) -> None:
    decays = [min(1 - 1 / 2, (1 + t) / (10 + t)) for t in range(STEPS)]  # 1 - 1 / steps per epoch, with warm-up
    start, weights = at_start(done), [at_step(done, step + 1) for step in range(STEPS)]
    for step in range(STEPS):
        # shadow = start * prod(d) + sum over t of w_t * (1 - d_t) * prod of the later d
        later = [math.prod(decays[t + 1 : step + 1]) for t in range(step + 1)]
        for name, shadow in at_step(done, step + 1, "ema").items():
            if not shadow.is_floating_point():
                assert torch.equal(shadow, weights[step][name])
                continue
            wanted = start[name].double() * math.prod(decays[: step + 1])
            for t in range(step + 1):
                wanted += weights[t][name].double() * (1 - decays[t]) * later[t]
            torch.testing.assert_close(shadow.double(), wanted, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(at_step(done, STEPS, "ema")[n], w) for n, w in weights[-1].items())


def test_both_scores_are_those_of_plain_torch_on_the_weights_left_behind(done: TrainConfig) -> None:
    manifest = Manifest.from_bytes((folder_of(done) / "manifest.arrow").read_bytes())
    model = create(done.model, 4, done.data.image_size)
    spec = image_spec(model, done.data.image_size)
    rows = manifest.rows("val").num_rows
    with stream(manifest, done.data, done.augment, spec, 0, [Request("val", -1, 0, rows)], 0) as batches:
        batch = next(batches)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    sets = {"": at_step(done, STEPS), "ema_": load_file(folder_of(done) / "weights" / "last.safetensors")}
    line = metrics(done)[-1]
    for prefix, tensors in sets.items():
        model.load_state_dict(tensors)
        with torch.no_grad():
            logits = model.eval()((batch.images / 255 - mean) / std)
        assert line[f"{prefix}val_acc1"] == accuracy_score(batch.labels, logits.argmax(1))
        loss = log_loss(batch.labels, logits.double().softmax(1), labels=range(4))
        assert line[f"{prefix}val_loss"] == pytest.approx(loss, rel=1e-4)
    assert line["val_images"] == rows and line["val_loss"] != line["ema_val_loss"]


def test_in_a_phase_of_the_head_nothing_else_moves_and_afterwards_everything_does(done: TrainConfig) -> None:
    start = at_start(done)
    head = {name for name in start if name.startswith("fc.")}
    assert len(head) == 2
    for step in (1, 2):
        now = at_step(done, step)
        assert_same_bits(
            {n: t for n, t in now.items() if n not in head}, {n: t for n, t in start.items() if n not in head}
        )
        assert not any(torch.equal(now[name], start[name]) for name in head)
    later = at_step(done, STEPS)
    still = [name for name, tensor in later.items() if torch.equal(tensor, start[name])]
    assert not still, f"never learned: {still}"


@pytest.mark.parametrize(("how", "look", "code"), [("stop_at", 1, 75), ("kill_at", 3, -9), ("kill_at", 5, -9)])
def test_run_cut_within_a_phase_or_after_it_equals_the_unbroken_run(
    photos: Path, done: TrainConfig, tmp_path: Path, how: str, look: int, code: int
) -> None:
    config = small_config(photos, tmp_path, model__weights=done.model.weights, **SETTINGS)
    assert train_in_child(config, **{how: look}) == code
    if how == "stop_at":
        assert [path.name[:13] for path in (folder_of(config) / "checkpoints").glob("step-*")] == ["step-00000001"]
    assert train_in_child(config) == 0
    assert results(config) == results(done)


def test_rate_in_the_metrics_is_that_of_the_last_step_of_the_epoch(done: TrainConfig) -> None:
    # Phase: half the rate. Then two steps of warm-up (0.01, 0.505), then two of the cosine from 1 to 0.2 (1, 0.6).
    assert [line["lr"] for line in metrics(done)] == pytest.approx([0.5 * 2e-3, 0.505 * 2e-3, 0.6 * 2e-3])
    assert [(line["epoch"], line["step"]) for line in metrics(done)] == [(1, 2), (2, 4), (3, 6)]


def test_best_weights_are_those_of_the_best_evaluation(done: TrainConfig) -> None:
    lines = metrics(done)
    best = max(lines, key=lambda line: (line["ema_val_acc1"], -line["step"]))
    sidecar = json.loads((folder_of(done) / "weights" / "best.json").read_text())
    assert sidecar["step"] == best["step"]
    assert sidecar["scores"]["ema_val_acc1"] == best["ema_val_acc1"]
    assert_same_bits(load_file(folder_of(done) / "weights" / "best.safetensors"), at_step(done, best["step"], "ema"))
    assert_same_bits(load_file(folder_of(done) / "weights" / "last.safetensors"), at_step(done, STEPS, "ema"))


def test_best_can_go_by_the_loss_and_by_raw_weights(photos: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "loop__phases": [], "loop__early_stop_metric": "loss", "ema__enabled": False}
    config = small_config(photos, tmp_path, **settings)
    assert train_in_child(config) == 0
    lines = metrics(config)
    assert not any(name.startswith("ema_") for line in lines for name in line)
    best = min(lines, key=lambda line: line["val_loss"])["step"]
    assert_same_bits(load_file(folder_of(config) / "weights" / "best.safetensors"), at_step(config, best))


def test_early_stopping_comes_at_its_epoch_also_after_a_kill(photos: Path, tmp_path: Path) -> None:
    # At this rate no score moves: the first evaluation stays the best, and the second one after it is the last.
    settings = {**SETTINGS, "loop__phases": [], "model__name": "test_vit", "model__drop_path": 0.0}
    settings |= {"optim__lr": 1e-12, "loop__epochs": 6, "loop__early_stop": 2}
    config = small_config(photos, tmp_path, **settings)
    assert train_in_child(config, kill_at=8) == -9  # three looks an epoch: in the last step before the stop
    assert [line["epoch"] for line in metrics(config)] == [1, 2]
    assert train_in_child(config) == 0
    assert [line["epoch"] for line in metrics(config)] == [1, 2, 3]
    assert len({line["ema_val_acc1"] for line in metrics(config)}) == 1
    assert json.loads((folder_of(config) / "weights" / "best.json").read_text())["step"] == 2
    assert make_plan(config).status == "finished"
    with pytest.raises(RunError, match="run run was stopped early, in epoch 3 of 6; got --epochs 9"):
        make_plan(small_config(photos, tmp_path, **{**settings, "loop__epochs": 9}))


def test_more_epochs_go_on_and_are_recorded_and_other_changes_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    first, longer = (
        small_config(photos, tmp_path, **{**SETTINGS, "loop__phases": [], "loop__epochs": n}) for n in (1, 2)
    )
    assert make_plan(first).status == "new"
    assert train_in_child(first) == 0
    before = metrics(first)
    assert (make_plan(first).status, make_plan(longer).status) == ("finished", "resume")
    assert train_in_child(longer) == 0
    assert metrics(longer)[:1] == before and [line["epoch"] for line in metrics(longer)] == [1, 2]
    record = json.loads((folder_of(longer) / "run.json").read_text())
    assert record["extensions"] == [{"from_epochs": 1, "to_epochs": 2, "schedule": "stretch"}]

    def refusal(**changes: Any) -> str:
        with pytest.raises(RunError) as error:
            make_plan(small_config(photos, tmp_path, **{**SETTINGS, "loop__phases": [], "loop__epochs": 2, **changes}))
        return str(error.value)

    assert refusal(loop__epochs=1) == "run run; got --epochs 1; wanted at least its 2; cure: another --run NAME"
    assert refusal(loop__seed=5, optim__lr=0.25) == (
        "run run exists with other settings; got loop.seed: 0 -> 5; optim.lr: 0.002 -> 0.25; "
        "wanted the settings it was started with; cure: another --run NAME, or the old settings"
    )
    other = tmp_path / "other"
    draw_demo(other, classes=4, per_class=7, size=40, seed=3)
    text = refusal(data__root=str(other))
    assert "data: 24 train, " in text and "-> 28 train, " in text and "content differs" in text
