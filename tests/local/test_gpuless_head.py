"""A cluster whose head has no GPU, and no other node at the moment: what sweeps and predictions make of what is to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from sports_ray.config import ClusterConfig
from sports_ray.errors import ConfigError
from sports_ray.orchestrate import plan_sweep, tune
from sports_ray.orchestrate.plan import parse_workers
from sports_ray.orchestrate.plan_sweep import Asked
from sports_ray.orchestrate.predict import _pool, computer
from sports_ray.predict.plan import plan_evaluation
from sports_ray.predict.work import Work
from sports_ray.sweep.resources import Share, fitting, settle_share, to_come
from tests.support.members import make_member, photographs

HEAD = {"CPU": 0.0, "memory": 1e9}
WORKER = {"CPU": 4.0, "GPU": 1.0}
ASKED = Asked(
    models="a,b", recipes=(), flags={}, overrides=(), space=(), search="random", samples=1, scheduler="none", reduction=3,
    grace=0, seed=0, name="", store="", workers=1, cpus=0.0, gpus=None, concurrent=0, keep_weights=1,
)  # fmt: skip


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Those of a cluster that is joined; the driver's machine has no GPU."""
    there = [HEAD]
    for module in (tune, plan_sweep):
        monkeypatch.setattr(module, "cluster_nodes", lambda *_: list(there))
        monkeypatch.setattr(module, "joins", lambda address: True, raising=False)
    monkeypatch.setattr(plan_sweep, "gpu_count", lambda: 0)
    return there


@pytest.mark.parametrize(
    ("text", "gpus", "workers"),
    [("auto", 0, (1, 1)), ("auto", 4, (4, 4)), ("0", 4, (0, 0)), ("3", 0, (3, 3)), ("1:4", 2, (1, 4))],
)
def test_training_takes_a_worker_for_each_gpu_and_one_where_there_is_none(
    text: str, gpus: int, workers: tuple[int, int]
) -> None:
    assert parse_workers(text, gpus) == workers


@pytest.mark.parametrize(
    ("device", "bounds", "actors"),
    [
        ("cuda", (1, 0), (4, 4)),
        ("cpu", (1, 0), (8, 8)),
        ("cuda", (1, 2), (1, 2)),
        ("cuda", (8, 8), (4, 4)),
        ("cpu", (2, 99), (2, 8)),
    ],
)
def test_every_gpu_of_the_cluster_gets_an_actor_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, bounds: tuple[int, int], actors: tuple[int, int]
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    assert _pool(device, bounds) == actors


@pytest.mark.parametrize(("device", "words"), [("cuda", "no node with GPUs"), ("cpu", "no node with GPUs or CPUs")])
def test_cluster_without_nodes_to_predict_on_is_refused_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, device: str, words: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1e9})
    with pytest.raises(ConfigError, match=f"got {words} at this moment.*min_workers: 1"):
        _pool(device, (1, 0))


def test_predictions_run_where_the_clusters_gpus_are_and_not_as_the_head_has_them(
    nodes: list[dict[str, float]], tmp_path: Path
) -> None:
    photographs(tmp_path / "set", 8)
    make_member(tmp_path / "runs", "one", seed=1)
    plan = plan_evaluation(["one"], data=str(tmp_path / "set"), store=str(tmp_path / "runs"))
    ready: list[int] = []

    def settled(workers: str) -> tuple[str, int]:
        compute = computer(workers, ready=lambda: ready.append(1))
        work = Work.of(plan, plan.images, compute, lambda event: None)
        return work.device, work.batch

    assert settled("auto") == ("cpu", 32)
    nodes.append(WORKER)
    assert settled("auto") == settled("2") == ("cuda", 128)
    assert ready == [1, 1, 1], "signals are the command's again after Ray was asked"
    assert settled("0") == ("cpu", 32), "in this process it is this machine's"


def settle(asked: Asked = ASKED, **cluster: Any) -> tuple[Share, int]:
    return plan_sweep._resources(ClusterConfig(**cluster), asked, 2)


def given(**flags: Any) -> Asked:
    return Asked(**{name: flags.get(name, getattr(ASKED, name)) for name in Asked.__slots__})


@pytest.mark.parametrize(
    ("asked", "cluster", "found"),
    [
        (given(), {"gpus": 8}, (Share(1, 1.0, 1.0), 8)),
        (given(cpus=4.0), {"gpus": 8}, (Share(1, 4.0, 1.0), 8)),
        (given(), {"gpus": 8, "cpus_per_worker": 4}, (Share(1, 4.0, 1.0), 8)),
        (given(cpus=2.0, gpus=0.5), {"gpus": 4}, (Share(1, 2.0, 0.5), 8)),
        (given(cpus=2.0, gpus=2.0), {"gpus": 8}, (Share(1, 2.0, 2.0), 4)),
        (given(workers=2, cpus=3.0), {"gpus": 8}, (Share(2, 3.0, 1.0), 4)),
        (given(cpus=4.0, concurrent=6), {}, (Share(1, 4.0, 0.0), 6)),
        (given(cpus=4.0, gpus=1.0, concurrent=3, workers=2), {}, (Share(2, 4.0, 1.0), 3)),
    ],
)
def test_sweep_begins_on_a_cluster_without_nodes_where_it_is_said_what_will_come(
    nodes: list[dict[str, float]], asked: Asked, cluster: dict[str, Any], found: tuple[Share, int]
) -> None:
    assert settle(asked, **cluster) == found


def test_nodes_that_are_there_count_among_those_to_come(nodes: list[dict[str, float]]) -> None:
    nodes += [WORKER, WORKER]
    share, concurrent = settle(given(cpus=4.0), gpus=8)
    assert (share, concurrent) == (Share(1, 4.0, 1.0), 8)
    assert settle() == (Share(1, 4.0, 1.0), 2), "without a word only what is there"
    assert settle(gpus=0)[0].gpus == 0, "cluster.gpus = 0: no trial takes any"
    assert to_come(nodes, declared=2) == to_come(nodes, declared=-1, concurrent=4, cpus=4.0) == []


def test_sweep_on_a_cluster_without_nodes_is_refused_with_its_cure(nodes: list[dict[str, float]]) -> None:
    with pytest.raises(ConfigError, match="without CPUs at this moment.*--set cluster.gpus=N"):
        settle()
    with pytest.raises(ConfigError, match="room for 1 trial"):
        settle_share([WORKER], 2, gpus=1.0)
    assert fitting([HEAD], Share(1, 1.0, 0.0)) == 0


@pytest.mark.parametrize(
    ("on_gpus", "here", "settled"),
    [(True, 0, "auto"), (False, 0, "cpu"), (True, 1, "cuda"), (False, 1, "cpu")],
)
def test_precision_is_measured_only_where_this_machine_is_as_the_trials_will_find_theirs(
    monkeypatch: pytest.MonkeyPatch, on_gpus: bool, here: int, settled: str
) -> None:
    """On GPUs nothing is measured: a trial looks up what its GPU can do."""
    from sports_ray.engine import learner
    from sports_ray.recipe import build_config

    config = build_config(None, {"model.name": "test_resnet", "model.weights": "none", "data.image_size": 32})
    plan: Any = type("Plan", (), {"config": config, "manifest": type("Manifest", (), {"classes": ("a", "b")})})
    monkeypatch.setattr(plan_sweep, "gpu_count", lambda: here)
    monkeypatch.setattr(learner, "choose_precision", lambda config, model, spec, device: device.type)
    assert plan_sweep._precision(plan, on_gpus) == settled
